"""An LLM half that computes next to nothing: a head on its inputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from fednano_flwr.models.families import Family
from fednano_flwr.models.llm_half import LLMHalf


def stub_half(
    hidden_size: int, vocabulary: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> LLMHalf:
    """Stands for a language model where only the way to it matters, its bytes or its checks."""
    generator = torch.Generator().manual_seed(seed)
    shape = (hidden_size, vocabulary)
    head = (torch.randn(shape, generator=generator) / hidden_size**0.5).to(dtype)
    table = torch.randn(shape[::-1], generator=generator).to(dtype)

    def logits(embeds: Tensor, rows: Tensor, *rest: Any) -> Tensor:
        return embeds.flatten(0, 1)[rows] @ head

    half = SimpleNamespace(
        model="stub",
        fingerprint="f",
        hub_id="",
        revision="",
        hidden_size=hidden_size,
        vocabulary=vocabulary,
        size=head.numel(),
        dtype=dtype,
        device=torch.device("cpu"),
        family=Family("none", "None"),
        longest=0,
        deep_size=0,
        ids=0,
        reads_ids=False,
        logits=logits,
        embed=lambda ids: table[ids],
        check_length=lambda tokens: None,
        new_cache=DynamicCache,
        next_logits=lambda embeds, *rest: embeds[:, -1] @ head,
        check_ids=lambda ids: None,
    )
    half.check = lambda *batch: LLMHalf.check(cast(Any, half), *batch)
    half.check_axes = lambda positions: LLMHalf.check_axes(cast(Any, half), positions)
    return cast(LLMHalf, half)
