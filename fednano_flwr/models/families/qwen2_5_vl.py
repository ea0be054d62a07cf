"""Qwen2.5-VL: a token has a position in time, height and width."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fednano_flwr.models.families.base import Connector, Family


@dataclass(frozen=True)
class Qwen25VL(Family):
    def position_ids(
        self, model: Any, ids: Tensor, pictures: Tensor, vision: Mapping[str, Tensor]
    ) -> Tensor | None:
        positions, _ = model.model.get_rope_index(
            ids[None],
            mm_token_type_ids=pictures.int()[None],
            image_grid_thw=vision.get("image_grid_thw"),
        )
        return positions[:, 0]


FAMILY = Qwen25VL(
    "qwen2_5_vl",
    "Qwen2_5_VLForConditionalGeneration",
    position_axes=3,
    other_processors=("Qwen2VLProcessor",),
    picture_keys=("patch_size",),
    connector=Connector("visual.merger.mlp.2"),
    videos=True,
)
