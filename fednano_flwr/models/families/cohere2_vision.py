"""Command A Vision. Its image processor needs torchvision."""

from fednano_flwr.models.families.base import Connector, Family

FAMILY = Family(
    "cohere2_vision",
    "Cohere2VisionForConditionalGeneration",
    picture_keys=("patch_size",),
    connector=Connector("multi_modal_projector.linear_2"),
)
