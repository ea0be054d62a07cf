"""The low-rank exchange: frozen parts are sent once, then only what the adapters' ranks need.

h' = h + z Bᵀ with z = s · A h. The host has h: token embeddings from its own table, features of
pictures and sounds from its store. A step sends z (N·r) and B (d·r) and gets their gradients; the
client's autograd carries dL/dz on into A. The gradients are those of the plain exchange.

A factor that is constant is named: the host has it from the ServerApp. Where A is, no z goes up,
since the host makes it; where B is, no B. So a round that trains one factor alone sends and gets
half, and scoring sends token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fednano_flwr.config import SITES
from fednano_flwr.exchange.at_host import FACTOR, HostMap
from fednano_flwr.exchange.errors import FeaturesMissingError, RefusalError
from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.protocol import (
    AdaptedBatch,
    Embedded,
    Feature,
    Gradient,
    Inputs,
    Layout,
    LLMInfo,
    NewTokens,
    TokenTable,
    adapted,
    at_site,
)
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb

TEXT = "text"


class Keys(NamedTuple):
    """Keys of a site's named factors, b"" where one is sent; and the scale s."""

    a: bytes
    b: bytes
    scale: float


UNNAMED = Keys(b"", b"", 0.0)


@dataclass(frozen=True)
class LowRankInputs(Inputs):
    """A batch without its embeddings: the host makes them from what it has.

    Attributes:
        token_ids: (N - n,) of the rows that are tokens, in order.
        sites: (N,) int8.
        keys: of the questions' features, in order.
        z: (n, R) of each site that has an adapter, unless its A is named.
        b: (d, R) likewise, unless its B is named.
        named: of a site, what is named.
    """

    FIELD: ClassVar[str] = "low_rank"
    HAS_HIDDEN: ClassVar[bool] = True
    token_ids: Tensor
    sites: Tensor
    keys: tuple[bytes, ...]
    z: dict[str, Tensor]
    b: dict[str, Tensor]
    layout: Layout
    named: dict[str, Keys] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: AdaptedBatch) -> LowRankInputs:
        tokens = batch.token_ids[at_site(batch.sites, TEXT)]
        keys = tuple(feature.key for feature in batch.features)
        layout = batch.layout._replace(token_ids=None, deep=None)  # the host makes them
        named = {s: Keys(_key(n.a), _key(n.b), n.scale) for s, n in batch.named.items()}
        return cls(tokens, batch.sites, keys, batch.z, batch.b, layout, named)

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
        for site in sorted({*self.z, *self.b, *self.named}):
            factors, named = sent.factors.add(site=site), self.named.get(site, UNNAMED)
            if site in self.z:
                codec.fill(factors.z, self.z[site], dtype)
            else:
                factors.a, factors.scale = named.a, named.scale
            if site in self.b:
                codec.fill(factors.b, self.b[site], dtype)
            else:
                factors.b_key = named.b

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
        named: dict[str, Keys] = {}
        seen = set[str]()
        for factors in sent.factors:
            site = factors.site
            if site in seen or site not in SITES:
                raise RefusalError(f"factors of site {site[:32]!r}: once each, {', '.join(SITES)}")
            seen.add(site)
            if factors.HasField("z"):
                z[site] = codec.decode(factors.z)
            if factors.HasField("b"):
                b[site] = codec.decode(factors.b)
            named_here = _read_keys(site, factors)
            if named_here.a or named_here.b:
                named[site] = named_here
            _check_factors(site, z.get(site), b.get(site), (rows[site], info.hidden_size))
        return cls(tokens, sites, tuple(sent.features), z, b, layout, named)

    @property
    def _map(self) -> HostMap | None:
        return self.at_host.map if self.at_host else None

    def embed(
        self, table: TokenTable, features: Callable[[bytes], Tensor | None], trains: bool
    ) -> Embedded:
        hidden, layout = self._frozen(table, features)
        leaf = self._with(lambda v: v.detach().to(hidden.device).requires_grad_(trains))
        sites = self.sites.to(hidden.device)
        with torch.set_grad_enabled(trains):  # the caller may be inside another graph's forward
            z, b = dict(leaf.z), dict(leaf.b)
            for site in self.named:
                constant = self._constant(site, table, features)
                if constant.a is not None:
                    z[site] = constant.z(hidden[at_site(sites, site)])
                if constant.b is not None:
                    b[site] = constant.b
                # What is named is float32, and what is sent may be less.
                dtype = torch.promote_types(z[site].dtype, b[site].dtype)
                z[site], b[site] = z[site].to(dtype), b[site].to(dtype)
            whole = adapted(hidden, sites, z, b, self._map)

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
        factors = (key for one in self.named.values() for key in (one.a, one.b) if key)
        missing = tuple(key for key in self.keys if kept[key] is None)
        missing += tuple(key for key in factors if features(key) is None)
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

    def _constant(
        self, site: str, table: TokenTable, features: Callable[[bytes], Tensor | None]
    ) -> _Constant:
        """The named factors of a site, on the table's device; a site's two fit together."""
        keys = self.named[site]
        a, b = (_factor(key, table, features) for key in (keys.a, keys.b))
        ranks = {
            part.shape[at]
            for part, at in ((a, 0), (b, 0), (self.z.get(site), 1), (self.b.get(site), 1))
            if part is not None
        }
        if len(ranks) > 1:
            raise ValueError(f"{site}: factors of ranks {sorted(ranks)} do not fit")
        return _Constant(a, None if b is None else b.T.contiguous(), keys.scale)

    def token_embedder(
        self, table: TokenTable, features: Callable[[bytes], Tensor | None]
    ) -> Callable[[NewTokens], Tensor]:
        sent = self.b.get(TEXT)
        b, a = None if sent is None else sent.to(table.device), None
        if TEXT in self.named:
            a = self._constant(TEXT, table, features)
            b = a.b if b is None else b
        return partial(_embed_tokens, table, a, b, self._map)


