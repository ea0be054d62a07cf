"""What is done to embeddings before they leave a client: their length is bounded, noise is added.

    x' = x · C / max(C, ‖x‖) + N(0, (σ C)² I)     of each row x, one token or one image feature

C is `privacy.embedding-clip`, σ is `privacy.embedding-noise`: the Gaussian mechanism's noise
multiplier, applied to each row by itself. The host knows C and σ.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch
from torch import Tensor

from fednano_flwr.config import Privacy

Normal = Callable[[int], Tensor]
"""So many independent standard normal numbers, float32."""

AT_ONCE = 2**20


class Noise:
    """Clips rows and adds noise; the gradient passes through the clip as its derivative says.

    Args:
        clip: C, the longest that a row may be; 0 for any length.
        multiplier: σ; the standard deviation of each coordinate's noise is σ C.
        normal: where the noise comes from. The default is the operating system's generator for
            keys: a host that knows some tokens, as it knows a prompt's template, sees their noise,
            and from a few thousand numbers of an ordinary generator it could compute all others.
    """

    def __init__(self, clip: float, multiplier: float, normal: Normal | None = None) -> None:
        self.clip = clip
        self.multiplier = multiplier
        self._normal = normal or system_normal

    def __call__(self, rows: Tensor) -> Tensor:
        """What is sent for `rows` (N, d); fresh noise at each call, the dtype as it was."""
        result = rows.float()
        if self.clip:
            result = clipped(result, self.clip)
        if self.multiplier:
            drawn = self._normal(rows.numel()).to(result.device).reshape(rows.shape)
            result = result + self.multiplier * self.clip * drawn
        return result.to(rows.dtype)


def noise_of(config: Privacy) -> Noise | None:
    """The noise that a run config asks for; None where it asks for nothing to be done."""
    if not config.embedding_clip:
        return None
    return Noise(config.embedding_clip, config.embedding_noise)


def clipped(rows: Tensor, clip: float) -> Tensor:
    """Rows (N, d) of length (L2) at most `clip`; those that are not longer stay as they are."""
    return rows * (clip / rows.norm(dim=1, keepdim=True).clamp(min=clip))


def system_normal(count: int) -> Tensor:
    """Independent standard normal numbers from the system's randomness, float32 (count,).

    Box and Muller's pairs √(−2 ln u) (cos 2πv, sin 2πv), u and v from 32 bits each.
    """
    parts = [_pairs(min(AT_ONCE, count - start)) for start in range(0, count, AT_ONCE)]
    return torch.cat(parts) if parts else torch.empty(0)


def _pairs(count: int) -> Tensor:
    half = (count + 1) // 2
    bits = torch.frombuffer(bytearray(os.urandom(8 * half)), dtype=torch.int32)
    uniform = (bits.double() + 2**31 + 0.5) / 2**32  # in (0, 1)
    u, v = uniform[:half], uniform[half:]
    radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count].float()
