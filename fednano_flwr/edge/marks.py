"""Marks in a prompt's text: earlier answers, and words that look like a token of the template.

A prompt is one text until it is tokenized. By then, "<image>" that a user typed looks like the
template's own, and an assistant's turn like any other. Marks are characters for private use that
pass through template and processor, which lengthens the text where pictures stand. A
`MarkedTokenizer` takes them out again.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable
from typing import Any

from transformers import BatchEncoding

from fednano_flwr.data.errors import SampleError

BREAK, OPEN, CLOSE = "\U000f0ff0", "\U000f0ff1", "\U000f0ff2"
"""Inside a word that must not become one token; before and after an answer that is learned."""
_ANSWER = re.compile(f"{OPEN}([^{CLOSE}]*){CLOSE}")
_OPEN_OR_CLOSE = re.compile(f"[{OPEN}{CLOSE}]")
_MARK = re.compile(f"[{BREAK}{OPEN}{CLOSE}]")


class TypedTokens:
    """Keeps words of users' texts from becoming one of the tokens that a template writes.

    Args:
        tokens: in their written form, as "<image>" and "</s>".
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        longest_first = sorted({token for token in tokens if len(token) > 1}, key=len, reverse=True)
        starts = "".join({token[0] for token in longest_first})
        self._starts = re.compile(f"[{re.escape(starts)}{BREAK}{OPEN}{CLOSE}]")  # quick to find
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def broken(self, text: str) -> str:
        """The text with `BREAK` inside every such word.

        Raises:
            SampleError: it has marks of its own.
        """
        if not self._starts.search(text):
            return text
        if is_marked(text):
            raise SampleError(f"its text holds a character for private use, {_MARK.findall(text)}")
        while (more := self._pattern.sub(lambda m: m[0][0] + BREAK + m[0][1:], text)) != text:
            text = more
        return text


def is_marked(text: str) -> bool:
    return BREAK in text or OPEN in text or CLOSE in text


def unmarked(text: str) -> str:
    """The text without all marks."""
    return _MARK.sub("", text)


def answers(text: str) -> list[str]:
    """The marked answers."""
    return _ANSWER.findall(text)


def without_answers(text: str) -> str:
    """The text with no mark but `BREAK`."""
    return _OPEN_OR_CLOSE.sub("", text) if OPEN in text else text


class MarkedTokenizer:
    """Stands in for a processor's tokenizer, for one text with marks.

    Tokens of `BREAK` are taken out, so that a broken word is the tokens of its two parts.

    Args:
        tokenizer: a fast one; it says which characters a token stands for.
        ends: tokens that end a turn.

    Attributes:
        learned: of each token of the last text, whether it is of a marked answer, or ends its turn.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int] = ()) -> None:
        self._tokenizer, self._ends = tokenizer, ends
        self.learned: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: list[str], **options: Any) -> BatchEncoding:
        """As the tokenizer's own, of a list with one text.

        Raises:
            SampleError: marks and tokens do not agree.
        """
        (marked,), tensors = text, options.pop("return_tensors", None)
        plain, spans = _spans(marked)
        found = self._tokenizer([plain], return_offsets_mapping=True, **options)
        (offsets,) = found.pop("offset_mapping")
        places = [plain[start:end] for start, end in offsets]
        (ids,) = found["input_ids"]
        kept = [self._is_kept(token, place) for token, place in zip(ids, places, strict=True)]
        learned = [False] * len(ids)
        for span in spans:
            for index in self._tokens_of(plain, span, ids, offsets):
                learned[index] = kept[index]
        self.learned = [one for one, stays in zip(learned, kept, strict=True) if stays]
        data = {
            key: [[value for value, stays in zip(values[0], kept, strict=True) if stays]]
            for key, values in found.items()
        }
        ends = [end for (_, end), stays in zip(offsets, kept, strict=True) if stays]
        return MarkedEncoding(data, tensors, marked, ends)

    def _is_kept(self, token: int, place: str) -> bool:
        """Whether a token stands for text, and not for `BREAK` alone.

        Raises:
            SampleError: it stands for both; an unknown word is unknown with it and without.
        """
        if BREAK not in place:
            return True
        if place.strip(BREAK) and token != self._tokenizer.unk_token_id:
            raise SampleError(
                "its text holds a token of the chat template, which this tokenizer cannot take as "
                "text"
            )
        return bool(place.strip(BREAK))

    def _tokens_of(
        self, text: str, span: tuple[int, int], ids: list[int], offsets: list[tuple[int, int]]
    ) -> range:
        """Indices of an answer's tokens and of the token that ends its turn.

        Raises:
            SampleError: it has none, or one of them holds text that is not the answer's.
        """
        start, end = span
        inside = [n for n, (a, b) in enumerate(offsets) if a < end and b > start and a < b]
        if not inside or not text[start:end].strip():
            raise SampleError("an earlier answer has no token")
        first, last = inside[0], inside[-1]
        if text[offsets[first][0] : start].strip() or text[end : offsets[last][1]].strip():
            raise SampleError("a token of an earlier answer holds text of the chat template, too")
        after = last + 1
        while after < len(ids) and text[slice(*offsets[after])].isspace():
            after += 1
        ended = after < len(ids) and ids[after] in self._ends
        return range(first, after + 1 if ended else last + 1)


class MarkedEncoding(BatchEncoding):
    """Tokens of one text with marks.

    Args:
        marked: the text.
        ends: where each token ends in it without `OPEN` and `CLOSE`.
    """

    def __init__(
        self, data: dict[str, Any], tensors: str | None, marked: str, ends: list[int]
    ) -> None:
        super().__init__(data, tensor_type=tensors)
        self._marked, self._ends = marked, ends

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int:
        """Index of the token of a character of the marked text; Idefics3 asks for it."""
        place = batch_or_char_index if char_index is None else char_index
        return bisect_right(self._ends, len(without_answers(self._marked[:place])))


def _spans(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without `OPEN` and `CLOSE`, and where answers stand in it."""
    spans = []
    for number, found in enumerate(_ANSWER.finditer(marked)):
        before = found.start() - 2 * number
        spans.append((before, before + len(found[1])))
    return without_answers(marked), spans
