"""The calls of an `LLMService` as messages: each is written and read here, for both ends.

Client and dispatcher go over `METHODS`. What a host reads may have been written by anybody, so
`read` checks all that the computation relies on, and sizes before it decodes anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from fednano_flwr.config import SITES
from fednano_flwr.exchange.at_host import FACTOR, Turn
from fednano_flwr.exchange.errors import RefusalError
from fednano_flwr.exchange.protocol import (
    IGNORE,
    PROTOCOL_VERSION,
    ConnectorInput,
    Feature,
    Generated,
    Gradient,
    Inputs,
    Layout,
    LLMInfo,
    NewTokens,
    Room,
)
from fednano_flwr.exchange.registry import EXCHANGES
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.models.fingerprint import same_checkpoint

MOST_AXES = 3
"""Of positions: time, height and width."""
SHOWN = 16
MOST_SHOWN = 4
"""Axes of a shape that an error repeats."""
NO_ROWS = torch.empty(0)
LARGEST = 2**31 - 1
"""Bytes of any message of gRPC's."""
LARGEST_NUMBER = 8
"""Bytes, in float64."""
LONGEST_NAME = 100
"""Characters of what a client calls its model that a refusal repeats."""
INPUTS = {exchange.inputs.FIELD: exchange.inputs for exchange in EXCHANGES.values()}


class Method:
    """A call of the same name in `LLMService`, in `Call` and in `Answer`.

    Attributes:
        computes: whether the language model has to compute something for it.
        of_phase: whether its argument is what the phase has at the host.
    """

    computes = True
    of_phase = False

    def write(self, request: Any, dtype: str, *arguments: Any, **_: Any) -> None:
        """At the client: the arguments as a request, numbers cast to `dtype`."""

    def read(self, request: Any, info: LLMInfo) -> tuple[Any, ...]:
        """At the host: the arguments of a request.

        Raises:
            ValueError: they cannot be served.
        """
        return ()

    def fill(self, reply: Any, result: Any, request: Any) -> None:
        """At the host: the result of a request as its reply."""

    def result(self, reply: Any, *arguments: Any, **_: Any) -> Any:
        """At the client: the result of these arguments.

        Raises:
            ValueError: the reply cannot be theirs.
        """

    def tokens(self, *arguments: Any, **_: Any) -> int:
        """How many tokens the language model reads."""
        return arguments[0].layout.tokens if self.computes else 0


class Describe(Method):
    computes = False

    def fill(self, reply: pb.Description, result: LLMInfo, request: Any) -> None:
        for field in fields(LLMInfo):
            setattr(reply, field.name, getattr(result, field.name))
        reply.protocol, reply.max_message = PROTOCOL_VERSION, largest_message(result)

    def result(self, reply: pb.Description, *arguments: Any, **_: Any) -> pb.Description:
        if reply.dtype not in codec.DTYPES:
            raise ValueError(f"it computes in {reply.dtype[: codec.LONGEST]!r}, which is no dtype")
        return reply


class Register(Describe):
    def write(self, request: Any, dtype: str, half: Mapping[str, Any]) -> None:
        for name, value in half.items():
            setattr(request, name, value)

    def read(self, request: pb.RegisterRequest, info: LLMInfo) -> tuple[()]:
        # Copies in folders may have any name; names and commits on the hub say what was meant.
        pairs = (info.hub_id, request.hub_id), (info.revision, request.revision)
        other_model = any(ours and theirs and ours != theirs for ours, theirs in pairs)
        same = same_checkpoint(request.fingerprint, info.fingerprint)
        if other_model or not same or request.hidden_size != info.hidden_size:
            raise RefusalError(
                f"the halves do not belong together: host has {_half(info)}, client has "
                f"{_half(request)}"
            )
        return ()


class Step(Method):
    def write(self, request: Any, dtype: str, inputs: Inputs, labels: Tensor) -> None:
        _write_inputs(request.inputs, inputs, dtype)
        positions = (labels != IGNORE).nonzero().squeeze(1)
        request.label_positions.extend(positions.tolist())
        request.labels.extend(labels[positions].tolist())
        request.dtype = dtype

    def read(self, request: pb.StepRequest, info: LLMInfo) -> tuple[Inputs, Tensor]:
        inputs = _read_inputs(request.inputs, info)
        count = inputs.layout.tokens
        positions = _indices(request.label_positions, count, "label position", count)
        targets = _indices(request.labels, info.vocabulary, "label", count)
        if not len(positions) or len(positions) != len(targets):
            raise RefusalError(f"{len(positions)} label positions and {len(targets)} labels")
        labels = torch.full((count,), IGNORE)
        labels[positions] = targets
        _check_dtype(request.dtype)
        return inputs, labels

    def fill(self, reply: Any, result: tuple[float, Gradient], request: Any) -> None:
        reply.loss, gradient = result
        _fill_gradient(reply, gradient, request.dtype)

    def result(self, reply: Any, inputs: Inputs, labels: Tensor) -> tuple[float, Gradient]:
        return reply.loss, as_sent(_read_gradient(reply), inputs)


