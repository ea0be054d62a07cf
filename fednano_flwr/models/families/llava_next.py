"""LLaVA-NeXT: a picture is cut into patches of one size."""

from fednano_flwr.models.families.base import Connector, Family

FAMILY = Family(
    "llava_next",
    "LlavaNextForConditionalGeneration",
    picture_keys=(
        "patch_size",
        "vision_feature_select_strategy",
        "num_additional_image_tokens",
        "image_grid_pinpoints",
    ),
    # The learned vector that ends a row of patches is laid among the features before the adapter.
    connector=Connector("multi_modal_projector.linear_2", ("image_newline",)),
)
