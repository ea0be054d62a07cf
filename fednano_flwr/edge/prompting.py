"""How a model's prompts are written and turned into tensors, pictures included."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from PIL.Image import Image
from torch import Tensor

from fednano_flwr.config import ConfigError
from fednano_flwr.data.prompts import IMAGE, conversation, user_content
from fednano_flwr.data.sample import Sample
from fednano_flwr.models.families.base import Family, image_text

ON_DAY = "{{% macro strftime_now(format) %}}{}{{% endmacro %}}"
"""Before a chat template: what it is given for the date."""


class Prompting:
    """How one model's prompts are written: by its chat template, or by its family's `prompt`.

    Some templates (LLaVA-1.5's) write all pictures first. An option's picture has to stand beside
    its letter, so there the text itself holds the picture's token.

    Raises:
        ConfigError: the processor lacks what prompts need; of a template, there is none, or there
            are several and none is the default.
    """

    def __init__(self, family: Family, processor: Any) -> None:
        if lacking := family.check_processor(processor):
            raise ConfigError(f"{type(processor).__name__}: {lacking}")
        self._family, self._processor = family, processor
        self._template = "" if family.prompt else _template(processor)

    def write(self, sample: Sample) -> str:
        """The prompt up to where the answer begins."""
        if not self._template:
            image = image_text(self._processor)
            parts = [part.get("text", image) for part in user_content(sample)]
            return self._family.prompt.format("".join(parts))
        turns = conversation(sample)
        if sample.choice_images and not self._keeps_order:
            turns = [{"role": "user", "content": self._in_text(user_content(sample))}]
        return self._filled(turns)

    def tensors(self, prompt: str, pictures: list[Image]) -> dict[str, Tensor]:
        """`input_ids` (1, T) and what the vision encoder takes, of one prompt."""
        return self._family.tensors(self._processor, prompt, pictures)

    def encoder_ids(self, sample: Sample) -> list[int]:
        """Tokens that the vision encoder reads beside the pictures; in most families none."""
        return self._family.encoder_ids(self._processor, self.write(sample))

    def writes_date(self, sample: Sample) -> bool:
        """Whether a prompt is another one on another day."""
        if not self._template:
            return False
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


def _template(processor: Any) -> str:
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
    return template