class Forward(Method):
    def write(self, request: Any, dtype: str, inputs: Inputs, positions: Tensor) -> None:
        _write_inputs(request.inputs, inputs, dtype)
        request.positions.extend(positions.tolist())

    def read(self, request: Any, info: LLMInfo) -> tuple[Inputs, Tensor]:
        inputs, positions = _positions(request, info)
        _check_reply(len(positions), info.vocabulary)
        return inputs, positions

    def fill(self, reply: Any, result: tuple[int, Tensor], request: Any) -> None:
        reply.graph, logits = result
        codec.fill(reply.logits, logits, codec.exact(logits))

    def result(self, reply: Any, inputs: Inputs, positions: Tensor) -> tuple[int, Tensor]:
        return reply.graph, _decoded("logits", reply.logits, (len(positions), None))


class Backward(Method):
    def write(self, request: Any, dtype: str, graph: int, gradient: Tensor) -> None:
        request.graph, request.dtype = graph, dtype
        codec.fill(request.gradient, gradient, codec.exact(gradient))

    def read(self, request: pb.BackwardRequest, info: LLMInfo) -> tuple[int, Tensor]:
        _check_dtype(request.dtype)
        return request.graph, codec.decode(request.gradient)

    def fill(self, reply: Any, result: Gradient, request: Any) -> None:
        _fill_gradient(reply, result, request.dtype)

    def result(self, reply: Any, graph: int, gradient: Tensor) -> Gradient:
        return _read_gradient(reply)  # of which inputs, the caller knows

    def tokens(self, *arguments: Any, **_: Any) -> int:
        return 0  # they were the forward's


class Score(Method):
    def write(
        self, request: Any, dtype: str, inputs: Inputs, positions: Tensor, candidates: Tensor
    ) -> None:
        METHODS["forward"].write(request, dtype, inputs, positions)
        request.candidates.extend(candidates.tolist())

    def read(self, request: pb.ScoreRequest, info: LLMInfo) -> tuple[Inputs, Tensor, Tensor]:
        words = info.vocabulary
        candidates = _indices(request.candidates, words, "candidate", words)
        inputs, positions = _positions(request, info)
        _check_reply(len(positions), len(candidates) or words)
        return inputs, positions, candidates

    def fill(self, reply: Any, result: Tensor, request: Any) -> None:
        codec.fill(reply.log_probabilities, result, "float32")

    def result(self, reply: Any, inputs: Inputs, positions: Tensor, candidates: Tensor) -> Tensor:
        shape = (len(positions), len(candidates) or None)
        return _decoded("log-probabilities", reply.log_probabilities, shape)


class TokenLosses(Method):
    def write(
        self, request: Any, dtype: str, inputs: Inputs, positions: Tensor, tokens: Tensor
    ) -> None:
        METHODS["forward"].write(request, dtype, inputs, positions)
        request.tokens.extend(tokens.tolist())

    def read(self, request: pb.TokenLossesRequest, info: LLMInfo) -> tuple[Inputs, Tensor, Tensor]:
        inputs, positions = _positions(request, info)
        tokens = _indices(request.tokens, info.vocabulary, "token", len(positions))
        if len(tokens) != len(positions):
            raise RefusalError(f"{len(positions)} positions and {len(tokens)} tokens")
        return inputs, positions, tokens

    def fill(self, reply: Any, result: Tensor, request: Any) -> None:
        reply.losses.extend(result.tolist())

    def result(self, reply: Any, inputs: Inputs, positions: Tensor, tokens: Tensor) -> Tensor:
        if len(reply.losses) != len(positions):
            raise ValueError(f"{len(reply.losses)} losses at {len(positions)} positions")
        return torch.tensor(list(reply.losses), dtype=torch.float32)


class Reserve(Method):
    computes = False

    def write(self, request: Any, dtype: str, tokens: int) -> None:
        request.tokens = tokens

    def read(self, request: pb.ReserveRequest, info: LLMInfo) -> tuple[int]:
        if not request.tokens:
            raise RefusalError("room for no token")
        return (request.tokens,)

    def fill(self, reply: Any, result: Room, request: Any) -> None:
        reply.cache, reply.most, reply.ahead = result

    def result(self, reply: Any, tokens: int) -> Room:
        return Room(reply.cache, reply.most, reply.ahead)


