"""Many tokenized questions in little memory.

A question as an object takes some 10 kB, most of it for picture tokens, tensors and the sample.
Here its tokens are 32-bit numbers, of which a run of equal ones takes two, and its sample is read
again from its table.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from copy import copy
from typing import Any, overload

import numpy as np
import torch

from fednano_flwr.data.sample import Sample
from fednano_flwr.edge.questions import Limits, Question


class StoredQuestions(Sequence[Question]):
    """Questions that are made when they are asked for.

    Args:
        samples: what they are made from.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._cut: dict[int, Sample] = {}  # samples that were shortened to be tokenized
        self._rows = array("q")  # of each question, the index of its sample
        self._tokens, self._starts = array("i"), array("q", [0])
        self._prompts, self._longest = array("i"), array("i")  # tokens of prompt; of an answer
        self._others: list[tuple[Any, ...]] = []  # options, words, geometry
        self._known: dict[Any, tuple[Any, ...]] = {}  # the same, one object for all equal ones
        self._chosen: Sequence[int] = range(0)

    def add(self, row: int, sample: Sample, question: Question) -> None:
        """Keep a question.

        Args:
            row: index of the sample.
        """
        tokens = np.array([*question.ids.tolist(), *question.answer], dtype=np.int32) << 1
        tokens[: len(question.ids)] |= question.learned.numpy()
        self._tokens.frombytes(_packed(tokens).tobytes())
        self._starts.append(len(self._tokens))
        self._rows.append(row)
        self._prompts.append(len(question.ids))
        self._longest.append(question.longest_answer)
        shapes = repr([(name, value.tolist()) for name, value in question.geometry.items()])
        others = (question.options, question.words, question.geometry)
        self._others.append(self._known.setdefault((*others[:2], shapes), others))
        if question.sample is not sample:
            self._cut[row] = question.sample
        self._chosen = range(len(self._rows))

    @property
    def cut(self) -> int:
        """How many have a shorter text than their sample."""
        return sum(self._rows[place] in self._cut for place in self._chosen) if self._cut else 0

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> StoredQuestions: ...
    def __getitem__(self, index: int | slice) -> Question | StoredQuestions:
        if isinstance(index, slice):
            return self._select(self._chosen[index])
        place = self._chosen[index]
        stored = np.frombuffer(self._tokens, np.int32)[slice(*self._starts[place : place + 2])]
        tokens, prompt, row = _unpacked(stored), self._prompts[place], self._rows[place]
        options, words, geometry = self._others[place]
        return Question(
            sample=self._cut[row] if row in self._cut else self._samples[row],
            ids=torch.from_numpy((tokens[:prompt] >> 1).astype(np.int64)),
            answer=tuple((tokens[prompt:] >> 1).tolist()),
            options=options,
            geometry=geometry,
            learned=torch.from_numpy((tokens[:prompt] & 1).astype(bool)),
            words=words,
        )

    def within(self, limits: Limits) -> tuple[StoredQuestions, list[tuple[str, str]]]:
        """The questions that a host takes; id and reason of each other one."""
        chosen, left_out = array("q"), []
        for place in self._chosen:
            options, words, _ = self._others[place]
            prompt, longest = self._prompts[place], self._longest[place]
            if reason := limits.reason(limits.most(prompt, longest, bool(options or words))):
                left_out.append((self._samples[self._rows[place]].uid, reason))
            else:
                chosen.append(place)
        return self._select(chosen), left_out

    def _select(self, chosen: Sequence[int]) -> StoredQuestions:
        found = copy(self)
        found._chosen = chosen
        return found


def _packed(values: np.ndarray) -> np.ndarray:
    """A run of n > 1 equal values as the value and 1 - n; values are not negative."""
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    repeats = np.diff(starts, append=len(values)) - 1
    pairs = np.stack([values[starts], -repeats.astype(values.dtype)], axis=1)
    return pairs[np.stack([repeats >= 0, repeats > 0], axis=1)]


def _unpacked(packed: np.ndarray) -> np.ndarray:
    is_value = packed >= 0
    counts = np.ones(is_value.sum(), dtype=np.int64)
    counts[is_value.cumsum()[~is_value] - 1] -= packed[~is_value]
    return np.repeat(packed[is_value], counts)
