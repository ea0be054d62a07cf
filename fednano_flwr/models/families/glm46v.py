"""GLM-4.6V (GLM-4.6V-Flash); positions on three axes."""

from fednano_flwr.models.families.base import Connector
from fednano_flwr.models.families.qwen2_vl import ThreeAxes

FAMILY = ThreeAxes(
    "glm46v",
    "Glm46VForConditionalGeneration",
    other_processors=("Glm4vProcessor",),
    thinks=True,
    connector=Connector("visual.merger.down_proj"),
)
