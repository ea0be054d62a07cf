"""The low-rank exchange: frozen parts are sent once, then only what the adapters' ranks need.

h' = h + z Bᵀ with z = s · A h. The host has h: token embeddings from its own table, features of
pictures and sounds from its store. A step sends z (N·r) and B (d·r) and gets their gradients; the
client's autograd carries dL/dz on into A. The gradients are those of the plain exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from fednano_flwr.config import SITES
from fednano_flwr.exchange.at_host import HostMap
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
    at_site,
)
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb

TEXT = "text"


@dataclass(frozen=True)
class LowRankInputs(Inputs):
    """A batch without its embeddings: the host makes them from what it has.

    Attributes:
        token_ids: (N - n,) of the rows that are tokens, in order.
        sites: (N,) int8.
        keys: of the questions' features, in order.
        z: (n, R) of each site that has an adapter.
        b: (d, R) likewise.
    """

    FIELD: ClassVar[str] = "low_rank"
    HAS_HIDDEN: ClassVar[bool] = True
    token_ids: Tensor
    sites: Tensor
    keys: tuple[bytes, ...]
    z: dict[str, Tensor]
    b: dict[str, Tensor]
    layout: Layout

    @classmethod
    def of(cls, batch: AdaptedBatch) -> LowRankInputs:
        tokens = batch.token_ids[at_site(batch.sites, TEXT)]
        keys = tuple(feature.key for feature in batch.features)
        layout = batch.layout._replace(token_ids=None, deep=None)  # the host makes them
        return cls(tokens, batch.sites, keys, batch.z, batch.b, layout)

    @staticmethod
    def token_rows(tokens: AdaptedBatch) -> Tensor | None:
        return tokens.z.get(TEXT)

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
        sites, lengths = _runs(self.sites)
        sent.run_sites.extend(sites)
        sent.run_lengths.extend(lengths)
        sent.features.extend(self.keys)
        for site in sorted(self.z):
            factors = sent.factors.add(site=site)
            codec.fill(factors.z, self.z[site], dtype)
            codec.fill(factors.b, self.b[site], dtype)

    @classmethod
    def read(cls, message: pb.Inputs, layout: Layout, info: LLMInfo) -> LowRankInputs:
        sent, count = message.low_rank, layout.tokens
        sites = _from_runs(sent.run_sites, sent.run_lengths, count)
        rows = {site: int(at_site(sites, site).sum()) for site in SITES}
        tokens = torch.tensor(list(sent.token_ids), dtype=torch.int64)
        if len(tokens) != rows[TEXT]:
            raise RefusalError(f"{len(tokens)} token ids for {rows[TEXT]} rows of text")
        if len(tokens) and int(tokens.max()) >= info.vocabulary:
            raise RefusalError(f"token {int(tokens.max())} is out of range")
        if len(sent.features) > count - rows[TEXT]:
            raise RefusalError(f"{len(sent.features)} features for {count - rows[TEXT]} rows")
        for key in sent.features:
            codec.check_key(key)
        z: dict[str, Tensor] = {}
        b: dict[str, Tensor] = {}
        for factors in sent.factors:
            site = factors.site
            if site in z or site not in SITES:
                raise RefusalError(f"factors of site {site[:32]!r}: once each, {', '.join(SITES)}")
            z[site], b[site] = codec.decode(factors.z), codec.decode(factors.b)
            _check_factors(site, z[site], b[site], (rows[site], info.hidden_size))
        return cls(tokens, sites, tuple(sent.features), z, b, layout)

    @property
    def _map(self) -> HostMap | None:
        return self.at_host.map if self.at_host else None

    def embed(
        self, table: TokenTable, features: Callable[[bytes], Tensor | None], trains: bool
    ) -> Embedded:
        hidden, layout = self._frozen(table, features)
        leaf = self._with(lambda v: v.detach().to(hidden.device).requires_grad_(trains))
        with torch.set_grad_enabled(trains):  # the caller may be inside another graph's forward
            whole = adapted(hidden, self.sites.to(hidden.device), leaf.z, leaf.b, self._map)

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
        found = [rows for key in self.keys if (rows := kept[key]) is not None]
        sites = self.sites.to(table.device)
        size = (len(sites), table.hidden_size)
        hidden = torch.empty(size, device=table.device, dtype=table.dtype)
        is_text = at_site(sites, TEXT)
        hidden[is_text] = table.embed(self.token_ids.to(table.device))
        places = torch.cat([at_site(sites, s).nonzero()[:, 0] for s in SITES if s != TEXT])
        count = sum(map(len, found))
        if count != len(places):
            raise ValueError(f"{count} features for {len(places)} rows")
        layout = self.layout
        if table.reads_ids:
            ids = torch.zeros(size[:1], dtype=torch.int64)
            ids[is_text.cpu()] = self.token_ids
            layout = layout._replace(token_ids=ids)
        if found:
            rows = torch.cat([rows.to(hidden) for rows in found])
            hidden[places], deep = rows.tensor_split([table.hidden_size], dim=1)
            layout = layout._replace(deep=deep if deep.shape[1] else None)
        return hidden, layout

    def token_embedder(self, table: TokenTable) -> Callable[[NewTokens], Tensor]:
        b = self.b.get(TEXT)
        return partial(_embed_tokens, table, None if b is None else b.to(table.device), self._map)


class LowRankExchange(Exchange):
    """Sends `LowRankInputs`."""

    inputs = LowRankInputs


@torch.no_grad()
def _embed_tokens(
    table: TokenTable, b: Tensor | None, map: HostMap | None, tokens: NewTokens
) -> Tensor:
    hidden, z = table.embed(tokens.ids.to(table.device)), tokens.rows
    if (z is None) != (b is None):
        raise ValueError("the prompt was low-rank, so each token has to be, at the same sites")
    text = torch.full((len(hidden),), SITES.index(TEXT), device=hidden.device)
    if z is None or b is None:
        return adapted(hidden, text, {}, {}, map)
    if z.shape[1] != b.shape[1] or z.dtype != b.dtype:
        raise ValueError(
            f"z of shape {tuple(z.shape)} in {z.dtype}; the prompt's B has rank {b.shape[1]}, in "
            f"{b.dtype}"
        )
    return adapted(hidden, text, {TEXT: z.to(table.device)}, {TEXT: b}, map)


def _check_factors(site: str, z: Tensor, b: Tensor, rows: tuple[int, int]) -> None:
    if z.dim() != 2 or b.dim() != 2 or z.shape[1] != b.shape[1] or z.dtype != b.dtype:
        raise RefusalError(
            f"{site}: z {tuple(z.shape)} in {z.dtype} and b {tuple(b.shape)} in {b.dtype} do not "
            "fit"
        )
    if (len(z), len(b)) != rows:
        raise RefusalError(f"{site}: z and b have {len(z)} and {len(b)} rows, {rows} are needed")


def _runs(sites: Tensor) -> tuple[list[int], list[int]]:
    """Sites and lengths of runs of rows."""
    found, lengths = sites.cpu().unique_consecutive(return_counts=True)
    return found.tolist(), lengths.tolist()


def _from_runs(sites: Sequence[int], lengths: Sequence[int], count: int) -> Tensor:
    if not len(sites) == len(lengths) <= count:
        raise RefusalError(f"{len(sites)} sites and {len(lengths)} runs for {count} rows")
    if sum(lengths) != count:
        raise RefusalError(f"runs of {sum(lengths)} rows for {count}")
    if max(sites, default=0) >= len(SITES):
        raise RefusalError(f"site {max(sites)}: there are {', '.join(SITES)}")
    found = torch.tensor(list(sites), dtype=torch.int8)
    return found.repeat_interleave(torch.tensor(list(lengths), dtype=torch.int64))
