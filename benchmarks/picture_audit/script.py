"""What pictures give away: pictures are drawn again from what the LLM host keeps of them.

    python -m benchmarks.picture_audit [--folder MODEL] [--json FILE] [--picture FILE]

An inverter (`inverter.py`) is fitted to other pictures of the same kind, a new one for each kind of
features and always with as many pictures and anchors; validation pictures choose its penalty.
Pictures of the demo, and of easy-VQA with the model that `python -m fednano_demo.real.build` makes
(`--folder ""` leaves it out). Prints the table of docs/audit.md, writes JSON and draws a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.picture_audit.figure import write_figure
from benchmarks.picture_audit.inverter import fitted
from benchmarks.picture_audit.similarity import psnr, recognized, ssim
from benchmarks.picture_audit.subjects import KINDS, Split, demo, easy_vqa, encode
from benchmarks.report import ROOT, options_of, table, write_json
from fednano_demo import MODEL_DIR
from fednano_demo.real.build import default_folder
from fednano_flwr.analysis.statistics import spread
from fednano_flwr.models.edge_half import load_edge_half

AT_RANDOM = "nothing: a training picture at random"
SIZES = {"train": 3500, "val": 300, "test": 500}
Row = Mapping[str, Any]
COLUMNS: dict[str, Callable[[Row], str]] = {
    "pictures": lambda row: row["subject"],
    "what is kept": lambda row: row["kept"],
    "numbers a picture": lambda row: f"{row['numbers']:,}" if row["numbers"] else "–",
    "SSIM": lambda row: interval(row["ssim"], 3),
    "PSNR, dB": lambda row: interval(row["psnr"], 1),
    "recognized, %": lambda row: f"{100 * row['recognized']:.1f}",
}
"""Headings, and a row's text under each."""


def interval(found: Mapping[str, float], digits: int) -> str:
    """`0.923 (0.918–0.928)`."""
    mean, low, high = (f"{found[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low}–{high})"


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/audit.md."""
    return table(list(COLUMNS), [[write(row) for write in COLUMNS.values()] for row in rows])


def scores(ours: Tensor, originals: Tensor) -> dict[str, Any]:
    """Means over pictures (N, 3, S, S), with Student's 95 % interval."""
    each = {"ssim": ssim(ours, originals), "psnr": psnr(ours, originals)}
    found: dict[str, Any] = {name: asdict(spread(one.tolist())) for name, one in each.items()}
    return found | {"recognized": recognized(ours, originals).float().mean().item()}


def audit(
    name: str, splits: Mapping[str, Split], anchors: int, seed: int
) -> tuple[list[Row], dict[str, Tensor]]:
    """Rows of the table, and test pictures beside what each inverter draws."""
    known, tuned, originals = (splits[split].pictures for split in SIZES)
    side, tokens = originals.shape[-1], splits["test"].outputs.shape[1]
    at_random = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(known), (len(originals),), generator=at_random)
    drawn = {
        AT_RANDOM: known[picks],
        "nothing: the mean training picture": known.mean(0).expand_as(originals),
    }
    notes: dict[str, Row] = {}
    for kept, (block, kind) in KINDS.items():
        found = []
        fits = fitted(kind(splits["train"]), known, block * side // tokens, anchors, seed)
        for penalty, inverter in fits:
            error = (inverter(kind(splits["val"]), side) - tuned).square().mean().item()
            found.append((error, penalty, inverter))
        error, penalty, inverter = min(found, key=lambda one: one[0])
        vectors = kind(splits["test"])
        drawn[kept] = inverter(vectors, side)
        notes[kept] = {"numbers": vectors[0].numel(), "penalty": penalty, "validation_error": error}
        print(f"{name}: {kept} is done", flush=True)
    rows: list[Row] = [
        {"subject": name, "kept": kept, "numbers": 0, **notes.get(kept, {})}
        | scores(pictures, originals)
        for kept, pictures in drawn.items()
    ]
    del drawn[AT_RANDOM]
    return rows, {"original": originals} | drawn


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("picture_audit", __doc__)
    parser.add_argument("--folder", default=str(default_folder()), help="the real model's")
    parser.add_argument("--picture", default=str(ROOT / "docs" / "picture" / "audit.png"))
    for split, size in SIZES.items():
        parser.add_argument(f"--{split}", type=int, default=size, help="pictures; %(default)s")
    parser.add_argument("--anchors", type=int, default=1000, help="of the radial basis functions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)

    rows: list[Row] = []
    shown: dict[str, dict[str, Tensor]] = {}
    sizes = {split: getattr(options, split) for split in SIZES}
    subjects = {"demo": (str(MODEL_DIR), demo), "easy-VQA": (options.folder, easy_vqa)}
    for name, (model, draw) in subjects.items():
        if not model:
            continue
        half = load_edge_half(model)
        splits = {split: encode(half, one) for split, one in draw(sizes, options.seed).items()}
        found, shown[name] = audit(name, splits, options.anchors, options.seed)
        rows += found
    print(markdown(rows))
    write_figure(Path(options.picture), shown)
    write_json(options, rows=rows)


if __name__ == "__main__":
    main()
