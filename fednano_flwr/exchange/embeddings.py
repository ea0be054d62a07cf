"""The plain exchange: embeddings go up, their gradient comes down (2·N·d numbers a step)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fednano_flwr.exchange.errors import RefusalError
from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.protocol import (
    AdaptedBatch,
    Embedded,
    Inputs,
    Layout,
    LLMInfo,
    NewTokens,
    TokenTable,
)
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb


@dataclass(frozen=True)
class EmbeddingInputs(Inputs):
    """A batch as its adapted embeddings.

    Attributes:
        embeds: (N, d) floating point.
    """

    FIELD: ClassVar[str] = "embeddings"
    embeds: Tensor
    layout: Layout

    @classmethod
    def of(cls, batch: AdaptedBatch) -> EmbeddingInputs:
        return cls(batch.embedded(), batch.layout)

    @staticmethod
    def token_rows(tokens: AdaptedBatch) -> Tensor:
        return tokens.embedded()

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.embeds,)

    def detach(self) -> EmbeddingInputs:
        return replace(self, embeds=self.embeds.detach())

    def fill(self, message: pb.Inputs, dtype: str) -> None:
        codec.fill(message.embeddings, self.embeds, dtype)

    @classmethod
    def read(cls, message: pb.Inputs, layout: Layout, info: LLMInfo) -> EmbeddingInputs:
        shape, expected = tuple(message.embeddings.shape), (layout.tokens, info.hidden_size)
        if shape != expected:
            raise RefusalError(
                f"embeddings of shape {shape[:3]}; the lengths and the model need {expected}"
            )
        return cls(codec.decode(message.embeddings), layout)

    def embed(
        self, table: TokenTable, features: Callable[[bytes], Tensor | None], trains: bool
    ) -> Embedded:
        rows = self.embeds.detach().to(table.device, table.dtype)
        return Embedded(rows, lambda gradient: (gradient.to(self.embeds),), self.layout)

    def token_embedder(
        self, table: TokenTable, features: Callable[[bytes], Tensor | None]
    ) -> Callable[[NewTokens], Tensor]:
        def embed(tokens: NewTokens) -> Tensor:
            if tokens.rows is None or tokens.rows.shape[1] != table.hidden_size:
                raise ValueError("the prompt was embeddings, so each token has to be one, too")
            return tokens.rows.to(table.device, table.dtype)

        return embed


class EmbeddingsExchange(Exchange):
    """Sends `EmbeddingInputs`."""

    inputs = EmbeddingInputs
