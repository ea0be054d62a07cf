"""The prompt of a multiple-choice question, pinned so that accuracies can be compared.

    {question}
    Context: {context}                      (only where the question has one)
    A. {choice}
    B. {choice}
    Answer with the option's letter from the given choices directly.

The picture comes before the text. What stands around a user's turn ("USER: … ASSISTANT:") is the
model's own chat template.
"""

from __future__ import annotations

from typing import Any

from fednano_flwr.data.sample import Sample

LETTERS = "ABCDEFGHIJ"
INSTRUCTION = "Answer with the option's letter from the given choices directly."


def user_text(sample: Sample) -> str:
    """The text of the user's turn, without the picture's placeholder."""
    lines = [sample.question]
    if sample.context:
        lines.append(f"Context: {sample.context}")
    lines += [
        f"{letter}. {choice}" for letter, choice in zip(LETTERS, sample.choices, strict=False)
    ]
    return "\n".join([*lines, INSTRUCTION])


def conversation(sample: Sample) -> list[dict[str, Any]]:
    """One user turn in the form that `processor.apply_chat_template` takes."""
    content: list[dict[str, str]] = [{"type": "text", "text": user_text(sample)}]
    if sample.image is not None:
        content.insert(0, {"type": "image"})
    return [{"role": "user", "content": content}]


def answer_letter(sample: Sample) -> str:
    """The letter that a right answer consists of."""
    return LETTERS[sample.answer]
