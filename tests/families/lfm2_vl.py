"""LFM2-VL: layers that are short convolutions, pictures in tiles beside one of another size."""

from __future__ import annotations

from itertools import product
from math import sqrt
from typing import Any

import numpy as np
import transformers as tf
from transformers.image_utils import SizeDict
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorKwargs,
    Siglip2ImageProcessorPil,
)

from tests.families.base import TinyFamily, llama, template, tokenizer

LAYERS = ["conv", "full_attention", "conv"]
PATCH, UNIT, MOST = 4, 8, 16
"""Pixels along a patch, and along a token; tokens of a piece of a picture, at most."""


class TilesKwargs(Siglip2ImageProcessorKwargs, total=False):
    return_row_col_info: bool


class Lfm2VlImageProcessor(Siglip2ImageProcessorPil):
    """In place of the family's own, which needs torchvision: its outputs, by rules of its own.

    A picture of more than `MOST` tokens becomes tiles and, smaller, the whole of it.
    """

    valid_kwargs = TilesKwargs
    patch_size = encoder_patch_size = PATCH
    downsample_factor = UNIT // PATCH
    max_num_patches = MOST * downsample_factor**2
    tile_size = UNIT * int(sqrt(MOST))
    use_thumbnail = True

    def _preprocess(self, images: list[np.ndarray], **settings: Any) -> Any:
        settings |= {"do_resize": False}
        pieces, rows, cols, sizes = [], [], [], []
        for image in images:
            size = fitted(*image.shape[1:])
            across = tiles(*image.shape[1:])
            whole = self.resize(image, SizeDict(height=size[0], width=size[1]))
            if across != (1, 1):
                pieces += self._cut(image, *across)
            pieces.append(whole)
            rows.append(across[0])
            cols.append(across[1])
            sizes.append(list(size))
        found = super()._preprocess(pieces, **settings)
        found.update({"image_rows": rows, "image_cols": cols, "image_sizes": sizes})
        return found

    def _cut(self, image: np.ndarray, rows: int, cols: int) -> list[np.ndarray]:
        side = self.tile_size
        large = self.resize(image, SizeDict(height=rows * side, width=cols * side))
        return [
            large[:, r * side : (r + 1) * side, c * side : (c + 1) * side]
            for r, c in product(range(rows), range(cols))
        ]


def units(height: int, width: int) -> tuple[int, int]:
    return max(1, round(height / UNIT)), max(1, round(width / UNIT))


def fitted(height: int, width: int) -> tuple[int, int]:
    """A size in pixels of at most `MOST` tokens."""
    high, wide = units(height, width)
    if (factor := sqrt(MOST / (high * wide))) < 1:
        high, wide = max(1, int(high * factor)), max(1, int(wide * factor))
    return min(high, MOST) * UNIT, min(wide, MOST) * UNIT


def tiles(height: int, width: int) -> tuple[int, int]:
    """How many tiles (rows, columns) a picture becomes."""
    high, wide = units(height, width)
    if high * wide <= MOST:
        return 1, 1
    return (2, 2) if high == wide else (2, 1) if high > wide else (1, 2)


IMAGE_PROCESSOR_MAPPING.register(tf.Lfm2VlConfig, {"pil": Lfm2VlImageProcessor}, exist_ok=True)


def make() -> tuple[Any, Any]:
    words = tokenizer(
        {
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
        tuple(f"<|img_row_{r}_col_{c}|>" for r, c in product((1, 2), (1, 2))),
    )
    config = tf.Lfm2VlConfig(
        vision_config=tf.Siglip2VisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            patch_size=PATCH,
            num_patches=16,
            vision_use_head=False,
        ),
        text_config=llama(tf.Lfm2Config, num_hidden_layers=len(LAYERS), layer_types=LAYERS),
        image_token_id=words.image_token_id,
        projector_hidden_size=40,
        downsample_factor=UNIT // PATCH,
    )
    return config, tf.Lfm2VlProcessor(
        Lfm2VlImageProcessor(), words, chat_template=template("<image>")
    )


TINY = TinyFamily("lfm2_vl", make)
