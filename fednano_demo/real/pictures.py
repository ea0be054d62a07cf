"""easy-VQA's pictures as tensors, and what each patch of them shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fednano_demo.real.easy import COLOURS, SHAPES, Question
from fednano_demo.real.processor import PATCH, PIXEL_MEAN, PIXEL_STD

EMPTY = len(SHAPES)
"""Label of a patch that shows nothing."""
UNKNOWN = -100
_CONTRAST, _COVERED = 60, 0.1
"""A patch shows the shape where this share of its pixels differs so much from the corner's."""


@dataclass(frozen=True)
class Pictures:
    """Pictures as tensors.

    Attributes:
        pixels: (n, 3, 64, 64) float32, as the processor makes them.
        shapes, colours: (n,) index into `SHAPES` and `COLOURS`, `UNKNOWN` where no question tells.
        shown: (n, 16) bool, whether a patch shows a part of the shape.
    """

    pixels: Tensor
    shapes: Tensor
    colours: Tensor
    shown: Tensor

    @property
    def named(self) -> Tensor:
        """(n,) index of shape and colour in `Descriptions`, `UNKNOWN` where one is not told."""
        known = (self.shapes >= 0) & (self.colours >= 0)
        return torch.where(known, self.shapes * len(COLOURS) + self.colours, UNKNOWN)

    def of(self, picks: Tensor) -> Pictures:
        """Some of them."""
        return Pictures(*(column[picks] for column in vars(self).values()))

    def turned(self, way: int) -> Pictures:
        """Mirrored and turned in one of 8 ways; what they show stays the same."""
        side = round(self.shown.shape[1] ** 0.5)
        axes = [axis for axis, bit in ((-1, 1), (-2, 2)) if way & bit]
        pixels, shown = (
            one.flip(axes).transpose(-1, -2) if way & 4 else one.flip(axes)
            for one in (self.pixels, self.shown.unflatten(1, (side, side)))
        )
        return replace(self, pixels=pixels, shown=shown.flatten(1))


def open_pictures(files: Sequence[Path], questions: Sequence[Sequence[Question]]) -> Pictures:
    """Read pictures; what they show is what the questions of each tell."""
    raw = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    pixels = torch.from_numpy(raw).permute(0, 3, 1, 2)
    differs = (pixels.int() - pixels[:, :, :1, :1].int()).abs().amax(1) > _CONTRAST
    covered = differs.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(3).float().mean(-1)
    told = [set[str]().union(*(question.told for question in own)) for own in questions]
    shapes, colours = (
        torch.tensor(
            [next((i for i, word in enumerate(words) if word in one), UNKNOWN) for one in told]
        )
        for words in (SHAPES, COLOURS)
    )
    normal = (pixels.float() / 255 - PIXEL_MEAN) / PIXEL_STD
    return Pictures(normal, shapes, colours, covered.flatten(1) > _COVERED)


class PatchHead(nn.Module):
    """Names what each patch shows from the vision tower's output; for training alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.names = nn.Linear(width, len(SHAPES) + 1 + len(COLOURS))

    def loss(self, patches: Tensor, pictures: Pictures) -> Tensor:
        """Σ of two cross-entropies: which shape or none, and which colour.

        Args:
            patches: (n, 16, width), the vision tower's output.
        """
        shape, colour = self.names(patches).flatten(0, 1).split([len(SHAPES) + 1, len(COLOURS)], -1)
        shapes = torch.where(pictures.shown, pictures.shapes[:, None], EMPTY)
        colours = torch.where(pictures.shown, pictures.colours[:, None], UNKNOWN)
        pairs = ((shape, shapes), (colour, colours))
        each = [cross_entropy(a, b.flatten(), ignore_index=UNKNOWN) for a, b in pairs]
        return torch.stack(each).sum()
