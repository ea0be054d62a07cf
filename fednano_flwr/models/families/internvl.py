"""InternVL, in checkpoints whose name ends in -hf."""

from fednano_flwr.models.families.base import Connector, Family

FAMILY = Family(
    "internvl",
    "InternVLForConditionalGeneration",
    picture_keys=("image_seq_length",),
    connector=Connector("multi_modal_projector.linear_2"),
    videos=True,
)
