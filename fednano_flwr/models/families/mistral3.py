"""Mistral 3: Pixtral's encoder, and a connector that merges neighbouring patches."""

from fednano_flwr.models.families.base import Connector, Family

FAMILY = Family(
    "mistral3",
    "Mistral3ForConditionalGeneration",
    other_processors=("PixtralProcessor",),
    picture_keys=("patch_size", "spatial_merge_size"),
    connector=Connector("multi_modal_projector.linear_2"),
)
