"""NanoEdge: the client's half of the model with its NanoAdapters."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

from fednano_flwr.adapters.site import constant_factors, low_rank
from fednano_flwr.config import SITES
from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.feature_cache import READ, Features
from fednano_flwr.edge.questions import Question, lengths
from fednano_flwr.exchange.at_host import factor_key
from fednano_flwr.exchange.protocol import (
    AdaptedBatch,
    ConnectorInput,
    Feature,
    FrozenBatch,
    Layout,
    NamedFactors,
    at_site,
)
from fednano_flwr.models.edge_half import EdgeHalf, TokenTable, VisionInputs

TEXT = SITES.index("text")
FACTORS = 16
"""Whose digests are kept."""


class NanoEdge(nn.Module):
    """Embeds questions: frozen features, adapted by `h' = h + s·B(A h)` at each site.

    The two steps can be taken apart: `embed` a batch in one thread while another is adapted and
    sent. `embed` may be called from several threads; they take turns.

    Args:
        frozen: vision encoder and connector, shared by all clients of a process.
        tokens: the token embeddings that this client holds.
        adapters: from `build_adapters`; moved to the frozen half's device.
        encoder: with the model's processor.
        cache: features computed before, by `QuestionEncoder.media_key`.
        names_factors: for an exchange whose host has the frozen embeddings: constant factors are
            named, and z and B that follow from them are left out.
        connector_at_host: features go with what their connector reads, where that is smaller.

    Attributes:
        encoded: how many questions' pictures, or sounds, went through their encoder.
        encoder_seconds: how long that took, preprocessing included; part of it while the host
            worked.
    """

    def __init__(
        self,
        frozen: EdgeHalf,
        tokens: TokenTable,
        adapters: PeftModel,
        encoder: QuestionEncoder,
        cache: Features | None = None,
        names_factors: bool = False,
        connector_at_host: bool = False,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        self.tokens = tokens
        self.adapters = adapters.to(frozen.device)
        self.encoder = encoder
        self.cache: Features = {} if cache is None else cache
        self.encoded = 0
        self.encoder_seconds = 0.0
        self.names_factors = names_factors
        self._connector_at_host = connector_at_host
        # Each with the value that it is of: no other one can come to lie where that does.
        self._factors: dict[tuple[int, int], tuple[Tensor, Feature]] = {}
        self._turn = threading.Lock()  # over cache and counters

    def forward(
        self, questions: Sequence[Question], endings: Sequence[tuple[int, ...]] | None = None
    ) -> AdaptedBatch:
        """Both steps: `adapt(embed(questions, endings))`."""
        return self.adapt(self.embed(questions, endings))

    @torch.no_grad()
    def embed(
        self, questions: Sequence[Question], endings: Sequence[tuple[int, ...]] | None = None
    ) -> FrozenBatch:
        """Frozen embeddings of a batch; the same whenever and in whichever thread it is called.

        Args:
            endings: tokens after each prompt: of its answer in training, or what was generated.

        Raises:
            MissingRowError: a token's embedding is not among those that this client holds.
            ValueError: features and their placeholders do not agree.
            DataError, FileNotFoundError: a picture or a sound cannot be read.
            FloatingPointError: its features are not finite.
        """
        ids, sites = _laid_out(questions, endings, self.frozen.placeholders)
        ids, sites = ids.to(self.frozen.device), sites.to(self.frozen.device)
        is_text = at_site(sites, "text")
        read = torch.where(at_site(sites, "image"), ids, self.frozen.text_ids(ids))
        text = self.tokens(read[is_text])
        hidden = text.new_empty(len(ids), self.frozen.hidden_size)
        hidden[is_text] = text
        layout = self._layout(questions, ids.cpu(), lengths(questions, endings))
        if self.frozen.reads_ids:
            layout = layout._replace(token_ids=read.cpu())
        features: list[Feature] = []
        for site in self.frozen.placeholders:
            with self._turn:
                own = self._features(questions, site)
            places, count = at_site(sites, site), sum(len(feature.rows) for feature in own)
            if count != int(places.sum()):
                raise ValueError(
                    f"{site}: there are {count} features, the prompts ask for {int(places.sum())}"
                )
            if own:
                rows = torch.cat([feature.rows for feature in own])
                hidden[places], deep = rows.tensor_split([self.frozen.hidden_size], dim=1)
                if self.frozen.deep_size:
                    layout = layout._replace(deep=deep)
            features += own
        return FrozenBatch(hidden, sites, read, tuple(features), layout)

    @torch.no_grad()
    def next_tokens(
        self, questions: Sequence[Question], endings: Sequence[tuple[int, ...]]
    ) -> AdaptedBatch:
        """The last token of what was generated after each prompt, as a batch of their own.

        Raises:
            MissingRowError: an embedding is not among those that this client holds.
        """
        last = torch.tensor([ending[-1] for ending in endings]).to(self.frozen.device)
        last = self.frozen.text_ids(last)
        positions = []
        for question, ending in zip(questions, endings, strict=True):
            ids = torch.cat([question.ids, torch.tensor(ending)])
            own = self.frozen.position_ids(ids, len(question.ids), question.geometry)
            positions.append(None if own is None else own[:, -1:])
        frozen = FrozenBatch(
            hidden=self.tokens(last),
            sites=torch.full_like(last, TEXT, dtype=torch.int8),
            token_ids=last,
            features=(),
            layout=Layout((1,) * len(last), _joined(positions)),
        )
        return self.adapt(frozen)

    def adapt(self, batch: FrozenBatch) -> AdaptedBatch:
        """What the adapters add to a batch, differentiable and, in training, with dropout."""
        z: dict[str, Tensor] = {}
        b: dict[str, Tensor] = {}
        named: dict[str, NamedFactors] = {}
        for site in SITES:
            where = at_site(batch.sites, site)
            if not where.any():
                continue
            known = self._named(site) if self.names_factors else None
            if known is not None:
                named[site] = known
                if known.a is not None and known.b is not None:
                    continue
            factors = low_rank(self.adapters, site, batch.hidden[where])
            if factors is None:
                continue
            if known is None or known.a is None:
                z[site] = factors[0]
            if known is None or known.b is None:
                b[site] = factors[1]
        return AdaptedBatch(**vars(batch), z=z, b=b, named=named)

    def _named(self, site: str) -> NamedFactors | None:
        """The constant factors of a site; None where there are none."""
        found = constant_factors(self.adapters, site)
        if found is None or (found[0] is None and found[1] is None):
            return None
        a, b, scale = found
        return NamedFactors(self._factor(a), None if b is None else self._factor(b, True), scale)

    def _factor(self, value: Tensor | None, turned: bool = False) -> Feature | None:
        """A factor as it is named; its digest is made once for each of its values."""
        if value is None:
            return None
        version = value.data_ptr(), value._version
        if version not in self._factors:
            if len(self._factors) >= FACTORS:
                self._factors.clear()
            rows = value.T.contiguous() if turned else value
            self._factors[version] = value, Feature(factor_key(rows), rows)
        return self._factors[version][1]

    def _layout(self, questions: Sequence[Question], ids: Tensor, sizes: tuple[int, ...]) -> Layout:
        """With positions and types of all tokens, where the language model needs them."""
        positions, types = [], []
        for question, own in zip(questions, ids.split(sizes), strict=True):
            prompt = len(question.ids)
            positions.append(self.frozen.position_ids(own, prompt, question.geometry))
            types.append(self.frozen.token_type_ids(own, prompt))
        return Layout(sizes, _joined(positions), _joined(types))

    def _features(self, questions: Sequence[Question], site: str) -> list[Feature]:
        """Frozen features of the questions that have pictures, or sounds, in order."""
        samples = [question.sample for question in questions if site in question.sample.media]
        keys = [self.encoder.media_key(sample, site) for sample in samples]
        wanted = dict(zip(keys, samples, strict=True))
        known = {key: found for key in wanted if (found := self._cached(key, site)) is not None}
        missing = [key for key in wanted if key not in known]
        for key in missing:
            started = time.perf_counter()
            inputs = self.encoder.vision_inputs(wanted[key])
            known[key] = self._computed(key, site, inputs)
            if not known[key].rows.isfinite().all():
                raise FloatingPointError(
                    f"question {wanted[key].uid}: the {site} encoder's features are not finite in "
                    f'{self.frozen.dtype}: set edge.dtype to "bfloat16" or "float32"'
                )
            self.encoder_seconds += time.perf_counter() - started
            self.encoded += 1
            if self.encoder.media_key(wanted[key], site) == key:  # no file changed meanwhile
                self._keep(key, known[key])
        return [known[key] for key in keys]

    def _computed(self, key: str, site: str, inputs: VisionInputs) -> Feature:
        if not self._connector_at_host:
            return Feature(feature_key(key), self.frozen.features(site, inputs))
        rows, read = self.frozen.features_and_read(site, inputs)
        if read is None or read.numel() >= rows.numel():
            return Feature(feature_key(key), rows)
        return Feature(feature_key(key), rows, ConnectorInput(site, read))

    def _cached(self, key: str, site: str) -> Feature | None:
        """Computed before, with what the connector read where that is to be sent."""
        read = None
        if self._connector_at_host:
            found = self.cache.get(key + READ)
            if found is None:
                return None
            read = ConnectorInput(site, found) if found.numel() else None
        rows = self.cache.get(key)
        return None if rows is None else Feature(feature_key(key), rows, read)

    def _keep(self, key: str, feature: Feature) -> None:
        self.cache[key] = feature.rows
        if self._connector_at_host:
            self.cache[key + READ] = feature.read.values if feature.read else torch.empty(0)


def feature_key(key: str) -> bytes:
    """What a client calls features before the host: a digest of what they were made from."""
    return hashlib.sha256(key.encode()).digest()[:16]


def _laid_out(
    questions: Sequence[Question],
    endings: Sequence[tuple[int, ...]] | None,
    placeholders: Mapping[str, Sequence[int]],
) -> tuple[Tensor, Tensor]:
    """Ids (N,) of a batch laid one after another, and their sites (N,): none in an ending."""
    ids, sites = [], []
    for question, ending in zip(questions, endings or [()] * len(questions), strict=True):
        ids += [question.ids, torch.tensor(ending, dtype=torch.int64)]
        own = torch.full((len(question.ids) + len(ending),), TEXT, dtype=torch.int8)
        for site, tokens in placeholders.items():
            placed = torch.isin(question.ids, torch.tensor(tokens))
            own[: len(question.ids)][placed] = SITES.index(site)
        sites.append(own)
    return torch.cat(ids), torch.cat(sites)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known, dim=-1) if known else None
