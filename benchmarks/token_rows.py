"""How many rows of the token table a client needs: distinct tokens by number of questions.

    python -m benchmarks.token_rows --tokenizer FOLDER --data /data/scienceqa [--data /data/iconqa]

Counts the tokens of the pinned prompts and right answers, written in LLaVA-1.5's turn, as
`edge.vocabulary = "shard"` and `fednano split --shard` keep them; the placeholder of a picture is
one row more. Of each size it draws several random sets. Only words are read, so pictures that are
missing do not matter. Prints a table and writes JSON.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.report import options_of, table, write_json
from fednano_flwr.data.prompts import answer_text, user_text
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.sources.iconqa import IconQA, find_root
from fednano_flwr.data.sources.scienceqa import make_sample

SIZES = (100, 200, 400, 800, 1600)
PLACEHOLDER = 1  # row of the token that stands for a picture


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("token_rows", __doc__)
    parser.add_argument("--tokenizer", required=True, help="folder with a tokenizer")
    parser.add_argument("--tokenizer-name", default="", help="what to call it in the results")
    parser.add_argument("--data", action="append", required=True, help="ScienceQA's or IconQA's")
    parser.add_argument("--draws", type=int, default=10)
    options = parser.parse_args(argv)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    name = options.tokenizer_name or Path(options.tokenizer).name
    results = {}
    for path in map(Path, options.data):
        samples = read(path)
        results[path.name] = result = count(tokenizer, samples, options.draws)
        print(f"{path.name} ({len(samples):,} questions), {name}, {len(tokenizer):,} tokens")
        rows = [
            (f"{int(size):,}", f"{found['mean']:,.0f}", f"{found['least']:,}", f"{found['most']:,}")
            for size, found in result["rows"].items()
        ]
        print("\n" + table(["questions", "rows, mean", "least", "most"], rows))
        length = result["text_tokens"]
        print(
            f"\ntext tokens of a question with its answer: median {length['median']:.0f}, "
            f"mean {length['mean']:.0f}, 95th percentile {length['p95']:.0f}, "
            f"most {length['most']}\n"
        )
    setting = {"tokenizer": name, "vocabulary": len(tokenizer), "draws": options.draws}
    write_json(options, setting=setting, results=results)


def read(path: Path) -> list[Sample]:
    """All questions of a dataset's folder, every split, in order of their ids."""
    problems = path / "problems.json"
    if problems.is_file():
        found = sorted(json.loads(problems.read_text(encoding="utf-8")).items())
        return [
            make_sample(pid, one, Picture(path) if one["image"] else None) for pid, one in found
        ]
    root = find_root(path)
    if root is None:
        raise SystemExit(f"{path} is neither a folder of ScienceQA nor of IconQA")
    data = IconQA(root)
    there = [split for split in ("train", "val", "test") if (data.root / split).is_dir()]
    read_samples = [sample for split in there for _, sample in data.read(split).problems]
    return [sample for sample in read_samples if isinstance(sample, Sample)]


def turn(sample: Sample) -> str:
    """Prompt and right answer in LLaVA-1.5's chat template, without the placeholder."""
    picture = "\n" if sample.images else ""
    return f"USER: {picture}{user_text(sample)} ASSISTANT: {answer_text(sample)}"


def count(tokenizer: Any, samples: Sequence[Sample], draws: int) -> dict[str, Any]:
    """Distinct tokens of random sets by their size, and how long questions are."""
    ids = tokenizer([turn(sample) for sample in samples])["input_ids"]
    end = {tokenizer.eos_token_id} if any(sample.answer is None for sample in samples) else set()
    rows = {}
    for size in [size for size in SIZES if size < len(ids)]:
        sets = [random.Random(seed).sample(ids, size) for seed in range(draws)]
        rows[str(size)] = summary([len(set().union(*own) | end) + PLACEHOLDER for own in sets])
    rows[str(len(ids))] = summary([len(set().union(*ids) | end) + PLACEHOLDER])
    lengths = sorted(map(len, ids))
    return {
        "questions": len(ids),
        "rows": rows,
        "text_tokens": {
            "median": statistics.median(lengths),
            "mean": statistics.mean(lengths),
            "p95": lengths[int(0.95 * len(lengths))],
            "most": lengths[-1],
        },
    }


def summary(counts: Sequence[int]) -> dict[str, float]:
    return {"mean": statistics.mean(counts), "least": min(counts), "most": max(counts)}


if __name__ == "__main__":
    main()
