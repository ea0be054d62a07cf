"""The figure: test pictures, and under each what the inverters make of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from fednano_flwr.analysis import canvas
from fednano_flwr.analysis.picture import Picture
from fednano_flwr.base.files import replace_file

COLUMNS, GAP = 6, 4
"""Pictures of a row, and white pixels around each."""


@canvas.styled
def write_figure(file: Path, shown: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Draw the first test pictures (N, 3, S, S) of each subject, a row a kind, as a PNG."""
    figure, axes = canvas.panels(height=4.4, columns=len(shown), width=9.6)
    for axis, (name, kinds) in zip(axes, shown.items(), strict=True):
        rows = [np.concatenate(list(map(framed, one[:COLUMNS])), 1) for one in kinds.values()]
        axis.imshow(np.concatenate(rows), interpolation="nearest", aspect="auto")
        height = rows[0].shape[0]
        axis.set_yticks([height * (row + 0.5) for row in range(len(rows))], list(kinds))
        axis.set(title=name, xticks=[])
        axis.tick_params(left=False)
        axis.grid(False)
        axis.spines[:].set_visible(False)
        if axis is not axes[0]:
            axis.set_yticklabels([])
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, Picture("pictures", "", figure).files()["png"])


def framed(picture: Tensor) -> np.ndarray:
    """(3, S, S) as (S + 2 GAP, S + 2 GAP, 3) with a white frame."""
    plain = picture.permute(1, 2, 0).numpy()
    return np.pad(plain, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=1.0)
