"""The figure: test pictures, and under each what the inverters make of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fednano_flwr.analysis import canvas
from fednano_flwr.base.files import replace_file

COLUMNS, GAP, DPI = 4, 4, 96
"""Pictures of a row, white pixels around each, and the file's resolution."""
STEP = 5
"""Of 255, to which colours are rounded: nobody sees it, and the file is half as large."""


@canvas.styled
def write_figure(file: Path, shown: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Draw the first test pictures (N, 3, S, S) of each subject, a row a kind, as a small PNG."""
    figure, axes = canvas.panels(height=4.6, columns=len(shown), width=8.0)
    for axis, (name, kinds) in zip(axes, shown.items(), strict=True):
        rows = [np.concatenate(list(map(framed, one[:COLUMNS])), 1) for one in kinds.values()]
        axis.imshow(np.concatenate(rows), interpolation="nearest", aspect="auto")
        height = rows[0].shape[0]
        names = list(kinds) if axis is axes[0] else [""] * len(rows)
        axis.set_yticks([height * (row + 0.5) for row in range(len(rows))], names)
        axis.set(title=name, xticks=[])
        axis.tick_params(left=False)
        axis.grid(False)
        axis.spines[:].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, facecolor="white")
    colours = np.asarray(Image.open(out).convert("RGB")) // STEP * STEP
    small = io.BytesIO()
    Image.fromarray(colours).save(small, "PNG", optimize=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, small.getvalue())


def framed(picture: Tensor) -> np.ndarray:
    """(3, S, S) as (S + 2 GAP, S + 2 GAP, 3) with a white frame."""
    plain = picture.permute(1, 2, 0).numpy()
    return np.pad(plain, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=1.0)
