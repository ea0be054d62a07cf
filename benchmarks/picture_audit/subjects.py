"""Pictures of the demo and of easy-VQA, and what the client's half makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fednano_demo.processor import PIXEL_MEAN, PIXEL_STD
from fednano_demo.questions import DOWNSTREAM, draw_questions
from fednano_demo.skills import IMAGE_SKILLS
from fednano_flwr.base import int8
from fednano_flwr.models.edge_half import EdgeHalf

AT_ONCE = 100
"""Pictures that are encoded in one call."""


@dataclass(frozen=True)
class Split:
    """Pictures with their features, as many tokens as patches.

    Attributes:
        pictures: (N, 3, S, S) float32 in [0, 1].
        outputs: (N, g, g, d) float32, the connector's outputs, in the order of the patches.
        read: (N, g, g, k) float32, what the connector reads.
    """

    pictures: Tensor
    outputs: Tensor
    read: Tensor


def encode(half: EdgeHalf, pictures: Tensor) -> Split:
    """The connector's outputs and what it reads, of pictures (N, 3, S, S) in [0, 1]."""
    parts: tuple[list[Tensor], list[Tensor]] = [], []
    for pixels in ((pictures - PIXEL_MEAN) / PIXEL_STD).split(AT_ONCE):  # the same for both models
        outputs, read = half.features_and_read("image", {"pixel_values": pixels})
        assert read is not None, "both models have a LLaVA's connector"
        parts[0].append(outputs)
        parts[1].append(read.flatten(0, 1))
    side = round((sum(map(len, parts[0])) / len(pictures)) ** 0.5)
    planes = (torch.cat(part).view(-1, side, side, part[0].shape[-1]) for part in parts)
    return Split(pictures, *planes)


def averaged(tokens: Tensor, side: int) -> Tensor:
    """Means (N, G, G, w) of (N, g, g, w) over side² tokens; fewer where g does not divide."""
    planes = tokens.permute(0, 3, 1, 2)
    return F.avg_pool2d(planes, side, ceil_mode=True, count_include_pad=False).permute(0, 2, 3, 1)


def through_int8(tokens: Tensor) -> Tensor:
    """What arrives of (N, g, g, w) with `exchange.dtype=int8`."""
    return int8.dequantize(int8.quantize(tokens.flatten(0, 2))).view_as(tokens)


KINDS: Mapping[str, tuple[int, Callable[[Split], Tensor]]] = {
    "connector output": (1, lambda split: split.outputs),
    "what the connector reads": (1, lambda split: split.read),
    "output in int8": (1, lambda split: through_int8(split.outputs)),
    "output, mean of 4 tokens": (2, lambda split: averaged(split.outputs, 2)),
    "output, mean of 16 tokens": (4, lambda split: averaged(split.outputs, 4)),
}
"""What a host could keep: a block's side in tokens, and its vectors (N, G, G, w), one a block."""


def demo(sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Fresh pictures of the demo's clients, each split from a stream of its own."""
    streams = np.random.default_rng(seed).spawn(len(sizes))
    found = {}
    for (split, size), stream in zip(sizes.items(), streams, strict=True):
        questions = draw_questions(IMAGE_SKILLS, size, stream, DOWNSTREAM)
        found[split] = tensors([one.picture for one in questions if one.picture is not None])
    return found


def easy_vqa(sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Pictures of easy-VQA: its own test pictures for the test, its training ones for the rest."""
    from fednano_demo.real.easy import read_pictures

    found = {}
    for source, splits in (("train", ("train", "val")), ("test", ("test",))):
        files = list(read_pictures(source).values())
        order = iter(np.random.default_rng(seed).permutation(len(files)))
        for split in splits:
            picks = [files[next(order)] for _ in range(sizes[split])]
            found[split] = tensors([np.asarray(Image.open(f).convert("RGB")) for f in picks])
    return found


def tensors(pictures: list[np.ndarray]) -> Tensor:
    """(S, S, 3) uint8 each, as (N, 3, S, S) in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
