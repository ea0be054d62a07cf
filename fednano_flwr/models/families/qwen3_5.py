"""Qwen3.5: most layers of its language model keep a state in place of keys and values."""

from fednano_flwr.models.families.base import Connector
from fednano_flwr.models.families.qwen2_vl import ThreeAxes

FAMILY = ThreeAxes(
    "qwen3_5",
    "Qwen3_5ForConditionalGeneration",
    other_processors=("Qwen3VLProcessor",),
    thinks=True,
    connector=Connector("visual.merger.linear_fc2"),
)
