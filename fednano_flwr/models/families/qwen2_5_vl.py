"""Qwen2.5-VL."""

from fednano_flwr.models.families.base import Connector
from fednano_flwr.models.families.qwen2_vl import ThreeAxes

FAMILY = ThreeAxes(
    "qwen2_5_vl",
    "Qwen2_5_VLForConditionalGeneration",
    other_processors=("Qwen2VLProcessor",),
    connector=Connector("visual.merger.mlp.2"),
)
