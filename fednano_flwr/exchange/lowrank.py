"""The low-rank exchange: frozen parts are sent once, then only what the adapters' ranks need.

h' = h + z Bᵀ with z = s · A h. The host has h: token embeddings from its own table, image features
from its store. A step sends z (N·r) and B (d·r) and gets their gradients; the client's autograd
carries dL/dz on into A. The gradients are those of the plain exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.protocol import (
    AdaptedBatch,
    Embedded,
    FeaturesMissingError,
    Gradient,
    Inputs,
    Layout,
    LLMInfo,
    NewTokens,
    RefusalError,
    TokenTable,
    adapted,
)
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb

SITES = ("image", "text")


@dataclass(frozen=True)
class LowRankInputs(Inputs):
    """A batch without its embeddings: the host makes them from what it has.

    Attributes:
        token_ids: (N - n,) of the rows that are tokens, in order.
        is_image: (N,) bool.
        keys: of the questions' image features, in order.
        z: (n, R) of each site that has an adapter.
        b: (d, R) likewise.
    """

    FIELD: ClassVar[str] = "low_rank"
    token_ids: Tensor
    is_image: Tensor
    keys: tuple[bytes, ...]
    z: dict[str, Tensor]
    b: dict[str, Tensor]
    layout: Layout

    @classmethod
    def of(cls, batch: AdaptedBatch) -> LowRankInputs:
        tokens, keys = batch.token_ids[~batch.is_image], tuple(f.key for f in batch.features)
        layout = batch.layout._replace(token_ids=None, deep=None)  # the host makes them
        return cls(tokens, batch.is_image, keys, batch.z, batch.b, layout)

    @staticmethod
    def token_rows(tokens: AdaptedBatch) -> Tensor | None:
        return tokens.z.get("text")

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return tuple(part[site] for part in (self.z, self.b) for site in SITES if site in part)

    def detach(self) -> LowRankInputs:
        return self._with(Tensor.detach)

    def _with(self, change: Callable[[Tensor], Tensor]) -> LowRankInputs:
        """The same with other leaves."""
        z, b = ({s: change(v) for s, v in part.items()} for part in (self.z, self.b))
        return replace(self, z=z, b=b)

    def fill(self, message: pb.Inputs, dtype: str) -> None:
        sent = message.low_rank
        sent.token_ids.extend(self.token_ids.tolist())
        sent.image_runs.extend(_runs(self.is_image))
        sent.features.extend(self.keys)
        for site in sorted(self.z):
            factors = sent.factors.add(site=site)
            codec.fill(factors.z, self.z[site], dtype)
            codec.fill(factors.b, self.b[site], dtype)

    @classmethod
    def read(cls, message: pb.Inputs, layout: Layout, info: LLMInfo) -> LowRankInputs:
        sent, count = message.low_rank, layout.tokens
        is_image = _from_runs(sent.image_runs, count)
        pictured = int(is_image.sum())
        rows = {"image": pictured, "text": count - pictured}
        tokens = torch.tensor(list(sent.token_ids), dtype=torch.int64)
        if len(tokens) != rows["text"]:
            raise RefusalError(f"{len(tokens)} token ids for {rows['text']} rows of text")
        if len(tokens) and int(tokens.max()) >= info.vocabulary:
            raise RefusalError(f"token {int(tokens.max())} is out of range")
        if len(sent.features) > pictured:
            raise RefusalError(f"{len(sent.features)} features for {pictured} rows of pictures")
        for key in sent.features:
            codec.check_key(key)
        z: dict[str, Tensor] = {}
        b: dict[str, Tensor] = {}
        for factors in sent.factors:
            site = factors.site
            if site in z or site not in SITES:
                raise RefusalError(f"factors of site {site[:32]!r}: once each, image and text")
            z[site], b[site] = codec.decode(factors.z), codec.decode(factors.b)
            _check_factors(site, z[site], b[site], (rows[site], info.hidden_size))
        return cls(tokens, is_image, tuple(sent.features), z, b, layout)

    def embed(
        self, table: TokenTable, features: Callable[[bytes], Tensor | None], trains: bool
    ) -> Embedded:
        hidden, layout = self._frozen(table, features)
        leaf = self._with(lambda v: v.detach().to(hidden.device).requires_grad_(trains))
        with torch.set_grad_enabled(trains):  # the caller may be inside another graph's forward
            whole = adapted(hidden, self.is_image.to(hidden.device), leaf.z, leaf.b)

        def gradient(rows: Tensor) -> Gradient:
            found = torch.autograd.grad(whole, leaf.leaves, rows) if leaf.leaves else ()
            return tuple(g.to(sent) for g, sent in zip(found, self.leaves, strict=True))

        return Embedded(whole.detach(), gradient, layout)

    @torch.no_grad()
    def _frozen(
        self, table: TokenTable, features: Callable[[bytes], Tensor | None]
    ) -> tuple[Tensor, Layout]:
        """Frozen embeddings (N, d), and the layout, from token ids and the kept features."""
        kept = {key: features(key) for key in self.keys}
        missing = tuple(key for key in self.keys if kept[key] is None)
        if missing:
            raise FeaturesMissingError(missing)
        pictures = [rows for key in self.keys if (rows := kept[key]) is not None]
        is_image = self.is_image.to(table.device)
        size = (len(is_image), table.hidden_size)
        hidden = torch.empty(size, device=table.device, dtype=table.dtype)
        hidden[~is_image] = table.embed(self.token_ids.to(table.device))
        count = sum(map(len, pictures))
        if count != int(is_image.sum()):
            raise ValueError(f"{count} features for {int(is_image.sum())} rows of pictures")
        layout = self.layout
        if table.reads_ids:
            ids = torch.zeros(size[:1], dtype=torch.int64)
            ids[~self.is_image] = self.token_ids
            layout = layout._replace(token_ids=ids)
        if pictures:
            rows = torch.cat([rows.to(hidden) for rows in pictures])
            hidden[is_image], deep = rows.tensor_split([table.hidden_size], dim=1)
            layout = layout._replace(deep=deep if deep.shape[1] else None)
        return hidden, layout

    def token_embedder(self, table: TokenTable) -> Callable[[NewTokens], Tensor]:
        b = self.b.get("text")
        return partial(_embed_tokens, table, None if b is None else b.to(table.device))


class LowRankExchange(Exchange):
    """Sends `LowRankInputs`."""

    inputs = LowRankInputs


@torch.no_grad()
def _embed_tokens(table: TokenTable, b: Tensor | None, tokens: NewTokens) -> Tensor:
    hidden, z = table.embed(tokens.ids.to(table.device)), tokens.rows
    if (z is None) != (b is None):
        raise ValueError("the prompt was low-rank, so each token has to be, at the same sites")
    if z is None or b is None:
        return hidden
    if z.shape[1] != b.shape[1] or z.dtype != b.dtype:
        raise ValueError(
            f"z of shape {tuple(z.shape)} in {z.dtype}; the prompt's B has rank {b.shape[1]}, in "
            f"{b.dtype}"
        )
    return (hidden.to(z.dtype) + z.to(table.device) @ b.T).to(table.dtype)


def _check_factors(site: str, z: Tensor, b: Tensor, rows: tuple[int, int]) -> None:
    if z.dim() != 2 or b.dim() != 2 or z.shape[1] != b.shape[1] or z.dtype != b.dtype:
        raise RefusalError(
            f"{site}: z {tuple(z.shape)} in {z.dtype} and b {tuple(b.shape)} in {b.dtype} do not "
            "fit"
        )
    if (len(z), len(b)) != rows:
        raise RefusalError(f"{site}: z and b have {len(z)} and {len(b)} rows, {rows} are needed")


def _runs(is_image: Tensor) -> list[int]:
    """Lengths of runs of rows: tokens, image, tokens, image, …"""
    flags = is_image.to("cpu", torch.int8)
    edges = (flags.diff(prepend=flags.new_zeros(1)) != 0).nonzero().squeeze(1).tolist()
    return [end - start for start, end in pairwise([0, *edges, len(flags)])]


def _from_runs(runs: Sequence[int], count: int) -> Tensor:
    if len(runs) > count + 1:  # but for the first, none is empty
        raise RefusalError(f"{len(runs)} runs of tokens and images for {count} rows")
    if sum(runs) != count:
        raise RefusalError(f"runs of tokens and images of {sum(runs)} rows for {count}")
    kinds = torch.arange(len(runs)) % 2 == 1
    return kinds.repeat_interleave(torch.tensor(list(runs), dtype=torch.int64))
