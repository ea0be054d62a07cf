"""Qwen2-VL, and what it has in common with others whose tokens have positions on three axes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fednano_flwr.models.families.base import Connector, Family


@dataclass(frozen=True)
class ThreeAxes(Family):
    """A token has a position in time, height and width; a picture's tokens have those of a grid."""

    position_axes: int = 3
    picture_keys: tuple[str, ...] = ("patch_size",)
    videos: bool = True

    def position_ids(
        self, model: Any, ids: Tensor, pictures: Tensor, vision: Mapping[str, Tensor]
    ) -> Tensor | None:
        positions, _ = model.model.get_rope_index(
            ids[None],
            mm_token_type_ids=pictures.int()[None],
            image_grid_thw=vision.get("image_grid_thw"),
        )
        return positions[:, 0]


FAMILY = ThreeAxes(
    "qwen2_vl",
    "Qwen2VLForConditionalGeneration",
    connector=Connector("visual.merger.mlp.2"),
)
