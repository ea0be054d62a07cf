"""The frozen language model: losses and gradients for clients; beside it, their sessions."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fednano_flwr.exchange.at_host import FACTOR, AtHost, HostLora, SessionResult, Turn
from fednano_flwr.exchange.errors import CacheGoneError, HostBusyError, RefusalError
from fednano_flwr.exchange.protocol import (
    NOT_FINITE_ADVICE,
    ConnectorInput,
    Embedded,
    Feature,
    Generated,
    Gradient,
    Inputs,
    Layout,
    LLMInfo,
    LLMService,
    NewTokens,
    Room,
)
from fednano_flwr.llm.caches import Answers, Caches, Place
from fednano_flwr.llm.client_state import Graph, Graphs
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.jobs import JOBS, Job, ReadJob, Sample, StepJob
from fednano_flwr.llm.sessions import Session, Sessions
from fednano_flwr.models.connector import HostConnectors
from fednano_flwr.models.llm_half import LLMHalf
from fednano_flwr.models.lora import digest_of

log = logging.getLogger(__name__)


class HostMemoryError(ValueError):
    """A request does not fit the host's memory; repeating it does not help."""

    def __init__(self, what: str, error: BaseException | str) -> None:
        super().__init__(what, str(error).splitlines()[0])

    def __str__(self) -> str:
        what, reason = self.args
        return (
            f"the LLM host has too little memory for {what} ({reason}); its operator can set "
            "llm.checkpointing"
        )


