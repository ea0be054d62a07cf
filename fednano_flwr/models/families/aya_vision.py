"""Aya Vision: a picture's features stand at another token than the one that prompts have."""

from dataclasses import dataclass
from typing import Any

from fednano_flwr.models.families.base import Connector, Family


@dataclass(frozen=True)
class AyaVision(Family):
    def feature_token(self, processor: Any) -> str:
        return processor.img_patch_token


FAMILY = AyaVision(
    "aya_vision",
    "AyaVisionForConditionalGeneration",
    picture_keys=("img_size", "patch_size"),
    connector=Connector("multi_modal_projector.linear_2"),
)
