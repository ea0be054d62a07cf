"""A picture with several questions in one sequence, each of which sees the picture and itself.

What questions share, a system prompt and the picture's 16 tokens, is computed once, and the model
gives what it gives to each question by itself: tokens have the positions that they have there, and
the attention mask hides the other questions. Answers branch off a question in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Asked(NamedTuple):
    """A question's tokens after the picture's, and those of answers, each with its end."""

    ids: list[int]
    answers: list[list[int]]


class Sheet(NamedTuple):
    """A picture's questions in one sequence of T tokens.

    Attributes:
        ids: (T,) int64.
        positions: (T,) int64, of each token in its own question.
        sees: (T, T) bool, which tokens each attends to.
        rows: (P,) int64, after which of the T tokens each of the answers' P tokens comes.
        targets: (P,) int64, the answers' tokens.
        owners: (P,) int64, which answer each of them is of, counted over all questions.
    """

    ids: Tensor
    positions: Tensor
    sees: Tensor
    rows: Tensor
    targets: Tensor
    owners: Tensor


def lay_out(opening: Sequence[int], asked: Sequence[Asked]) -> Sheet:
    """Put questions and their answers side by side after what they share."""
    ids, positions = list(opening), list(range(len(opening)))
    pieces = [0] * len(opening)
    seen = [{0}]  # by each piece: itself and the pieces before it
    rows: list[int] = []
    targets: list[int] = []
    owners: list[int] = []

    def add(tokens: Sequence[int], start: int, before: set[int]) -> None:
        seen.append({len(seen), *before})
        pieces.extend([len(seen) - 1] * len(tokens))
        positions.extend(range(start, start + len(tokens)))
        ids.extend(tokens)

    answer = 0
    for question in asked:
        add(question.ids, len(opening), seen[0])
        last, own, start = len(ids) - 1, seen[-1], positions[-1] + 1
        for tokens in question.answers:
            rows += [last, *range(len(ids), len(ids) + len(tokens) - 1)]
            targets += tokens
            owners += [answer] * len(tokens)
            add(tokens[:-1], start, own)
            answer += 1
    order = torch.tensor(positions)
    piece = torch.tensor(pieces)
    related = torch.tensor([[other in one for other in range(len(seen))] for one in seen])
    sees = related[piece][:, piece] & (order[:, None] >= order)
    return Sheet(
        torch.tensor(ids),
        order,
        sees,
        torch.tensor(rows),
        torch.tensor(targets),
        torch.tensor(owners),
    )


class Batch(NamedTuple):
    """Sheets of one length, as in `Sheet`: (B, T) tokens, (B, 1, T, T) bool, rows of B·T."""

    ids: Tensor
    positions: Tensor
    sees: Tensor
    rows: Tensor
    targets: Tensor
    owners: Tensor


def collate(sheets: Sequence[Sheet]) -> Batch:
    """Pad sheets on the right; a padding token sees itself alone."""
    longest = max(len(sheet.ids) for sheet in sheets)
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(sheets), 1, 1, 1)
    rows, owners, answers = [], [], 0
    for index, sheet in enumerate(sheets):
        length = len(sheet.ids)
        sees[index, 0, :length, :length] = sheet.sees
        rows.append(sheet.rows + index * longest)
        owners.append(sheet.owners + answers)
        answers += int(sheet.owners[-1]) + 1
    return Batch(
        pad_sequence([sheet.ids for sheet in sheets], batch_first=True),
        pad_sequence([sheet.positions for sheet in sheets], batch_first=True),
        sees,
        torch.cat(rows),
        torch.cat([sheet.targets for sheet in sheets]),
        torch.cat(owners),
    )
