"""BLIP-2, and what InstructBLIP has in common with it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from fednano_flwr.models.families.base import WHOLE, Connector, Family, image_text

PROJECTION = Connector("language_projection")


@dataclass(frozen=True)
class QFormer(Family):
    """BLIP-2 and InstructBLIP: a picture is a fixed number of queries; there is no template.

    The question's own picture comes before the text and its first token, as in their processors,
    an option's picture at its place in the text. InstructBLIP's Q-Former reads the text as well
    (its first 512 tokens), here on the client.
    """

    language: str = "language_model"
    host: str = "language_model"
    picture_keys: tuple[str, ...] = ("num_query_tokens",)
    prompt: str = "{}\nAnswer:"
    processor_text: str = "{}\nAnswer:"
    connector: Connector = PROJECTION

    def picture_tokens(self, config: PretrainedConfig) -> int | None:
        return config.num_query_tokens

    def refusal(self, config: PretrainedConfig) -> str:
        if config.use_decoder_only_language_model:
            return ""
        return (
            f"its language model ({config.text_config.model_type}) is an encoder-decoder; take a "
            "version with a decoder-only one, such as Vicuna or OPT"
        )

    def check_processor(self, processor: Any) -> str:
        if getattr(processor, "num_query_tokens", None):
            return ""
        return "processor_config.json has no num_query_tokens, the tokens that a picture takes"

    def tensors(self, processor: Any, prompt: str, pictures: list[Any]) -> dict[str, Tensor]:
        tokenizer, queries = processor.tokenizer, processor.num_query_tokens
        image = image_text(processor)
        text = prompt.removeprefix(image)
        shown = text.replace(image, image * queries)
        ids = tokenizer([shown], return_tensors="pt", **WHOLE)["input_ids"]
        if text != prompt:
            first = torch.full((1, queries), tokenizer.convert_tokens_to_ids(image))
            ids = torch.cat([first, ids], dim=1)
        if not pictures:
            return {"input_ids": ids}
        vision = dict(processor.image_processor(pictures, return_tensors="pt"))
        if read := self.encoder_ids(processor, prompt):
            rows = torch.tensor([read] * len(pictures))
            vision |= {"qformer_input_ids": rows, "qformer_attention_mask": torch.ones_like(rows)}
        return {"input_ids": ids, **vision}

    def encoder_ids(self, processor: Any, prompt: str) -> list[int]:
        if not hasattr(processor, "qformer_tokenizer"):
            return []
        text = prompt.replace(image_text(processor), "")
        tokenizer = processor.qformer_tokenizer
        return tokenizer(text, truncation=True, max_length=512, padding=False)["input_ids"]


FAMILY = QFormer("blip-2", "Blip2ForConditionalGeneration")
