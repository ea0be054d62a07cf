"""GLM-4V (GLM-4.1V); positions on three axes."""

from fednano_flwr.models.families.base import Connector
from fednano_flwr.models.families.qwen2_vl import ThreeAxes

FAMILY = ThreeAxes(
    "glm4v",
    "Glm4vForConditionalGeneration",
    connector=Connector("visual.merger.down_proj"),
)
