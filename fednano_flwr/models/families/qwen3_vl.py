"""Qwen3-VL: features of several layers of its encoder are added after layers of the LLM."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from fednano_flwr.models.families.base import Connector
from fednano_flwr.models.families.qwen2_vl import ThreeAxes


@dataclass(frozen=True)
class Qwen3VL(ThreeAxes):
    def deep_layers(self, config: PretrainedConfig) -> int:
        return len(config.vision_config.deepstack_visual_indexes)

    def features(self, model: Any, vision: Mapping[str, Tensor]) -> list[Tensor]:
        output = model.get_image_features(**vision)
        of_pictures = zip(output.pooler_output, *output.deepstack_features, strict=True)
        return [torch.cat(own, dim=1) for own in of_pictures]

    def token_type_ids(self, pictures: Tensor, prompt: int) -> Tensor | None:
        return pictures.long()

    def logits(self, host: Any, **inputs: Any) -> Tensor:
        types, deep = inputs.pop("token_type_ids", None), inputs.pop("deep", None)
        if deep is not None:
            layers = deep.split(inputs["inputs_embeds"].shape[-1], dim=1)
            inputs |= {"visual_pos_masks": types.bool(), "deepstack_visual_embeds": layers}
        # Not the whole model's forward: it takes deep features from its own encoder alone.
        hidden = host.model.language_model(**inputs).last_hidden_state
        return host.lm_head(hidden).to(inputs["inputs_embeds"].device)


FAMILY = Qwen3VL(
    "qwen3_vl",
    "Qwen3VLForConditionalGeneration",
    token_types=True,
    causal=True,
    connector=Connector("visual.merger.linear_fc2"),
)