class LowRankExchange(Exchange):
    """Sends `LowRankInputs`."""

    inputs = LowRankInputs


class _Constant(NamedTuple):
    """What a batch names, as the host has it: A (R, d), B (d, R), s."""

    a: Tensor | None
    b: Tensor | None
    scale: float

    @torch.no_grad()
    def z(self, hidden: Tensor) -> Tensor:
        """s · A h (n, R) of frozen embeddings (n, d), as the client computes it."""
        assert self.a is not None
        return self.scale * F.linear(hidden.to(self.a.dtype), self.a)


def _factor(
    key: bytes, table: TokenTable, features: Callable[[bytes], Tensor | None]
) -> Tensor | None:
    """A (R, d), or Bᵀ; None where none is named."""
    if not key:
        return None
    found = features(key)
    if found is None:
        raise FeaturesMissingError((key,))
    return found.to(table.device)


def _key(factor: Feature | None) -> bytes:
    return b"" if factor is None else factor.key


def _read_keys(site: str, factors: pb.Factors) -> Keys:
    """What is named of a site, in the place of what is not sent."""
    for sent, key in (("z", factors.a), ("b", factors.b_key)):
        if factors.HasField(sent) == bool(key):
            raise RefusalError(f"{site}: {sent} has to be sent, or its factor named")
        if key:
            codec.check_key(key)
            if not key.startswith(FACTOR):
                raise RefusalError(f"{site}: the key of {sent} is no factor's")
    if factors.a and not isfinite(factors.scale):
        raise RefusalError(f"{site}: scale {factors.scale}")
    return Keys(factors.a, factors.b_key, factors.scale)


@torch.no_grad()
def _embed_tokens(
    table: TokenTable,
    constant: _Constant | None,
    b: Tensor | None,
    map: HostMap | None,
    tokens: NewTokens,
) -> Tensor:
    hidden, z = table.embed(tokens.ids.to(table.device)), tokens.rows
    if constant is not None and b is not None:
        if z is None and constant.a is not None:
            z = constant.z(hidden)
        if z is not None:
            dtype = torch.promote_types(z.dtype, b.dtype)
            z, b = z.to(dtype), b.to(dtype)
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


def _check_factors(site: str, z: Tensor | None, b: Tensor | None, rows: tuple[int, int]) -> None:
    """Those that are sent: matrices of so many rows, and of one rank and dtype."""
    sent = [part for part in (z, b) if part is not None]
    if any(part.dim() != 2 for part in sent) or len({(p.shape[-1], p.dtype) for p in sent}) > 1:
        named = (("z", z), ("b", b))
        parts = (f"{name} {tuple(p.shape)} in {p.dtype}" for name, p in named if p is not None)
        raise RefusalError(f"{site}: {' and '.join(parts)} do not fit")
    for name, part, needed in (("z", z, rows[0]), ("b", b, rows[1])):
        if part is not None and len(part) != needed:
            raise RefusalError(f"{site}: {name} has {len(part)} rows, {needed} are needed")


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
