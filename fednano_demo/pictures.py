"""Draw a question's picture: 48×48 pixels, nine cells that each hold one icon or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fednano_demo.words import HOURS

CELL = 16  # pixels; also the vision tower's patch size
GRID = 3  # cells a side
SIDE = CELL * GRID  # pixels
_ZOOM = 8  # masks are drawn this much larger and averaged down, which smooths their edges
_SIZES = (0.66, 0.78, 0.90)  # an icon's share of its cell

Rgb = tuple[int, int, int]
PALETTE: tuple[Rgb, ...] = (
    (215, 40, 40),
    (40, 170, 60),
    (45, 70, 215),
    (225, 200, 40),
    (40, 195, 205),
    (200, 50, 190),
)


class Icon(NamedTuple):
    """One coloured shape, as indices into `SHAPES` and `COLOURS`."""

    shape: int
    colour: int


class Clock(NamedTuple):
    """A clock face, as an index into `HOURS`."""

    hour: int


class Bar(NamedTuple):
    """A piece of a bar: how many half cells it fills (1 or 2) and its colour's index."""

    halves: int
    colour: int


Cell = Icon | Clock | Bar | None
Cells = tuple[Cell, ...]


@dataclass(frozen=True)
class Style:
    """How pictures look; the default is what the model was pretrained on.

    Attributes:
        palette: one colour for each of `COLOURS`.
        paper: background colour.
        ink: colour of clocks.
        noise: standard deviation of each pixel's noise, in steps of 255.
        wash: how far all colours are moved to white, from 0 to 1.
    """

    palette: tuple[Rgb, ...] = PALETTE
    paper: Rgb = (245, 245, 240)
    ink: Rgb = (60, 60, 60)
    noise: float = 4.0
    wash: float = 0.0


def _mask(paint: Callable[[ImageDraw.ImageDraw, int], None]) -> np.ndarray:
    """(CELL, CELL) coverage from 0 to 1 of what `paint` draws on a canvas of the given side."""
    side = CELL * _ZOOM
    canvas = Image.new("L", (side, side), 0)
    paint(ImageDraw.Draw(canvas), side)
    return np.asarray(canvas.resize((CELL, CELL), Image.Resampling.BOX), np.float32) / 255


def _paint_shape(draw: ImageDraw.ImageDraw, side: int, shape: int, size: float) -> None:
    """Fill the shape of index `shape`, `size` of the canvas wide, around the canvas's centre."""
    c, r = side / 2, side / 2 * size
    if shape == 0:
        draw.ellipse([c - r, c - r, c + r, c + r], fill=255)
    elif shape == 1:
        draw.rectangle([c - r * 0.85, c - r * 0.85, c + r * 0.85, c + r * 0.85], fill=255)
    elif shape == 2:
        draw.polygon([(c, c - r), (c + r, c + r * 0.85), (c - r, c + r * 0.85)], fill=255)
    elif shape == 3:
        points = []
        for corner in range(10):
            angle = -math.pi / 2 + corner * math.pi / 5
            reach = r if corner % 2 == 0 else r * 0.42
            points.append((c + reach * math.cos(angle), c + reach * math.sin(angle)))
        draw.polygon(points, fill=255)
    elif shape == 4:
        draw.ellipse([c - r, c - r * 0.9, c, c + r * 0.15], fill=255)
        draw.ellipse([c, c - r * 0.9, c + r, c + r * 0.15], fill=255)
        draw.polygon([(c - r * 0.97, c - r * 0.2), (c + r * 0.97, c - r * 0.2), (c, c + r)], 255)
    else:
        arm = r * 0.32
        draw.rectangle([c - arm, c - r, c + arm, c + r], fill=255)
        draw.rectangle([c - r, c - arm, c + r, c + arm], fill=255)


def _paint_clock(draw: ImageDraw.ImageDraw, side: int, hour: str) -> None:
    """A ring with one hand that points to `hour`."""
    c, angle = side / 2, math.tau * int(hour) / 12 - math.pi / 2
    draw.ellipse([4, 4, side - 4, side - 4], outline=255, width=10)
    tip = (c + side * 0.4 * math.cos(angle), c + side * 0.4 * math.sin(angle))
    draw.line([(c, c), tip], fill=255, width=18)


@lru_cache
def _shape_mask(shape: int, size: float) -> np.ndarray:
    return _mask(lambda draw, side: _paint_shape(draw, side, shape, size))


@lru_cache
def _clock_mask(hour: int) -> np.ndarray:
    return _mask(lambda draw, side: _paint_clock(draw, side, HOURS[hour]))


@lru_cache
def _bar_mask(halves: int) -> np.ndarray:
    mask = np.zeros((CELL, CELL), np.float32)
    mask[4:12, : CELL * halves // 2] = 1
    return mask


def _layer(
    cell: Icon | Clock | Bar, rng: np.random.Generator, style: Style
) -> tuple[np.ndarray, np.ndarray]:
    """A cell's (CELL, CELL) coverage and its (3,) colour."""
    if isinstance(cell, Clock):
        return _clock_mask(cell.hour), np.array(style.ink, np.float32)
    colour = np.array(style.palette[cell.colour], np.float32)
    if isinstance(cell, Bar):
        return _bar_mask(cell.halves), colour
    mask = _shape_mask(cell.shape, _SIZES[rng.integers(len(_SIZES))])
    down, right = rng.integers(-1, 1, 2)
    return np.roll(mask, (int(down), int(right)), (0, 1)), colour


def render(cells: Sequence[Cell], rng: np.random.Generator, style: Style) -> np.ndarray:
    """Draw the nine cells, row by row, as a (48, 48, 3) uint8 picture."""
    picture = np.empty((SIDE, SIDE, 3), np.float32)
    picture[:] = style.paper
    for index, cell in enumerate(cells):
        if cell is None:
            continue
        mask, colour = _layer(cell, rng, style)
        colour = colour + rng.normal(0, 10, 3).astype(np.float32)
        top, left = index // GRID * CELL, index % GRID * CELL
        patch = picture[top : top + CELL, left : left + CELL]
        patch += mask[..., None] * (colour - patch)
    picture += style.wash * (255 - picture)
    picture += rng.normal(0, style.noise, picture.shape).astype(np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)
