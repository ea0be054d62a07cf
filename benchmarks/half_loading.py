"""What a process needs to load one half of a checkpoint, in memory and time.

    python -m benchmarks.half_loading [--size large]

Writes a random LLaVA of about 1 GB in several shards, then loads from it, each in a process of its
own: the client's half with the whole vocabulary and with 2,000 rows of it, the host's half, and
the whole model with transformers. Every byte loaded is touched: parameters that stay as they are
stored remain mapped from the file, and count only then. Memory is the process's peak (VmHWM; Linux
only), shown in all and above what the imports had taken before. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, memory, options_of, table, write_json


@dataclass(frozen=True)
class Size:
    """How large a checkpoint is; its language model has as many layers as the bytes allow."""

    megabytes: int
    vision_width: int
    vision_layers: int
    width: int
    vocabulary: int
    shard: str


SIZES = {
    "large": Size(1000, 768, 12, 1024, 32_000, "200MB"),
    "small": Size(160, 384, 12, 512, 8_000, "80MB"),
}
# As stored, and as loaded.
DTYPES = (("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32"))
CASES = {
    "client, whole vocabulary": "client",
    "client, 2,000 rows": "client-rows",
    "host": "host",
    "whole model, transformers": "whole",
}
ROWS = 2_000


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("half_loading", __doc__)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--folder", help="where the checkpoint goes, and is removed")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return

    size = SIZES[options.size]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        if shutil.disk_usage(name).free < 2e6 * size.megabytes:
            parser.error(f"{name}: less than {2 * size.megabytes} MB free; use --folder")
        for stored, loaded in DTYPES:
            folder = Path(name).resolve() / stored
            if not folder.exists():
                write(size, folder, stored)
            results[f"{stored} as {loaded}"] = {
                case: json.loads(subprocess.check_output(command(kind, folder, loaded), cwd=ROOT))
                for case, kind in CASES.items()
            }
            report(f"{stored} as {loaded}", results[f"{stored} as {loaded}"])
        held = {folder.name: contents(folder) for folder in Path(name).iterdir()}
    write_json(options, checkpoint=held, results=results)


def command(kind: str, folder: Path, dtype: str) -> list[str]:
    """What measures one case in a process of its own, started in `ROOT`, and prints it as JSON."""
    module = "benchmarks.half_loading"
    return [sys.executable, "-m", module, "--measure", kind, str(folder), dtype]


def report(title: str, cases: dict[str, Any]) -> None:
    print(f"\n{title} (MB)\n")
    rows = []
    for case, found in cases.items():
        numbers = [found["bytes"], found["peak"], found["imports"], excess(found)]
        rows.append((case, *(f"{n / 1e6:.0f}" for n in numbers), f"{found['seconds']:.2f}"))
    headings = ["loaded", "its bytes", "peak", "imports", "peak − imports − bytes", "seconds"]
    print(table(headings, rows), flush=True)


def excess(found: dict[str, Any]) -> int:
    """Bytes that were needed at the peak besides the libraries and what was loaded."""
    return found["peak"] - found["imports"] - found["bytes"]


def contents(folder: Path) -> dict[str, int]:
    shards = list(folder.glob("*.safetensors"))
    return {"shards": len(shards), "bytes": sum(shard.stat().st_size for shard in shards)}


def write(size: Size, folder: Path, dtype: str) -> None:
    """A random LLaVA in the hub's format."""
    import torch
    import transformers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    transformers.utils.logging.disable_progress_bar()
    number = getattr(torch, dtype)

    def model(layers: int) -> Any:
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=size.vision_width,
                intermediate_size=4 * size.vision_width,
                num_hidden_layers=size.vision_layers,
                num_attention_heads=size.vision_width // 64,
                image_size=224,
                patch_size=16,
            ),
            text_config=LlamaConfig(
                vocab_size=size.vocabulary,
                hidden_size=size.width,
                intermediate_size=size.width * 11 // 4,
                num_hidden_layers=layers,
                num_attention_heads=size.width // 64,
            ),
            image_token_index=2,
        )
        with torch.device("meta"):
            return LlavaForConditionalGeneration(config).to(number)

    def nbytes(layers: int) -> int:
        return sum(parameter.nbytes for parameter in model(layers).parameters())

    room = 1e6 * size.megabytes - nbytes(1)
    whole = model(1 + round(room / (nbytes(2) - nbytes(1)))).to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in whole.parameters():
        parameter.data.uniform_(-0.05, 0.05)
    whole.save_pretrained(folder, max_shard_size=size.shard)


def measure(kind: str, folder: str, dtype: str) -> dict[str, Any]:
    """Load one thing; bytes of it, and of this process at its largest."""
    import torch
    import transformers

    architecture = transformers.LlavaForConditionalGeneration  # imports what building needs
    if kind == "host":
        from fednano_flwr.models.llm_half import load_llm_half
    elif kind != "whole":
        from fednano_flwr.models.edge_half import load_edge_half
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    imports = memory("VmRSS")
    started = time.perf_counter()
    parts: list[Any]
    if kind == "whole":
        parts = [architecture.from_pretrained(folder, dtype=getattr(torch, dtype))]
    elif kind == "host":
        parts = [load_llm_half(folder, dtype=dtype)]
    else:
        half = load_edge_half(folder, dtype=dtype)
        ids = None
        if kind == "client-rows":
            vocabulary = half.checkpoint.config.text_config.vocab_size
            ids = list(range(0, vocabulary, vocabulary // ROWS))[:ROWS]
        parts = [half, half.token_table(ids)]
    seconds = time.perf_counter() - started
    parameters = [parameter for part in parts for parameter in part.parameters()]
    for parameter in parameters:
        parameter.data.flatten().view(torch.uint8)[::4096].sum()
    return {
        "bytes": sum(parameter.nbytes for parameter in parameters),
        "peak": memory("VmHWM"),
        "imports": imports,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