class Prefill(Method):
    def write(self, request: Any, dtype: str, cache: int, inputs: Inputs) -> None:
        _write_inputs(request.inputs, inputs, dtype)
        request.cache = cache

    def read(self, request: pb.PrefillRequest, info: LLMInfo) -> tuple[int, Inputs]:
        return request.cache, _read_inputs(request.inputs, info)

    def fill(self, reply: Any, result: Generated, request: Any) -> None:
        reply.cache = result.cache
        reply.tokens.extend(result.tokens.tolist())

    def result(self, reply: Any, cache: int, inputs: Inputs) -> Generated:
        return _generated(reply, len(inputs.layout.lengths))

    def tokens(self, cache: int, inputs: Inputs) -> int:
        return inputs.layout.tokens


class Decode(Method):
    fill = Prefill.fill

    def write(self, request: Any, dtype: str, cache: int, tokens: NewTokens) -> None:
        request.cache = cache
        request.sequences.extend(tokens.sequences.tolist())
        request.tokens.extend(tokens.ids.tolist())
        request.position_ids.extend(_integers(tokens.position_ids))
        if tokens.rows is not None:
            codec.fill(request.rows, tokens.rows, dtype)

    def read(self, request: pb.DecodeRequest, info: LLMInfo) -> tuple[int, NewTokens]:
        count, axes = len(request.sequences), len(request.position_ids)
        sequences = _indices(request.sequences, info.max_tokens, "sequence", info.max_tokens)
        ids = _indices(request.tokens, info.vocabulary, "token", count)
        if not count or len(ids) != count:
            raise RefusalError(f"{len(ids)} tokens for {count} sequences")
        if axes > MOST_AXES * count or axes % count:
            raise RefusalError(f"{axes} position ids for {count} tokens")
        rows, shape = None, tuple(request.rows.shape)
        if request.HasField("rows"):
            if len(shape) != 2 or shape[0] != count:
                raise RefusalError(f"rows of shape {shape[:3]} for {count} tokens")
            rows = codec.decode(request.rows)
        positions = torch.tensor(list(request.position_ids)).reshape(-1, count)
        return request.cache, NewTokens(sequences, ids, rows, positions if axes else None)

    def result(self, reply: Any, cache: int, tokens: NewTokens) -> Generated:
        return _generated(reply, len(tokens.ids))

    def tokens(self, cache: int, tokens: NewTokens) -> int:
        return len(tokens.ids)


class Begin(Method):
    computes = False
    of_phase = True

    def fill(self, reply: Any, result: int, request: Any) -> None:
        reply.session = result

    def result(self, reply: Any, part: None) -> int:
        return reply.session


class End(Method):
    computes = False

    def write(self, request: Any, dtype: str, turn: Turn) -> None:
        _write_turn(request.turn, turn)

    def read(self, request: pb.EndRequest, info: LLMInfo) -> tuple[Turn]:
        return (_read_turn(request.turn),)


class Release(Method):
    computes = False

    def write(self, request: Any, dtype: str, cache: int) -> None:
        request.cache = cache

    def read(self, request: pb.ReleaseRequest, info: LLMInfo) -> tuple[int]:
        return (request.cache,)


class Lacks(Method):
    computes = False

    def write(self, request: Any, dtype: str, keys: Sequence[bytes]) -> None:
        request.keys.extend(keys)

    def read(self, request: pb.LacksRequest, info: LLMInfo) -> tuple[list[bytes]]:
        if len(request.keys) > info.max_tokens:
            raise RefusalError(f"{len(request.keys)} keys; at most {info.max_tokens}")
        for key in request.keys:
            codec.check_key(key)
        return (list(request.keys),)

    def fill(self, reply: Any, result: list[bytes], request: Any) -> None:
        reply.keys.extend(result)

    def result(self, reply: Any, keys: Sequence[bytes]) -> list[bytes]:
        return list(reply.keys)


