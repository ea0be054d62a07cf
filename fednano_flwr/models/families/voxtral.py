"""Voxtral: sounds in pieces of 30 s; its tokenizer is Mistral's own file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, cat
from transformers import ProcessorMixin, VoxtralProcessor, WhisperFeatureExtractor
from transformers.integrations.mistral import convert_tekken_tokenizer

from fednano_flwr.models.families.base import WHOLE, Connector, Family

TOKENIZER = "tekken.json"
FRAMES_A_TOKEN = 8
"""Of the spectrogram: the encoder halves them, the connector joins four."""
TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}[INST]
  {%- elif message['role'] == 'system' -%}[SYSTEM_PROMPT]{%- endif -%}
  {%- for part in message['content'] -%}
    {%- if part['type'] == 'audio' -%}[BEGIN_AUDIO][AUDIO]
    {%- else -%}{{- part['text'] -}}{%- endif -%}
  {%- endfor -%}
  {%- if message['role'] == 'user' -%}[/INST]
  {%- elif message['role'] == 'system' -%}[/SYSTEM_PROMPT]
  {%- else -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}"""
"""What mistral-common writes for it, as a template: the checkpoints have none."""


@dataclass(frozen=True)
class Voxtral(Family):
    def own_processor(self, folder: Path) -> Any:
        """With a tokenizer of transformers' kind, and its chat template."""
        tokenizer = convert_tekken_tokenizer(str(folder / TOKENIZER), TEMPLATE)
        own = {"apply_chat_template": ProcessorMixin.apply_chat_template}
        kind = type(VoxtralProcessor.__name__, (VoxtralProcessor,), own)
        extractor = WhisperFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
        processor = kind(extractor, tokenizer)
        processor.chat_template = TEMPLATE
        return processor

    def tensors(self, processor: Any, prompt: str, media: list[Any]) -> dict[str, Tensor]:
        """As its processor's `apply_chat_template` makes them of turns."""
        extractor, mark = processor.feature_extractor, processor.audio_token
        frames = extractor.nb_max_frames
        made = [
            processor._retrieve_input_features(
                [sound],
                max_source_positions=frames,
                sampling_rate=extractor.sampling_rate,
                padding=True,
                truncation=False,
                pad_to_multiple_of=extractor.n_samples,
                return_tensors="pt",
            )
            for sound in media
        ]
        first, *rest = prompt.split(mark)
        places = [mark * (len(one) * frames // FRAMES_A_TOKEN) for one in made]
        text = first + "".join(a + b for a, b in zip(places, rest, strict=True))
        found = processor.tokenizer([text], return_tensors="pt", add_special_tokens=False, **WHOLE)
        return {"input_ids": found["input_ids"], **({"input_features": cat(made)} if made else {})}


FAMILY = Voxtral(
    "voxtral",
    "VoxtralForConditionalGeneration",
    modalities=("audio",),
    spaced=False,
    connector=Connector("multi_modal_projector.linear_2"),
)
