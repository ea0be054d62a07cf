"""How a model's prompts are written and turned into tensors, pictures and sounds included."""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fednano_flwr.config import ConfigError
from fednano_flwr.data.errors import SampleError
from fednano_flwr.data.prompts import conversation
from fednano_flwr.data.sample import Sample
from fednano_flwr.edge import marks
from fednano_flwr.models.families.base import WHOLE, Family, place_text

PLACEHOLDERS = ("image_token", "boi_token", "video_token", "audio_token", "boa_token")
"""What processors call the tokens that stand for pictures, videos and sounds."""
LEARNED = "learned"
"""Of a prompt's tensors: (1, T) bool, which tokens are of earlier answers, where there are some."""
Turns = list[dict[str, Any]]
"""In the form that chat templates take."""

NO_THOUGHTS = "{% set enable_thinking = false %}"
"""Before a chat template: an answer follows its prompt at once."""
ON_DAY = "{{% macro strftime_now(format) %}}{}{{% endmacro %}}"
"""Before a chat template: what it is given for the date."""


class Prompting:
    """How one model's prompts are written: by its chat template, or by its family's `prompt`.

    Some templates (LLaVA-1.5's) write all pictures of a turn first. An option's picture has to
    stand beside its letter, so there the text itself holds the picture's token.

    Args:
        placeholders: ids of the tokens that stand for pictures and sounds, as far as known.
        ends: ids of tokens that end a turn.

    Raises:
        ConfigError: the processor lacks what prompts need; of a template, there is none, or there
            are several and none is the default.
    """

    def __init__(
        self,
        family: Family,
        processor: Any,
        placeholders: Collection[int] = (),
        ends: Collection[int] = (),
    ) -> None:
        if lacking := family.check_processor(processor):
            raise ConfigError(f"{type(processor).__name__}: {lacking}")
        self._family, self._processor, self._ends = family, processor, ends
        self._template = "" if family.prompt else _template(processor)
        if family.thinks:
            self._template = NO_THOUGHTS + self._template
        self.typed = marks.TypedTokens(_control_tokens(processor, placeholders))

    def write(self, sample: Sample) -> str:
        """The prompt up to where the answer begins, with `marks` where it needs them.

        Raises:
            SampleError: the family or the chat template cannot take the turns as they are.
        """
        turns = _changed(conversation(sample), self.typed.broken)
        if not self._template:
            return self._filled_in(turns)
        prompt = self._written(turns)
        if marks.is_marked(prompt):  # a template may look at the texts
            plain = self._written(_changed(turns, marks.unmarked))
            if marks.unmarked(prompt) != plain:
                raise SampleError("the chat template changes a word that looks like its own token")
        if sample.turns:
            _check_texts(turns, prompt)
        if any(turn["role"] == "assistant" for turn in turns):
            return self._with_answers_marked(turns, prompt)
        return prompt

    def tensors(self, prompt: str, media: list[Any]) -> dict[str, Tensor]:
        """`input_ids` (1, T), what the encoders take, and `LEARNED`, of one prompt.

        Args:
            media: as in `Family.tensors`.

        Raises:
            SampleError: marks in the prompt do not agree with its tokens.
        """
        if not marks.is_marked(prompt):
            return self._family.tensors(self._processor, prompt, media)
        processor = copy(self._processor)  # other threads use the one that all share
        processor.tokenizer = marks.MarkedTokenizer(self._processor.tokenizer, self._ends)
        found = self._family.tensors(processor, prompt, media)
        if marks.answers(prompt):
            found[LEARNED] = torch.tensor([processor.tokenizer.learned])
        return found

    def tokens(self, text: str) -> list[int]:
        """Ids of a text that may have `marks`, without what opens a prompt."""
        tokenizer = self._processor.tokenizer
        if marks.is_marked(text):
            tokenizer = marks.MarkedTokenizer(tokenizer)
        return tokenizer([text], add_special_tokens=False, **WHOLE)["input_ids"][0]

    def places(self, prompt: str, site: str) -> int:
        """How many places for pictures ("image") or sounds ("audio") a prompt has."""
        text = place_text(self._processor, site)
        return prompt.count(text) if text else 0

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
        """Whether a picture, or a sound, between two texts stays between them."""
        site = self._family.modalities[0]
        before, after = ({"type": "text", "text": text} for text in ("before", "after"))
        written = self._filled([{"role": "user", "content": [before, {"type": site}, after]}])
        between = written.partition("before")[2].partition("after")[0]
        return place_text(self._processor, site) in between

    def _filled_in(self, turns: Turns) -> str:
        """The family's own prompt.

        Raises:
            SampleError: it is more than one question.
        """
        if [turn["role"] for turn in turns] != ["user"]:
            raise SampleError(
                f"it is a dialogue of {len(turns)} turns, and models of the family "
                f"{self._family.model_type} take one question"
            )
        return self._family.prompt.format("".join(map(self._as_text, turns[0]["content"])))

    def _as_text(self, part: dict[str, Any]) -> str:
        return part["text"] if "text" in part else place_text(self._processor, part["type"])

    def _with_answers_marked(self, turns: Turns, prompt: str) -> str:
        """The prompt with every earlier answer between two marks.

        Raises:
            SampleError: the template does not write these answers as they are.
        """
        trims: tuple[Callable[[str], str], ...] = (str, str.strip)
        for trim in trims:

            def mark(text: str, trim: Callable[[str], str] = trim) -> str:
                return f"{marks.OPEN}{trim(text)}{marks.CLOSE}"

            marked = self._written(_changed(turns, mark, "assistant"))
            wanted = [trim(text) for text in _texts(turns, "assistant")]
            if marks.without_answers(marked) == prompt and marks.answers(marked) == wanted:
                return marked
        raise SampleError("the chat template changes an earlier answer")

    def _written(self, turns: Turns) -> str:
        """The template's text, with each picture where it stands in its turn."""
        return self._filled([{**turn, "content": self._ordered(turn["content"])} for turn in turns])

    def _ordered(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The parts of a turn, as a template has to get them that writes pictures first.

        Every picture, or sound, but a leading one is then its token in the text.
        """
        kinds = [part["type"] for part in parts]
        if kinds == sorted(kinds) or self._keeps_order:  # "audio" and "image" before "text"
            return parts
        leading = [part for part in parts[:1] if "text" not in part]
        text = "".join(map(self._as_text, parts[len(leading) :]))
        return [*leading, {"type": "text", "text": text}]

    def _filled(self, turns: Turns, template: str = "") -> str:
        return self._processor.apply_chat_template(
            turns, template or self._template, add_generation_prompt=True, tokenize=False
        )


def _control_tokens(processor: Any, placeholders: Collection[int]) -> set[str]:
    """What must not be made of a user's text: special tokens, and those that stand for features."""
    tokenizer = processor.tokenizer
    found = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    found += [getattr(processor, name, None) for name in PLACEHOLDERS]
    found += tokenizer.convert_ids_to_tokens(list(placeholders))
    return {str(getattr(token, "content", token)) for token in found if token}


def _changed(turns: Turns, change: Callable[[str], str], role: str = "") -> Turns:
    """The turns, or those of one role, with another text in place of each."""
    return [
        {**turn, "content": [_part(part, change) for part in turn["content"]]}
        if role in ("", turn["role"])
        else turn
        for turn in turns
    ]


def _part(part: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    return {**part, "text": change(part["text"])} if "text" in part else part


def _texts(turns: Turns, role: str) -> list[str]:
    own = [part for turn in turns if turn["role"] == role for part in turn["content"]]
    return [part["text"] for part in own if "text" in part]


def _check_texts(turns: Turns, prompt: str) -> None:
    """Refuse a prompt that lacks one of its texts, or has them in another order.

    Raises:
        SampleError: says whose text it is.
    """
    place = 0
    for turn in turns:
        for text in _texts([turn], turn["role"]):
            found = prompt.find(text.strip(), place)
            if found < 0:
                raise SampleError(f"the chat template changes its {turn['role']} turn")
            place = found + len(text.strip())


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
