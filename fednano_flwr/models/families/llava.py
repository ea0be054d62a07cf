"""LLaVA-1.5 and Pixtral."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from fednano_flwr.models.families.base import Connector, Family


@dataclass(frozen=True)
class Llava(Family):
    def picture_tokens(self, config: PretrainedConfig) -> int | None:
        vision = config.vision_config
        if vision.model_type == "pixtral":
            return None
        of_class = vision.model_type == "clip_vision_model"
        left_out = config.vision_feature_select_strategy == "default"
        return (vision.image_size // vision.patch_size) ** 2 + of_class - left_out


FAMILY = Llava(
    "llava",
    "LlavaForConditionalGeneration",
    other_processors=("PixtralProcessor",),
    picture_keys=("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"),
    connector=Connector("multi_modal_projector.linear_2"),
)
