"""FastVLM, in checkpoints in transformers' format. Its encoder is of the package timm."""

from fednano_flwr.models.families.base import Connector, Family

FAMILY = Family(
    "fast_vlm",
    "FastVlmForConditionalGeneration",
    other_processors=("LlavaProcessor",),
    picture_keys=("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"),
    connector=Connector("multi_modal_projector.linear_2"),
)
