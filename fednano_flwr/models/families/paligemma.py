"""PaliGemma and PaliGemma 2: all tokens of a prompt see each other; there is no template."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from fednano_flwr.models.families.base import WHOLE, Connector, Family


@dataclass(frozen=True)
class PaliGemma(Family):
    def picture_tokens(self, config: PretrainedConfig) -> int | None:
        return (config.vision_config.image_size // config.vision_config.patch_size) ** 2

    def check_processor(self, processor: Any) -> str:
        if processor.tokenizer.bos_token:
            return ""
        return "tokenizer_config.json has no bos_token, with which its prompts begin"

    def tensors(self, processor: Any, prompt: str, pictures: list[Any]) -> dict[str, Tensor]:
        if pictures:  # the processor adds the line's end itself
            more = {"images": [pictures], "return_tensors": "pt", "text_kwargs": dict(WHOLE)}
            return dict(processor(text=[prompt.removesuffix("\n")], **more))
        tokenizer = processor.tokenizer
        text, options = tokenizer.bos_token + prompt, {"return_tensors": "pt", **WHOLE}
        return dict(tokenizer([text], add_special_tokens=False, **options))

    def token_type_ids(self, pictures: Tensor, prompt: int) -> Tensor | None:
        return (torch.arange(len(pictures)) >= prompt).long()


FAMILY = PaliGemma(
    "paligemma",
    "PaliGemmaForConditionalGeneration",
    first_position=1,
    token_types=True,
    picture_keys=("image_seq_length",),
    prompt="{}\n",
    processor_text="<image>{}",
    connector=Connector("multi_modal_projector.linear"),
)
