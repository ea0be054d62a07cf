"""Gemma 4: the small ones look tokens up in each layer; the large ones let a picture see itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from fednano_flwr.models.families.base import Connector, Family


@dataclass(frozen=True)
class Gemma4(Family):
    def refusal(self, config: PretrainedConfig) -> str:
        if config.audio_config is None or not config.get_text_config().use_bidirectional_attention:
            return ""
        return "a picture's tokens see each other, and there are sounds, whose tokens would, too"

    def layer_vocabulary(self, config: PretrainedConfig) -> int:
        text = config.get_text_config()
        return text.vocab_size_per_layer_input if text.hidden_size_per_layer_input else 0

    def text_ids(self, ids: Tensor, config: PretrainedConfig) -> Tensor:
        marks = [config.image_token_id, config.video_token_id, config.audio_token_id]
        is_mark = torch.isin(ids, torch.tensor(marks).to(ids))
        return ids.masked_fill(is_mark, config.get_text_config().pad_token_id)

    def longest_sound(self, processor: Any) -> float:
        return processor.audio_seq_length * processor.audio_ms_per_token / 1000

    def sound_features(self, model: Any, sounds: Mapping[str, Tensor]) -> Tensor:
        output = model.model.get_audio_features(**sounds)
        return output.pooler_output[output.attention_mask.bool()]

    def token_type_ids(self, pictures: Tensor, prompt: int) -> Tensor | None:
        return pictures.long()

    def logits(self, host: Any, **inputs: Any) -> Tensor:
        types, ids = inputs.pop("token_type_ids", None), inputs.pop("token_ids", None)
        if ids is not None:
            if types is not None:
                ids = ids.masked_fill(types.bool(), host.config.get_text_config().pad_token_id)
            inputs["per_layer_inputs"] = host.model.language_model.get_per_layer_inputs(ids)
        return super().logits(host, mm_token_type_ids=types, **inputs)


FAMILY = Gemma4(
    "gemma4",
    "Gemma4ForConditionalGeneration",
    token_types=True,
    picture_keys=("patch_size", "pooling_kernel_size"),
    connector=Connector("embed_vision.embedding_projection"),
    modalities=("image", "audio"),
    second_connector=Connector("embed_audio.embedding_projection"),
    videos=True,
)
