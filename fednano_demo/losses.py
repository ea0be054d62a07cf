"""What pretraining minimises besides the answer: a description of every cell of a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fednano_demo.encode import VOCABULARY
from fednano_demo.pictures import Bar, Cell, Clock, Icon
from fednano_demo.questions import Question
from fednano_demo.words import COLOURS, EMPTY, HOURS, POSITIONS, SHAPES

_NO_LABEL = -100
_SHARPNESS = 8.0
_THINGS = torch.tensor([VOCABULARY[word] for word in (*SHAPES, EMPTY, *HOURS)])
_COLOURS = torch.tensor([VOCABULARY[word] for word in COLOURS])
_POSITIONS = torch.tensor([VOCABULARY[word] for word in POSITIONS])


def cell_labels(cell: Cell) -> tuple[int, int]:
    """What a cell shows and in which colour: indices into `_THINGS` and `_COLOURS`."""
    if isinstance(cell, Icon):
        return cell.shape, cell.colour
    if isinstance(cell, Clock):
        return len(SHAPES) + 1 + cell.hour, _NO_LABEL
    if isinstance(cell, Bar):
        return _NO_LABEL, cell.colour
    return len(SHAPES), _NO_LABEL


def picture_labels(questions: Sequence[Question]) -> Tensor:
    """(n, 9, 2) labels of the cells of those questions that have a picture."""
    return torch.tensor(
        [[cell_labels(cell) for cell in q.cells] for q in questions if q.cells is not None]
    )


def alignment_loss(features: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
    """Pull each cell's feature towards the embeddings of the words that describe it.

    The sum of three cross-entropies: which thing, which colour, which place.

    Args:
        features: (n, 9, d), the connector's output.
        labels: (n, 9, 2), from `picture_labels`.
        embeddings: (V, d), the token embeddings.
    """
    places = torch.arange(labels.shape[1]).expand(labels.shape[:2])
    tasks = ((_THINGS, labels[..., 0]), (_COLOURS, labels[..., 1]), (_POSITIONS, places))
    losses = [
        cross_entropy(
            (features.float() @ embeddings[words].T * _SHARPNESS).flatten(0, 1),
            targets.flatten(),
            ignore_index=_NO_LABEL,
        )
        for words, targets in tasks
    ]
    return torch.stack(losses).sum()