class KeepFeatures(Method):
    computes = False

    def write(self, request: Any, dtype: str, entries: Sequence[pb.FeatureEntry]) -> None:
        request.features.extend(entries)

    def read(self, request: pb.KeepFeaturesRequest, info: LLMInfo) -> tuple[list[Feature]]:
        for entry in request.features:
            codec.check_key(entry.key)
            if entry.HasField("read"):
                _check_read(entry, info)
                continue
            shape = tuple(entry.rows.shape)
            factor = entry.key.startswith(FACTOR)
            width = info.hidden_size if factor else info.feature_size
            if len(shape) != 2 or shape[0] < 1 or shape[1] != width:
                raise RefusalError(f"features of shape {shape[:3]}, not (n, {width})")
            if shape[0] > info.max_tokens:
                raise RefusalError(
                    f"features of {shape[0]} rows; a request holds {info.max_tokens} "
                    "(llm.max-tokens)"
                )
        return ([_feature(entry) for entry in request.features],)


METHODS: Mapping[str, Method] = {
    "describe": Describe(),
    "register": Register(),
    "step": Step(),
    "forward": Forward(),
    "backward": Backward(),
    "score": Score(),
    "token_losses": TokenLosses(),
    "reserve": Reserve(),
    "prefill": Prefill(),
    "decode": Decode(),
    "release": Release(),
    "keep_features": KeepFeatures(),
    "lacks": Lacks(),
    "begin": Begin(),
    "end": End(),
}


def largest_message(info: LLMInfo) -> int:
    """Bytes of the largest request: a picture's row in float64 and some integers a token."""
    return min(info.max_tokens * (info.feature_size * 8 + 64) + 65536, LARGEST)


def feature_entry(feature: Feature, dtype: str) -> pb.FeatureEntry:
    """A feature as it is sent; its size says how many go into one message."""
    entry = pb.FeatureEntry(key=feature.key)
    if feature.read is not None:
        entry.site = feature.read.site
        codec.fill(entry.read, feature.read.values, dtype)
        return entry
    codec.fill(entry.rows, feature.rows, "float32" if feature.key.startswith(FACTOR) else dtype)
    return entry


def _feature(entry: pb.FeatureEntry) -> Feature:
    """What `feature_entry` wrote; of what a connector reads, the features are yet to be made."""
    if not entry.HasField("read"):
        return Feature(entry.key, codec.decode(entry.rows))
    return Feature(entry.key, NO_ROWS, ConnectorInput(entry.site, codec.decode(entry.read)))


def _check_read(entry: pb.FeatureEntry, info: LLMInfo) -> None:
    if not info.connector or entry.site not in SITES:
        raise RefusalError(f"this host has no connector of site {entry.site[:32]!r}")
    shape, most = tuple(entry.read.shape), info.max_tokens * info.feature_size
    if len(shape) > codec.MOST_AXES or not 0 < math.prod(shape) < most:
        raise RefusalError(
            f"a connector's input {shape[:MOST_SHOWN]}: it may have 1 to {most - 1} numbers"
        )


def as_sent(gradient: Gradient, inputs: Inputs) -> Gradient:
    """A gradient that came back, where and as the leaves of the inputs are.

    Raises:
        ValueError: it is not one with respect to these inputs.
    """
    shapes, leaves = [tuple(g.shape) for g in gradient], inputs.leaves
    expected = [tuple(leaf.shape) for leaf in leaves] + [()] * (inputs.turn is not None)
    if shapes != expected:
        raise ValueError(f"gradients of shapes {shapes}, sent were {expected}")
    found = tuple(one.to(leaf) for one, leaf in zip(gradient, leaves, strict=False))
    return found + gradient[len(leaves) :]


def _write_inputs(message: pb.Inputs, inputs: Inputs, dtype: str) -> None:
    layout = inputs.layout
    message.lengths.extend(layout.lengths)
    message.position_ids.extend(_integers(layout.position_ids))
    message.token_type_ids.extend(_integers(layout.token_type_ids))
    message.token_ids.extend(_integers(layout.token_ids))
    if layout.deep is not None:
        codec.fill(message.deep, layout.deep, dtype)
    if inputs.turn is not None:
        _write_turn(message.turn, inputs.turn)
    inputs.fill(message, dtype)


