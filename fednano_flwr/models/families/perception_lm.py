"""PerceptionLM: pictures in tiles. Its encoder is of the package timm."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fednano_flwr.models.families.base import Connector, Family


@dataclass(frozen=True)
class PerceptionLM(Family):
    def tensors(self, processor: Any, prompt: str, media: list[Any]) -> dict[str, Tensor]:
        """`pixel_values` are (tiles, 1, 3, H, W): two pictures may have unlike numbers of tiles."""
        found: dict[str, Any] = super().tensors(processor, prompt, media)
        if media:
            found["pixel_values"] = torch.cat(found["pixel_values"])[:, None]
        return {name: torch.as_tensor(value) for name, value in found.items()}


FAMILY = PerceptionLM(
    "perception_lm",
    "PerceptionLMForConditionalGeneration",
    picture_keys=("patch_size", "pooling_ratio"),
    connector=Connector("multi_modal_projector.linear_2"),
    videos=True,
    stacks=False,
)
