"""Qwen2-Audio: a sound of up to 30 s; its class has no method for a sound's features alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask

from fednano_flwr.models.families.base import Connector, Family


@dataclass(frozen=True)
class Qwen2Audio(Family):
    def longest_sound(self, processor: Any) -> float:
        return processor.feature_extractor.chunk_length

    def sound_features(self, model: Any, sounds: Mapping[str, Tensor]) -> list[Tensor]:
        """As its `forward` makes them: frames after a sound's end are not seen, and left out."""
        frames, mask = sounds["input_features"], sounds["feature_attention_mask"]
        tower = model.model.audio_tower
        seen, pooled = tower._get_feat_extract_output_lengths(mask.sum(1))
        count = (frames.shape[2] - 2) // 2 + 1
        attention = create_bidirectional_mask(
            config=tower.config,
            inputs_embeds=frames.new_zeros(len(frames), count, 1),
            attention_mask=(torch.arange(count, device=mask.device) < seen[:, None]).long(),
        )
        encoded = tower(frames, attention_mask=attention).last_hidden_state
        found = model.model.multi_modal_projector(encoded)
        return [sound[:length] for sound, length in zip(found, pooled.tolist(), strict=True)]

    def logits(self, host: Any, **inputs: Any) -> Tensor:
        """Its own forward asks the sound encoder for its device."""
        return host.lm_head(host.model.language_model(**inputs).last_hidden_state)


FAMILY = Qwen2Audio(
    "qwen2_audio",
    "Qwen2AudioForConditionalGeneration",
    modalities=("audio",),
    connector=Connector("multi_modal_projector.linear"),
)
