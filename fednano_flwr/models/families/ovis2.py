"""Ovis2: features and the marks around a picture's patches are rows of one visual table."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from fednano_flwr.models.families.base import Connector, Family


@dataclass(frozen=True)
class Ovis2(Family):
    """The client embeds the marks (start, grid, column, row, end) by the visual table as well."""

    def refusal(self, config: PretrainedConfig) -> str:
        if config.vision_config.tokenize_function != "gumbel_argmax":
            return ""
        return "vision_config.tokenize_function is gumbel_argmax, which draws features at random"

    def feature_token(self, processor: Any) -> str:
        return "<IMG_ATOM>"

    def feature_ids(self, config: PretrainedConfig) -> tuple[int, ...]:
        return (config.image_token_id, *config.visual_indicator_token_ids)

    def tensors(self, processor: Any, prompt: str, pictures: list[Any]) -> dict[str, Tensor]:
        found = super().tensors(processor, prompt, pictures)
        return found | ({"prompt_ids": found["input_ids"]} if pictures else {})

    def features(self, model: Any, vision: Mapping[str, Tensor]) -> Tensor:
        patches = {key: value for key, value in vision.items() if key != "prompt_ids"}
        output, ids = model.get_image_features(**patches), vision["prompt_ids"][0]
        marks = list(model.config.visual_indicator_token_ids)
        own = ids[torch.isin(ids, torch.tensor(self.feature_ids(model.config)).to(ids))]
        is_mark = own != model.config.image_token_id
        before = (~is_mark).cumsum(0)[is_mark]  # how many patches' features each mark comes after
        rows = output.visual_indicator_features[[marks.index(m) for m in own[is_mark].tolist()]]
        between = output.pooler_output.flatten(0, 1).tensor_split(before.tolist())
        parts = zip_longest(between, rows.split(1))
        return torch.cat([part for pair in parts for part in pair if part is not None])


FAMILY = Ovis2(
    "ovis2",
    "Ovis2ForConditionalGeneration",
    picture_keys=("image_seq_length",),
    vision_keys=("prompt_ids",),
    outputs=("pooler_output", "visual_indicator_features"),
    connector=Connector(rows=("visual_embeddings_table.weight",)),
)
