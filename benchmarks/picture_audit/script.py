"""What pictures give away: pictures are drawn again from what the LLM host keeps of them.

    python -m benchmarks.picture_audit [--folder MODEL] [--json FILE] [--picture FILE]

An inverter is trained on other pictures of the same kind (`inverter.py`), once for each kind of
features, always with the same pictures, anchors and choices; what is chosen is chosen on validation
pictures. Pictures of the demo, and of easy-VQA with the model that `python -m
fednano_demo.real.build` makes (`--folder ""` leaves it out). Prints the table of docs/audit.md,
writes JSON and draws a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.picture_audit.figure import write_figure
from benchmarks.picture_audit.inverter import Inverter, fitted
from benchmarks.picture_audit.similarity import psnr, recognized, ssim
from benchmarks.picture_audit.subjects import KINDS, PATCH, SPLITS, Kind, Split, encode, subjects
from benchmarks.report import ROOT, options_of, table, write_json
from fednano_demo.real.build import default_folder
from fednano_flwr.analysis.statistics import spread
from fednano_flwr.models.edge_half import load_edge_half

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


@dataclass(frozen=True)
class Budget:
    """What every kind of features gets alike."""

    anchors: int
    seed: int


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


def best(kind: Kind, splits: Mapping[str, Split], budget: Budget) -> tuple[Inverter, Row]:
    """The inverter with the least squared error on validation pictures, and what was chosen."""
    train, val = kind.of(splits["train"]), kind.of(splits["val"])
    pictures, originals = splits["train"].pictures, splits["val"].pictures
    found = []
    for anchors in (0, budget.anchors):
        pixels = PATCH * kind.side
        for penalty, one in fitted(train, pictures, pixels, anchors, budget.seed):
            error = (one(val, originals.shape[-1]) - originals).square().mean().item()
            found.append((error, one, {"anchors": anchors, "penalty": penalty}))
    error, inverter, chosen = min(found, key=lambda one: one[0])
    return inverter, chosen | {"validation_error": error}


def audit(
    name: str, splits: Mapping[str, Split], budget: Budget
) -> tuple[list[Row], dict[str, Tensor]]:
    """Rows of the table, and the test pictures as each inverter draws them."""
    known, originals = splits["train"].pictures, splits["test"].pictures
    picks = torch.randint(
        len(known), (len(originals),), generator=torch.Generator().manual_seed(budget.seed)
    )
    drawn = {
        "nothing: a training picture at random": known[picks],
        "nothing: the mean training picture": known.mean(0).expand_as(originals),
    }
    notes: dict[str, Row] = {}
    for kept, kind in KINDS.items():
        inverter, chosen = best(kind, splits, budget)
        vectors = kind.of(splits["test"])
        drawn[kept] = inverter(vectors, originals.shape[-1])
        notes[kept] = {"numbers": vectors[0].numel(), "chosen": chosen}
        print(f"{name}, {kept}: {chosen}", flush=True)
    rows = [
        {"subject": name, "kept": kept, "numbers": 0, **notes.get(kept, {})}
        | scores(pictures, originals)
        for kept, pictures in drawn.items()
    ]
    return rows, {"original": originals} | drawn


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("picture_audit", __doc__)
    parser.add_argument("--folder", default=str(default_folder()), help="the real model's")
    parser.add_argument("--picture", default=str(ROOT / "docs" / "picture" / "audit.png"))
    for split, size in zip(SPLITS, (2000, 300, 500), strict=True):
        parser.add_argument(f"--{split}", type=int, default=size, help="pictures; %(default)s")
    parser.add_argument("--anchors", type=int, default=1000, help="of the radial basis functions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)

    rows: list[Row] = []
    shown: dict[str, dict[str, Tensor]] = {}
    sizes = {split: getattr(options, split) for split in SPLITS}
    for name, (model, draw) in subjects(options.folder).items():
        half = load_edge_half(model)
        splits = {split: encode(half, one) for split, one in draw(sizes, options.seed).items()}
        found, shown[name] = audit(name, splits, Budget(options.anchors, options.seed))
        rows += found
    print(markdown(rows))
    write_figure(Path(options.picture), shown)
    write_json(options, rows=rows)


if __name__ == "__main__":
    main()
