"""How a family's prompt is written and turned into tensors, pictures included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from fednano_flwr.config import ConfigError
from fednano_flwr.data.prompts import IMAGE, conversation, user_content
from fednano_flwr.data.sample import Sample

QFORMER_TOKENS = 512
WHOLE = {"truncation": False, "padding": False}
"""Said to a tokenizer each time: one may have been saved with a length to cut or to pad to."""

ON_DAY = "{{% macro strftime_now(format) %}}{}{{% endmacro %}}"
"""Before a chat template: what it is given for the date."""


class Prompting(Protocol):
    """One way to write prompts."""

    def write(self, sample: Sample) -> str:
        """The prompt up to where the answer begins."""
        ...

    def tensors(self, prompt: str, pictures: list[Image]) -> dict[str, Tensor]:
        """`input_ids` (1, T) and what the vision encoder takes, of one prompt."""
        ...

    def encoder_ids(self, sample: Sample) -> list[int]:
        """Tokens that the vision encoder reads beside the pictures; in most families none."""
        ...


class ChatPrompting:
    """The model's own chat template, by its processor.

    Some templates (LLaVA-1.5's) write all pictures first. An option's picture has to stand beside
    its letter, so there the text itself holds the picture's token.

    Raises:
        ConfigError: there is no template, or there are several and none is the default.
    """

    def __init__(self, processor: Any) -> None:
        # Tools for tuning save the template with the tokenizer, in tokenizer_config.json.
        found = processor.chat_template or getattr(processor.tokenizer, "chat_template", None)
        template = found.get("default") if isinstance(found, dict) else found
        if not template:
            several = f" called default, of {', '.join(found)}" if found else ""
            raise ConfigError(
                f"{type(processor).__name__}: the model's folder has no chat template{several} "
                "(chat_template.jinja, or chat_template in tokenizer_config.json), so there is no "
                "telling how its prompts look"
            )
        self._template: str = template
        self._processor = processor

    def write(self, sample: Sample) -> str:
        turns = conversation(sample)
        if sample.choice_images and not self._keeps_order:
            turns = [{"role": "user", "content": self._in_text(user_content(sample))}]
        return self._filled(turns)

    def writes_date(self, sample: Sample) -> bool:
        """Whether a prompt is another one on another day."""
        days = {ON_DAY.format(day) + self._template for day in ("today", "tomorrow")}
        return len({self._filled(conversation(sample), template) for template in days}) > 1

    @cached_property
    def _keeps_order(self) -> bool:
        """Whether a picture between two texts stays between them."""
        parts = [{"type": "text", "text": "before"}, IMAGE, {"type": "text", "text": "after"}]
        written = self._filled([{"role": "user", "content": parts}])
        between = written.partition("before")[2].partition("after")[0]
        return self._processor.image_token in between

    def _in_text(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same with every picture but a leading one as its token in the text."""
        leading = [part for part in parts[:1] if part == IMAGE]
        rest = parts[len(leading) :]
        text = "".join(part.get("text", self._processor.image_token) for part in rest)
        return [*leading, {"type": "text", "text": text}]

    def _filled(self, turns: list[dict[str, Any]], template: str = "") -> str:
        return self._processor.apply_chat_template(
            turns, template or self._template, add_generation_prompt=True, tokenize=False
        )

    def tensors(self, prompt: str, pictures: list[Image]) -> dict[str, Tensor]:
        more: dict[str, Any] = {"images": [pictures]} if pictures else {}
        options: dict[str, Any] = dict(WHOLE)
        first = self._processor.tokenizer.bos_token
        if first and prompt.startswith(first):  # the template wrote it; once is enough
            options["add_special_tokens"] = False
        return dict(
            self._processor(text=[prompt], return_tensors="pt", text_kwargs=options, **more)
        )

    def encoder_ids(self, sample: Sample) -> list[int]:
        return []


class PrefixPrompting:
    """PaliGemma: pictures, text and a line's end; there is no template.

    Raises:
        ConfigError: the tokenizer does not say how a text begins.
    """

    def __init__(self, processor: Any) -> None:
        if not processor.tokenizer.bos_token:
            raise ConfigError(
                f"{type(processor).__name__}: tokenizer_config.json has no bos_token, with which "
                "its prompts begin"
            )
        self._processor = processor

    def write(self, sample: Sample) -> str:
        image = self._processor.image_token
        return "".join(part.get("text", image) for part in user_content(sample)) + "\n"

    def tensors(self, prompt: str, pictures: list[Image]) -> dict[str, Tensor]:
        if pictures:  # the processor adds the line's end itself
            more = {"images": [pictures], "return_tensors": "pt", "text_kwargs": dict(WHOLE)}
            return dict(self._processor(text=[prompt.removesuffix("\n")], **more))
        tokenizer = self._processor.tokenizer
        text, options = tokenizer.bos_token + prompt, {"return_tensors": "pt", **WHOLE}
        return dict(tokenizer([text], add_special_tokens=False, **options))

    def encoder_ids(self, sample: Sample) -> list[int]:
        return []


class QFormerPrompting:
    """BLIP-2 and InstructBLIP: a picture is a fixed number of queries; there is no template.

    The question's own picture comes before the text and its first token, as in their processors,
    an option's picture at its place in the text. InstructBLIP's Q-Former reads the text as well
    (its first 512 tokens), here on the client.
    """

    def __init__(self, processor: Any) -> None:
        if not getattr(processor, "num_query_tokens", None):
            raise ConfigError(
                f"{type(processor).__name__}: processor_config.json has no num_query_tokens, so "
                "there is no telling how many tokens a picture takes"
            )
        self._processor = processor
        token = processor.image_token  # a text in newer processors, an AddedToken in older ones
        self._image: str = getattr(token, "content", token)

    def write(self, sample: Sample) -> str:
        parts = [part.get("text", self._image) for part in user_content(sample)]
        return "".join(parts) + "\nAnswer:"

    def tensors(self, prompt: str, pictures: list[Image]) -> dict[str, Tensor]:
        tokenizer, queries = self._processor.tokenizer, self._processor.num_query_tokens
        text = prompt.removeprefix(self._image)
        shown = text.replace(self._image, self._image * queries)
        ids = tokenizer([shown], return_tensors="pt", **WHOLE)["input_ids"]
        if text != prompt:
            first = torch.full((1, queries), tokenizer.convert_tokens_to_ids(self._image))
            ids = torch.cat([first, ids], dim=1)
        if not pictures:
            return {"input_ids": ids}
        vision = dict(self._processor.image_processor(pictures, return_tensors="pt"))
        if self._reads_text:
            read = torch.tensor([self._read(prompt)] * len(pictures))
            vision |= {"qformer_input_ids": read, "qformer_attention_mask": torch.ones_like(read)}
        return {"input_ids": ids, **vision}

    def encoder_ids(self, sample: Sample) -> list[int]:
        return self._read(self.write(sample)) if self._reads_text else []

    @property
    def _reads_text(self) -> bool:
        return hasattr(self._processor, "qformer_tokenizer")

    def _read(self, prompt: str) -> list[int]:
        """What InstructBLIP's Q-Former reads of a prompt."""
        return self._processor.qformer_tokenizer(
            prompt.replace(self._image, ""),
            truncation=True,
            max_length=QFORMER_TOKENS,
            padding=False,
        )["input_ids"]


PROMPTING: Mapping[str, Callable[[Any], Prompting]] = {
    "paligemma": PrefixPrompting,
    "instructblip": QFormerPrompting,
    "blip-2": QFormerPrompting,
}


def prompting_for(model_type: str, processor: Any) -> Prompting:
    """The way in which this family's prompts are written.

    Raises:
        ConfigError: the processor does not say enough.
    """
    return PROMPTING.get(model_type, ChatPrompting)(processor)