class FrozenLLM(LLMService):
    """An `LLMService` that computes in this process, one call at a time.

    Every call is a function of its arguments, and of features that it names and that clients sent
    before: weights have no gradients, and the head is computed at the asked positions only. Samples
    are padded on the right, where a causal model cannot see the padding, so a sample's result does
    not depend on its neighbours' lengths.

    Args:
        features: kept for low-rank batches.
        graphs: kept between `forward` and `backward`.
        caches: room for answers under way.
        sessions: clients' training of the LoRA inside; None where there is none.
        lora: that is computed with where a call brings none.
        connectors: that make features of what clients send of them; None where clients do.
    """

    def __init__(
        self,
        half: LLMHalf,
        max_tokens: int = 65536,
        features: FeatureStore | None = None,
        graphs: Graphs | None = None,
        caches: Caches | None = None,
        sessions: Sessions | None = None,
        lora: HostLora | None = None,
        connectors: HostConnectors | None = None,
    ) -> None:
        self._half = half
        self._connectors = connectors
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        self._told_of_memory = False
        self.features = FeatureStore(2**30) if features is None else features
        self.graphs = Graphs() if graphs is None else graphs
        self.caches = Caches(max_tokens=max_tokens) if caches is None else caches
        self.sessions = sessions
        self._lora, self._digest = lora, digest_of(lora.values if lora else {})

    def describe(self) -> LLMInfo:
        return LLMInfo(
            model=self._half.model,
            fingerprint=self._half.fingerprint,
            hub_id=self._half.hub_id,
            hidden_size=self._half.hidden_size,
            vocabulary=self._half.vocabulary,
            dtype=str(self._half.dtype).removeprefix("torch."),
            max_tokens=self._max_tokens,
            parameters=self._half.size,
            revision=self._half.revision,
            deep_size=self._half.deep_size,
            lora=self._digest,
            connector=self._connectors.digest if self._connectors else "",
        )

    def begin(self, part: AtHost | None, owner: bytes = b"") -> int:
        """See `LLMService.begin`."""
        if part is None or part.lora is None:
            raise RefusalError("no LoRA inside the language model is trained now (adapter.sites)")
        with self._lock:
            return self._sessions.begin(owner, part.lora)

    def end(self, turn: Turn, owner: bytes = b"") -> SessionResult:
        """See `LLMService.end`."""
        with self._lock:
            return self._sessions.end(owner, turn)

    def forget_sessions(self) -> None:
        """See `LLMService.forget_sessions`."""
        with self._lock:
            if self.sessions is not None:
                self.sessions.clear()

    @property
    def _sessions(self) -> Sessions:
        if self.sessions is None:
            raise RefusalError("this LLM host trains no LoRA (adapter.sites)")
        return self.sessions

    def forward(self, inputs: Inputs, positions: Tensor, owner: bytes = b"") -> tuple[int, Tensor]:
        """See `LLMService.forward`."""
        with self._lock:
            self.graphs.make_room(owner)
            job = Job[Any](inputs, positions, owner)
            job.embedded = embedded = self._embed(inputs, owner, trains=True)
            samples = job.samples()
            rows = embedded.rows.requires_grad_()
            session = self._prepare(inputs, owner, trains=True)
            try:
                with torch.enable_grad():
                    logits = self._logits([sample.rows(rows) for sample in samples], samples)
                    order = torch.cat([sample.asked for sample in samples]).argsort()
                    logits = logits[order.to(logits.device)]
            except torch.OutOfMemoryError as error:
                what = f"a graph of {inputs.layout.tokens} tokens: use a smaller batch-size"
                raise HostMemoryError(what, error) from error
            trained = list(session.trained.values()) if session else ()
            graph = Graph(embedded, rows, logits, inputs.turn if session else None, trained)
            number = self.graphs.keep(owner, graph)
        return number, logits.detach().cpu()

    def backward(self, graph: int, gradient: Tensor, owner: bytes = b"") -> Gradient:
        """See `LLMService.backward`."""
        with self._lock:
            kept = self.graphs.take(owner, graph)
            if gradient.shape != kept.logits.shape:
                raise ValueError(
                    f"a gradient of shape {tuple(gradient.shape)} for logits of shape "
                    f"{tuple(kept.logits.shape)}"
                )
            session = self._sessions.turn(owner, kept.turn) if kept.turn else None
            rows, *of_session = _gradients(
                kept.logits, [kept.rows, *kept.trained], gradient.to(kept.logits)
            )
            found = kept.embedded.gradient(rows)
            if session is None or kept.turn is None:
                return found
            return (*found, session.computed(kept.turn, of_session))

    def reserve(self, tokens: int, owner: bytes = b"") -> Room:
        """See `LLMService.reserve`; waits for no pass."""
        return self.caches.reserve(owner, tokens)

    def prefill(self, cache: int, inputs: Inputs, owner: bytes = b"") -> Generated:
        """See `LLMService.prefill`."""
        with self._lock:
            embedded = self._embed(inputs, owner, trains=False)
            with self.caches.use(owner, cache, begun=False) as place:
                lengths = torch.tensor(inputs.layout.lengths)
                width = int(lengths.max())
                place.check(len(lengths), width)
                embedder = inputs.token_embedder(self._half, self._kept(inputs, owner))
                lora = self._use(inputs)
                answers = Answers(self._half.new_cache(), width - lengths, 0, embedder, lora)
                parts = list(embedded.rows.split(inputs.layout.lengths))
                embeds = pad_sequence(parts, batch_first=True, padding_side="left")
                beside = self._beside(embedded.layout.split(), "left")
                tokens = self._read(place, answers, embeds, beside)
                place.answers = answers
            return Generated(place.number, tokens)

    def decode(self, cache: int, tokens: NewTokens, owner: bytes = b"") -> Generated:
        """See `LLMService.decode`."""
        with self._lock:
            with self.caches.use(owner, cache) as place:
                answers = place.answers
                assert answers is not None
                before = len(answers.pads)
                answers.go_on_with(tokens.sequences)
                place.tokens = place.tokens // before * len(answers.pads)
                place.check(len(answers.pads), answers.width + 1)
                self._half.check_length(answers.width + 1 - int(answers.pads.min()))
                self._half.check_axes(tokens.position_ids)
                ids = tokens.ids if self._half.reads_ids else None
                self._half.check_ids(ids)
                layout = Layout((1,) * len(tokens.ids), tokens.position_ids, token_ids=ids)
                embeds = answers.embedder(tokens)[:, None]
                self._use_lora(answers.lora)
                beside = self._beside(layout.split(), "left")
                found = self._read(place, answers, embeds, beside)
            return Generated(place.number, found)

    def release(self, cache: int, owner: bytes = b"") -> None:
        """See `LLMService.release`; waits for no pass."""
        self.caches.release(owner, cache)

    def _read(
        self,
        place: Place,
        answers: Answers,
        embeds: Tensor,
        beside: Mapping[str, Tensor],
    ) -> Tensor:
        """The likeliest tokens (B,) after further positions (B, T, d) of these sequences."""
        count, width, _ = embeds.shape
        reason = ""
        try:
            with torch.no_grad():
                logits = self._half.next_logits(
                    embeds, answers.pads, answers.cache, answers.width, beside
                )
        except torch.OutOfMemoryError as error:
            reason = str(error)
        if reason:
            if self.caches.shrink(place, count):
                raise CacheGoneError("there was no memory for it beside the others")
            raise HostMemoryError(f"an answer after {answers.width + width} tokens", reason)
        answers.width += width
        finite = logits.isfinite().all(1).tolist()
        if not all(finite):
            raise ValueError(
                f"the logits after sequence {finite.index(False) + 1} of {count} are not finite: "
                f"{NOT_FINITE_ADVICE}"
            )
        return logits.argmax(1).cpu()

    def expire(self) -> None:
        """Forget graphs and caches whose time is over."""
        with self._lock:
            self.graphs.expire()
            self.caches.expire()

    def lacks(self, keys: Sequence[bytes], owner: bytes = b"") -> list[bytes]:
        """See `LLMService.lacks`; waits for no pass, and no entry is read from disk."""
        return [key for key in keys if not self.features.has(owner, key)]

    def keep_features(self, features: Sequence[Feature], owner: bytes = b"") -> None:
        """See `LLMService.keep_features`; those of pictures are kept in the host's dtype."""
        for feature in features:
            dtype = torch.float32 if feature.key.startswith(FACTOR) else self._half.dtype
            rows = self._made(feature.read) if feature.read else feature.rows
            kept = rows.detach().to(self._half.device, dtype)
            self.features.put(owner, feature.key, kept)

    def _made(self, read: ConnectorInput) -> Tensor:
        """Features (n, d) of what a connector reads.

        Raises:
            HostBusyError: there is no memory for it now.
        """
        if self._connectors is None:
            raise RefusalError('this LLM host has no connector (exchange.connector-at = "client")')
        try:
            rows = self._connectors.features(*read)
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
            raise HostBusyError(f"no memory for the {read.site} connector ({reason})") from error
        if rows.shape[1] != self._half.hidden_size or self._half.deep_size:
            raise RefusalError(f"the connector of site {read.site} makes {rows.shape[1]} numbers")
        if len(rows) > self._max_tokens:
            raise RefusalError(
                f"features of {len(rows)} rows; a request holds {self._max_tokens} (llm.max-tokens)"
            )
        return rows

    def serve(self, samples: Sequence[Sample]) -> None:
        """Serve samples of one or several requests of one layout in one pass.

        A request that fails gets its own error. A pass that does not fit the device's memory is
        split.
        """
        with self._lock:
            ready = [sample for sample in samples if self._is_ready(sample.job)]
            if ready:
                self._serve_within_memory(ready)

    def _embed(self, inputs: Inputs, owner: bytes, trains: bool) -> Embedded:
        """Input embeddings of a batch.

        Raises:
            FeaturesMissingError: the owner has to send image features first.
            ValueError: the model cannot read the batch.
        """
        embedded = inputs.embed(self._half, self._kept(inputs, owner), trains)
        self._half.check(*embedded.layout)
        return embedded

    def _kept(self, inputs: Inputs, owner: bytes) -> Callable[[bytes], Tensor | None]:
        """Features and factors by their keys: of the owner, or of the phase."""
        factors = inputs.at_host.factors if inputs.at_host else {}

        def find(key: bytes) -> Tensor | None:
            found = factors.get(key)
            return self.features.get(owner, key) if found is None else found

        return find

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        """Answer one of the calls that are jobs, alone."""
        job = JOBS[method](*arguments, owner)
        self.serve(job.samples())
        return job.future.result()

    def _is_ready(self, job: Job[Any]) -> bool:
        """Whether the request has its embeddings and has not failed."""
        try:
            if job.embedded is None and not job.future.done():
                job.embedded = self._embed(job.inputs, job.owner, job.trains)
            if not job.future.done():
                job.session = self._prepare(job.inputs, job.owner, job.trains)
        except Exception as error:
            job.fail(error)
        return not job.future.done()

    def _prepare(self, inputs: Inputs, owner: bytes, trains: bool) -> Session | None:
        """Have the language model compute with the LoRA of a batch; returns its session, if any."""
        if inputs.turn is not None and trains:
            return self._sessions.turn(owner, inputs.turn)
        self._use(inputs)
        return None

    def _use(self, inputs: Inputs) -> HostLora | None:
        """Compute with the LoRA that a batch brings, or with the host's own."""
        lora = inputs.at_host.lora if inputs.at_host else None
        return self._use_lora(lora or self._lora)

    def _use_lora(self, lora: HostLora | None) -> HostLora | None:
        if lora is not None:
            self._sessions.use(lora)
        elif self.sessions is not None:
            raise RefusalError("this call brings no LoRA, and the language model needs one")
        return lora

    def _serve_within_memory(self, samples: Sequence[Sample]) -> None:
        try:
            self._serve_together(samples)
            return
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
        except Exception as error:
            for sample in samples:
                sample.job.fail(error)
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(samples) == 1:
            samples[0].job.fail(
                HostMemoryError(f"one sample of {samples[0].length} tokens", reason)
            )
            return
        if not self._told_of_memory:
            log.warning(
                "the LLM host has too little memory for %d samples at once: passes are split "
                "where needed (this is said once): %s",
                len(samples),
                reason,
            )
            self._told_of_memory = True
        middle = len(samples) // 2
        for part in (samples[:middle], samples[middle:]):
            alive = [sample for sample in part if not sample.job.future.done()]
            if alive:
                self._serve_within_memory(alive)

    def _serve_together(self, samples: Sequence[Sample]) -> None:
        """One forward pass, and one backward where the samples' requests train."""
        trains = samples[0].job.trains
        rows = [_rows(sample).requires_grad_(trains) for sample in samples]
        with torch.set_grad_enabled(trains):
            logits = self._logits(rows, samples).split([len(s.asked) for s in samples])
            of_jobs: dict[Job[Any], list[int]] = {}
            for index, sample in enumerate(samples):
                of_jobs.setdefault(sample.job, []).append(index)
            if trains:
                self._take_steps(samples, rows, logits, of_jobs)
        for job, indices in of_jobs.items():
            if isinstance(job, ReadJob):
                for index in indices:
                    job.take(samples[index], logits[index])
            job.served(len(indices))

    def _take_steps(
        self,
        samples: Sequence[Sample],
        rows: Sequence[Tensor],
        logits: Sequence[Tensor],
        of_jobs: Mapping[Job[Any], list[int]],
    ) -> None:
        """Losses, each its request's own mean, and their gradients in one backward pass."""
        losses = {}
        for job, indices in of_jobs.items():
            assert isinstance(job, StepJob)
            own = torch.cat([logits[i] for i in indices])
            losses[job] = job.loss([samples[i] for i in indices], own)
        session = samples[0].job.session  # a pass with one has no other request
        trained = list(session.trained.values()) if session else []
        gradients = _gradients(list(losses.values()), [*rows, *trained])
        of_session = gradients[len(rows) :]
        for job, loss in losses.items():
            indices = of_jobs[job]
            of_rows = [gradients[i] for i in indices]
            job.take([samples[i] for i in indices], loss.item(), of_rows, of_session)

    def _logits(self, rows: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
        """Logits (Σp, vocabulary), at least in float32, at the samples' positions in order."""
        device, widest = self._half.device, max(sample.length for sample in samples)
        asked = torch.cat([i * widest + s.positions for i, s in enumerate(samples)])
        lengths = torch.tensor([sample.length for sample in samples])
        logits = self._half.logits(
            pad_sequence(list(rows), batch_first=True),
            asked.to(device),
            (torch.arange(widest) < lengths[:, None]).to(device),
            self._beside([sample.layout for sample in samples], "right"),
        )
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _beside(self, layouts: Sequence[Layout], side: str) -> dict[str, Tensor]:
        """What the language model reads beside embeddings of some samples, by its name in `Layout`.

        Args:
            layouts: of each sample.
            side: where (T,) and (axes, T) are padded with zeros, to (B, T) and (axes, B, T).
        """
        found: dict[str, Tensor] = {}
        for name in ("position_ids", "token_type_ids", "token_ids"):
            parts = [part for one in layouts if (part := getattr(one, name)) is not None]
            if parts:
                found[name] = _stacked(parts, side).to(self._half.device)
        if deep := [one.deep for one in layouts if one.deep is not None]:
            found["deep"] = torch.cat(deep).to(self._half.device, self._half.dtype)
        return found


def _gradients(
    outputs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor], given: Tensor | None = None
) -> Sequence[Tensor]:
    """Of outputs, with respect to inputs; zero where one takes no part."""
    return torch.autograd.grad(outputs, inputs, given, materialize_grads=True)


def _rows(sample: Sample) -> Tensor:
    assert sample.job.embedded is not None
    return sample.rows(sample.job.embedded.rows).detach()


def _stacked(parts: Sequence[Tensor], side: str) -> Tensor:
    turned = [part.movedim(-1, 0) for part in parts]
    padded = pad_sequence(turned, batch_first=True, padding_side=side)
    return padded.movedim(-1, 0) if parts[0].dim() == 2 else padded
