"""Qwen3-VL with experts, such as Qwen3-VL-30B-A3B."""

from dataclasses import replace

from fednano_flwr.models.families import qwen3_vl

FAMILY = replace(
    qwen3_vl.FAMILY,
    model_type="qwen3_vl_moe",
    architecture="Qwen3VLMoeForConditionalGeneration",
    other_processors=("Qwen3VLProcessor",),
)
