"""A NanoAdapter put into the weights before it: the mathematics, and where each family's are.

An adapter is linear, h' = h + s · B(A h) = M h with M = I + s B A. So wherever h is what a linear
map gives, h = W x + b, the same map with W' = M W and b' = M b gives h'; and where h is a row of a
table, so is h': E' = E Mᵀ. A factor that comes after the table (Gemma's √d) changes nothing, as M
and a number commute; neither does what moves or averages whole features. M itself is never formed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """What one NanoAdapter adds: h' = h + s · B(A h).

    Attributes:
        down: A, (r, d).
        up: B, (d, r).
        scale: s.
    """

    down: Tensor
    up: Tensor
    scale: float

    @property
    def width(self) -> int:
        """d."""
        return self.down.shape[1]

    @property
    def changes_nothing(self) -> bool:
        """Whether B A = 0, as before training."""
        return not (self.scale and self.down.any() and self.up.any())


def fold_rows(rows: Tensor, adapter: LowRank) -> Tensor:
    """X + s (X Aᵀ) Bᵀ in float64: vectors (n, d), or one (d,), as the adapter would change them."""
    exact = rows.to(torch.float64)
    down, up = adapter.down.to(torch.float64), adapter.up.to(torch.float64)
    return exact + adapter.scale * (exact @ down.T) @ up.T


def fold_columns(weight: Tensor, adapter: LowRank) -> Tensor:
    """W + s B (A W) in float64, for the weight (d, k) of a linear layer whose output is adapted."""
    return fold_rows(weight.T, adapter).T.contiguous()


@dataclass(frozen=True)
class Connector:
    """Which tensors make a connector's output what it is, by their canonical names.

    Attributes:
        linear: the last linear layer; its weight (d, k) and, where there is one, its bias.
        rows: tensors (n, d) or (d,) that are features themselves, or give them from the right.
        cannot: why an adapter cannot be put into this family's connector; "" where it can.
    """

    linear: str = ""
    rows: tuple[str, ...] = ()
    cannot: str = ""

    def parts(self) -> tuple[str, ...]:
        """Tensors that have to be there; a bias need not be."""
        return (*([f"{self.linear}.weight"] if self.linear else []), *self.rows)


_LINEAR_2 = "multi_modal_projector.linear_2"
CONNECTORS: Mapping[str, Connector] = {
    "llava": Connector(_LINEAR_2),
    # The learned vector that ends a row of patches is laid among the features before the adapter.
    "llava_next": Connector(_LINEAR_2, ("image_newline",)),
    "llava_onevision": Connector(_LINEAR_2, ("image_newline",)),
    "internvl": Connector(_LINEAR_2),
    "smolvlm": Connector("connector.modality_projection.proj"),
    "qwen2_5_vl": Connector("visual.merger.mlp.2"),
    "paligemma": Connector("multi_modal_projector.linear"),
    # A bare matrix (k, d) that the pooled, normed features are multiplied with from the left.
    "gemma3": Connector(rows=("multi_modal_projector.mm_input_projection_weight",)),
    "instructblip": Connector("language_projection"),
    "blip-2": Connector("language_projection"),
}
"""For each family of `models/families.py`."""
