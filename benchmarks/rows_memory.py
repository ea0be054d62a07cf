"""What 100,000 dialogues with pictures cost a client in memory.

    python -m benchmarks.rows_memory [--questions 100000] [--clients 10] [--kind jsonl]

Writes made-up dialogues of two answers each and a PNG a row, beside the file (`jsonl`, `json`) or
in it (`parquet`), then measures as `iconqa_memory` does. Needs about 2 GB of disk for a while.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.iconqa_memory import measure, measure_apart
from benchmarks.report import options_of, write_json

KINDS = ("jsonl", "json", "parquet")
ROWS_AT_ONCE = 500


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("rows_memory", __doc__)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--kind", choices=KINDS, default="jsonl")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        what, folder = options.measure[0], Path(options.measure[1])
        own: dict[str, Any] = {"name": "messages", "path": str(folder / f"rows.{options.kind}")}
        own |= {"group": "site", "test_fraction": 0.2}
        print(json.dumps(measure(what, folder, options.clients, **own)))
        return
    with tempfile.TemporaryDirectory(prefix="rows-memory-") as name:
        write(Path(name), options.kind, options.questions)
        module = ["benchmarks.rows_memory", "--kind", options.kind]
        results = measure_apart(module, Path(name), options.clients)
    write_json(options, results=results)


def write(folder: Path, kind: str, questions: int) -> None:
    """Write `rows.KIND`, and for text files the pictures that it names."""
    rows = dialogues(folder, questions, inside=kind == "parquet")
    if kind == "parquet":
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        batch = [next(rows)]
        with ParquetWriter(folder / "rows.parquet", pyarrow.Table.from_pylist(batch).schema) as out:
            for row in rows:
                batch.append(row)
                if len(batch) == ROWS_AT_ONCE:
                    out.write_table(pyarrow.Table.from_pylist(batch))
                    batch = []
            if batch:
                out.write_table(pyarrow.Table.from_pylist(batch))
        return
    ends = ("[", ",\n", "]") if kind == "json" else ("", "\n", "")
    with (folder / f"rows.{kind}").open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write((ends[1] if number else ends[0]) + json.dumps(row))
        file.write(ends[2])


def dialogues(folder: Path, questions: int, inside: bool) -> Iterator[dict[str, Any]]:
    """Rows of `messages`; pictures as bytes in them, or as files of their own."""
    from PIL import Image

    rng = random.Random(0)
    (folder / "pictures").mkdir()
    for number in range(questions):
        buffer = io.BytesIO()
        Image.frombytes("RGB", (32, 32), rng.randbytes(32 * 32 * 3)).save(buffer, "png")
        picture: Any = {"bytes": buffer.getvalue(), "path": None}
        if not inside:
            picture = f"pictures/{number}.png"
            (folder / picture).write_bytes(buffer.getvalue())
        said = [
            ("user", f"<image>What is in picture {number}?"),
            ("assistant", "Noise of many colours, " * 4),
            ("user", "Are you sure of that, or might there be more in it?"),
            ("assistant", "There is no more in it than " + "noise, " * rng.randint(1, 40)),
        ]
        messages = [{"role": role, "content": text} for role, text in said]
        yield {"messages": messages, "images": [picture], "site": f"site {rng.randrange(12)}"}


if __name__ == "__main__":
    main()
