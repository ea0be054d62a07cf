"""Token embeddings of a model: of its whole vocabulary, or only the rows that a shard needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MissingRowError(ValueError):
    """A token turned up whose embedding this client does not hold."""


class TokenTable(nn.Module):
    """Frozen token embeddings.

    Args:
        layer: the family's own embedding layer (some scale what they look up); its weight is
            replaced.
        table: (n, d), the rows of `ids`.
        ids: (n,) ascending token ids; None where the table has every row.
    """

    ids: Tensor | None

    def __init__(self, layer: nn.Embedding, table: Tensor, ids: Tensor | None = None) -> None:
        super().__init__()
        layer.weight = nn.Parameter(table, requires_grad=False)
        layer.num_embeddings = len(table)
        layer.padding_idx = None  # may lie outside the rows; only matters for training the table
        for key, value in layer.named_buffers(recurse=False):
            setattr(layer, key, value.to(table.device))
        self._layer = layer
        self.register_buffer("ids", None if ids is None else ids.to(table.device))

    @property
    def weight(self) -> Tensor:
        return self._layer.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings (T, d) of token ids (T,).

        Raises:
            MissingRowError: a token has no row here.
        """
        if self.ids is None:
            return self._layer(ids)
        rows = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        missing = ids[self.ids[rows] != ids]
        if len(missing):
            raise MissingRowError(
                f"token {int(missing[0])} has no embedding here: this client holds the "
                f'{len(self.ids)} rows that its shard uses (edge.vocabulary = "shard", or an edge '
                'bundle split for another shard); use edge.vocabulary = "full" with a full bundle'
            )
        return self._layer(rows)
