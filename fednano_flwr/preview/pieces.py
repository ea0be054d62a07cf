"""A question's tokens as text: runs of pictures' and sounds' tokens, and what the loss is on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.questions import Question

Kind = Literal["text", "special", "image", "audio", "unknown"]


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one kind.

    Attributes:
        text: as the tokenizer writes it; of a picture or a sound, how many tokens it takes.
        learned: whether the loss is on these tokens.
        tokens: how many there are.
    """

    text: str
    kind: Kind
    learned: bool
    tokens: int


def pieces(question: Question, encoder: QuestionEncoder) -> list[Piece]:
    """The prompt and the right answer, in order."""
    tokenizer = encoder.processor.tokenizer
    special = set(tokenizer.all_special_ids)
    places: dict[int, Any] = {
        token: site for site, tokens in encoder.placeholders.items() for token in tokens
    }
    ids = [*question.ids.tolist(), *question.answer]
    learned = [*question.learned.tolist(), *[True] * len(question.answer)]

    def kind(token: int) -> Kind:
        if token == tokenizer.unk_token_id:
            return "unknown"
        return places.get(token) or ("special" if token in special else "text")

    def decode(tokens: list[int]) -> str:
        return tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    found: list[Piece] = []
    before: list[int] = []
    for (what, loss), run in groupby(
        zip(ids, learned, strict=True), lambda one: (kind(one[0]), one[1])
    ):
        tokens = [token for token, _ in run]
        if what in ("image", "audio"):
            text = f"<{what} × {len(tokens)}>"
            before.append(tokens[0])
        else:
            # A tokenizer may drop the space that a text by itself begins with.
            start, whole = decode(before), decode([*before, *tokens])
            text = whole[len(start) :] if whole.startswith(start) else decode(tokens)
            before += tokens
        found.append(Piece(text, what, loss, len(tokens)))
    return found
