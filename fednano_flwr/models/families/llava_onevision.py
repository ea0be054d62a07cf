"""LLaVA-OneVision: a picture is cut into patches of one size."""

from fednano_flwr.models.families.base import Connector, Family

FAMILY = Family(
    "llava_onevision",
    "LlavaOnevisionForConditionalGeneration",
    picture_keys=(
        "vision_feature_select_strategy",
        "num_image_tokens",
        "image_grid_pinpoints",
        "vision_aspect_ratio",
    ),
    # The learned vector that ends a row of patches is laid among the features before the adapter.
    connector=Connector("multi_modal_projector.linear_2", ("image_newline",)),
    videos=True,
)
