"""The prompt of a question, pinned so that accuracies can be compared.

    {question}
    Context: {context}                      (only where the question has one)
    A. {choice}
    B. {choice}
    Answer with the option's letter from the given choices directly.

LLaVA's published format for ScienceQA; for a free answer there are no options, and the last line is
the one LLaVA-1.5 was published with for short answers, or the sample's own. Where there are more
options than letters, they stand without letters; more than MOST_LISTED are left out. The question's
pictures come before the text, one after the other, then its sounds; an option that is a picture
stands in its line, after its letter. What stands around a user's turn ("USER: … ASSISTANT:") is the
model's own chat template. A dialogue is written as it is, with nothing added.
"""

from __future__ import annotations

import re
from typing import Any

from fednano_flwr.data.sample import Place, Sample

LETTERS = "ABCDEFGHIJ"
INSTRUCTION = "Answer with the option's letter from the given choices directly."
FREE_INSTRUCTION = "Answer the question using a single word or phrase."
WORDS_INSTRUCTION = "Answer with one of these options directly."
MOST_LISTED = 50
IMAGE, AUDIO = ({"type": place.value} for place in Place)
"""The parts of a turn where one of `pictures` and of `sounds` stands; they come in that order."""

_OUTER = " \t\n'\"`*()[]{}"
_ARTICLE = re.compile(r"^(?:a|an|the)\s+(?=\S)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def user_text(sample: Sample) -> str:
    """The text of the user's turn, without places of pictures and sounds."""
    return "".join(part.get("text", "") for part in user_content(sample))


def user_content(sample: Sample) -> list[dict[str, Any]]:
    """Parts of the user's turn, `IMAGE`, `AUDIO` or `{"type": "text", "text": …}`, for templates.

    Joined one after another they are the prompt: no part needs a separator of its own.
    """
    parts: list[dict[str, Any]] = [dict(IMAGE) for _ in sample.images]
    parts += [dict(AUDIO) for _ in sample.sounds]
    text = sample.question
    if sample.context:
        text += f"\nContext: {sample.context}"
    if by_letter(sample):
        text += "".join(f"\n{x}. {c}" for x, c in zip(LETTERS, sample.choices, strict=False))
    elif len(sample.choices) <= MOST_LISTED:
        text += "".join(f"\n{choice}" for choice in sample.choices)
    for letter, _ in zip(LETTERS, sample.choice_images, strict=False):
        parts += [{"type": "text", "text": f"{text}\n{letter}. "}, dict(IMAGE)]
        text = ""
    if instruction := _instruction(sample):
        text += f"\n{instruction}"
    return [*parts, {"type": "text", "text": text}]


def by_letter(sample: Sample) -> bool:
    """Whether its options have a letter each; more of them are told by their words."""
    return 0 < sample.num_options <= len(LETTERS)


def _instruction(sample: Sample) -> str:
    if sample.answer is None or len(sample.choices) > MOST_LISTED:
        return FREE_INSTRUCTION if sample.instruction is None else sample.instruction
    return INSTRUCTION if by_letter(sample) else WORDS_INSTRUCTION


def conversation(sample: Sample) -> list[dict[str, Any]]:
    """The turns before the answer in the form that `processor.apply_chat_template` takes."""
    if not sample.turns:
        return [{"role": "user", "content": user_content(sample)}]
    return [
        {
            "role": turn.role,
            "content": [
                {"type": part.value} if isinstance(part, Place) else {"type": "text", "text": part}
                for part in turn.parts
            ],
        }
        for turn in sample.turns
    ]


def answer_text(sample: Sample) -> str:
    """What a right answer consists of: the option's letter or words, or the free answer."""
    if sample.answer is None:
        return sample.free_answer
    return LETTERS[sample.answer] if by_letter(sample) else sample.choices[sample.answer]


def normalise_answer(text: str) -> str:
    """A free answer in the form in which two of them are compared, for exact match.

    Lower case; quotes, brackets and closing punctuation around it, an article before it and the
    commas of thousands removed; inner whitespace as single spaces. A sign, a currency and a
    decimal point stay: "-5", "$3" and ".5" are other answers than "5" and "3".
    """
    text = _THOUSANDS.sub("", " ".join(text.lower().split()))
    while (shorter := _ARTICLE.sub("", text.strip(_OUTER).rstrip(".,;:!?"))) != text:
        text = shorter
    return text
