"""Random batches for the language model, as if a client had made them."""

from __future__ import annotations

import torch
from torch import Tensor

from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.protocol import IGNORE, Layout
from fednano_flwr.models.llm_half import LLMHalf


def answered_at_the_end(
    seed: int, lengths: tuple[int, ...] = (5, 9)
) -> tuple[EmbeddingInputs, Tensor]:
    """Embeddings for the tiny LLaVA, and one label after each sample's last token."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    labels = torch.full((total,), IGNORE)
    labels[torch.tensor(lengths).cumsum(0) - 1] = seed % 60
    return EmbeddingInputs(torch.randn(total, 48, generator=generator), Layout(lengths)), labels


def labelled_everywhere(
    half: LLMHalf, lengths: tuple[int, ...] = (9, 5)
) -> tuple[EmbeddingInputs, Tensor]:
    """Embeddings with all that some family asks for, and a label at each position."""
    generator = torch.Generator().manual_seed(5)
    count = sum(lengths)
    embeds = torch.randn(count, half.hidden_size, generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])
    inputs = EmbeddingInputs(
        embeds.to(half.dtype),
        Layout(
            lengths,
            positions.repeat(3, 1) if half.family.position_axes else None,
            torch.zeros(count, dtype=torch.long) if half.family.token_types else None,
            torch.arange(count) if half.reads_ids else None,
        ),
    )
    return inputs, torch.randint(half.vocabulary, (count,), generator=generator)