def _read_inputs(message: pb.Inputs, info: LLMInfo) -> Inputs:
    lengths, kind = tuple(message.lengths), message.WhichOneof("exchange")
    count, axes = sum(lengths), len(message.position_ids)
    if kind is None:
        raise RefusalError(f"a batch of none of {', '.join(INPUTS)}")
    if not lengths or min(lengths) < 1:
        shown = str(lengths) if len(lengths) <= SHOWN else f"{str(lengths[:SHOWN])[:-1]}, …)"
        raise RefusalError(f"lengths {shown}; at least one sample of at least one token")
    if count > info.max_tokens:
        raise RefusalError(
            f"{count} tokens in one request; the host takes {info.max_tokens} (llm.max-tokens): "
            "use a smaller batch-size"
        )
    if axes > MOST_AXES * count or axes % count or len(message.token_type_ids) not in (0, count):
        raise RefusalError(
            f"{axes} position ids and {len(message.token_type_ids)} token types for {count} tokens"
        )
    positions = torch.tensor(list(message.position_ids)).reshape(-1, count)
    types = torch.tensor(list(message.token_type_ids))
    ids = _indices(message.token_ids, info.vocabulary, "token", count)
    if len(ids) not in (0, count):
        raise RefusalError(f"{len(ids)} token ids for {count} tokens")
    layout = Layout(
        lengths,
        positions if axes else None,
        types if len(types) else None,
        ids if len(ids) else None,
        _deep(message, info),
    )
    inputs = INPUTS[kind].read(message, layout, info)
    return inputs.with_(turn=_read_turn(message.turn)) if message.HasField("turn") else inputs


def _write_turn(message: pb.Turn, turn: Turn) -> None:
    message.session, message.number, message.factor = turn.session, turn.number, turn.factor
    message.measures, message.stands = turn.measures, not turn.updates


def _read_turn(message: pb.Turn) -> Turn:
    if not message.number or not 0 <= message.factor <= 1:
        raise RefusalError(f"step {message.number}, its gradients scaled by {message.factor}")
    return Turn(
        message.session, message.number, message.factor, not message.stands, message.measures
    )


def _deep(message: pb.Inputs, info: LLMInfo) -> Tensor | None:
    """Features for deeper layers, as many as there are rows of type 1."""
    if not message.HasField("deep"):
        return None
    shape, expected = tuple(message.deep.shape), (sum(message.token_type_ids), info.deep_size)
    if shape != expected:
        raise RefusalError(f"features for deeper layers of shape {shape[:3]}, not {expected}")
    return codec.decode(message.deep)


def _generated(reply: pb.GeneratedReply, count: int) -> Generated:
    if len(reply.tokens) != count:
        raise ValueError(f"{len(reply.tokens)} tokens of {count} sequences")
    return Generated(reply.cache, torch.tensor(list(reply.tokens), dtype=torch.int64))


def _fill_gradient(reply: Any, gradient: Gradient, dtype: str) -> None:
    for tensor in gradient:
        codec.fill(reply.gradients.add(), tensor, dtype if tensor.dim() else "float64")


def _read_gradient(reply: Any) -> Gradient:
    return tuple(codec.decode(message) for message in reply.gradients)


def _indices(values: Sequence[int], below: int, what: str, most: int) -> Tensor:
    if len(values) > most:
        raise RefusalError(f"{len(values)} numbers called {what}, where there can be {most}")
    indices = torch.tensor(list(values), dtype=torch.int64)
    if len(indices) and int(indices.max()) >= below:
        raise RefusalError(f"{what} {int(indices.max())} is out of range (0 to {below - 1})")
    return indices


def _positions(request: Any, info: LLMInfo) -> tuple[Inputs, Tensor]:
    """A batch, and at which of its tokens something is asked for."""
    inputs = _read_inputs(request.inputs, info)
    count = inputs.layout.tokens
    positions = _indices(request.positions, count, "position", count)
    if not len(positions):
        raise RefusalError("no positions")
    return inputs, positions


def _check_reply(rows: int, columns: int) -> None:
    if rows * columns * LARGEST_NUMBER > LARGEST:
        raise RefusalError(
            f"{rows} positions × {columns} tokens are more than one reply holds: use a smaller "
            'batch-size, or exchange.labels-at = "server"'
        )


def _integers(values: Tensor | None) -> list[int]:
    return [] if values is None else values.flatten().tolist()


def _half(what: LLMInfo | pb.RegisterRequest) -> str:
    texts = (what.model, what.fingerprint, what.revision or "none (from a folder)")
    model, fingerprint, revision = (text[:LONGEST_NAME] for text in texts)
    return (
        f"{model} (hidden size {what.hidden_size}, fingerprint {fingerprint}, revision {revision})"
    )


def _check_dtype(name: str) -> None:
    if name not in codec.NAMES:
        raise RefusalError(f"dtype {name[: codec.LONGEST]!r} is none of {', '.join(codec.NAMES)}")


def _decoded(what: str, message: pb.Tensor, expected: tuple[int, int | None]) -> Tensor:
    """A matrix of so many rows and columns, where None is any number."""
    tensor, (rows, columns) = codec.decode(message), expected
    if tensor.dim() != 2 or len(tensor) != rows or columns not in (None, tensor.shape[1]):
        raise ValueError(f"{what} of shape {tuple(tensor.shape)}, not {expected}")
    return tensor
