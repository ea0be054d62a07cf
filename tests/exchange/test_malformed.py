"""Requests that a host refuses, and answers that a client refuses, each with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import torch

from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.errors import HostRefusedError
from fednano_flwr.exchange.protocol import IGNORE, PROTOCOL_VERSION, Layout
from fednano_flwr.exchange.wire import codec, methods
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.connection import METHOD
from fednano_flwr.exchange.wire.dispatch import Dispatcher
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.llm_half import LLMHalf
from tests.batches import answered_at_the_end as batch
from tests.exchange.stand_in import StandIn

JUNK = b"\xff" * 20
HEADER = pb.Header(protocol=PROTOCOL_VERSION)
GOOD = codec.encode(torch.zeros(4, 48), "float32")


@pytest.fixture
def dispatcher(llm_half: LLMHalf) -> Dispatcher:
    return Dispatcher(FrozenLLM(llm_half, max_tokens=100))


def ask(dispatcher: Dispatcher, call: pb.Call) -> pb.Answer:
    return dispatcher.answer(call.SerializeToString())


def inputs(**changes: Any) -> pb.Inputs:
    return pb.Inputs(**{"embeddings": GOOD, "lengths": [4], **changes})


def step(labels: tuple[int, ...] = (1,), dtype: str = "float32", **changes: Any) -> pb.Call:
    request = pb.StepRequest(
        header=HEADER,
        inputs=inputs(**changes),
        label_positions=[3],
        labels=labels,
        dtype=dtype,
    )
    return pb.Call(step=request)


def low_rank(more: dict[str, list[int]] | None = None, **factors: pb.Tensor) -> pb.Call:
    request = pb.TokenLossesRequest(header=HEADER, positions=[1], tokens=[2])
    call = pb.Call(token_losses=request)
    sent = call.token_losses.inputs
    sent.lengths.append(2)
    sent.low_rank.run_lengths.append(2)
    sent.low_rank.run_sites.append(1)
    sent.low_rank.token_ids.extend([1, 2])
    z, b = (codec.encode(torch.ones(n, 1), "float32") for n in (2, 48))
    sent.low_rank.factors.add(site="text", **{"z": z, "b": b, **factors})
    for name, values in (more or {}).items():
        owner = sent if name.endswith("_ids") and name != "token_ids" else sent.low_rank
        field = getattr(owner, name)
        del field[:]
        field.extend(values)
    return call


def pictures(count: int) -> pb.Call:
    call = low_rank({"token_ids": [], "run_sites": [0], "features": [b"k"] * count})  # type: ignore[list-item]
    del call.token_losses.inputs.low_rank.factors[:]
    return call


def positions(kind: str) -> pb.Call:
    """Each position costs a row of logits: three of two tokens."""
    call = pb.Call()
    request = getattr(call, kind)
    request.header.CopyFrom(HEADER)
    rows = codec.encode(torch.zeros(2, 48), "float32")
    request.inputs.CopyFrom(inputs(embeddings=rows, lengths=[2]))
    getattr(request, "label_positions" if kind == "step" else "positions").extend([1] * 3)
    return call


def losses(*tokens: int) -> pb.Call:
    request = pb.TokenLossesRequest(header=HEADER, inputs=inputs(), positions=[1, 3], tokens=tokens)
    return pb.Call(token_losses=request)


def decode(**changes: Any) -> pb.Call:
    rows = codec.encode(torch.zeros(2, 48), "float32")
    good = {"header": HEADER, "cache": 1, "sequences": [0, 2], "tokens": [5, 6], "rows": rows}
    return pb.Call(decode=pb.DecodeRequest(**good | changes))


def features(rows: int) -> pb.Call:
    entry = pb.FeatureEntry(key=b"k", rows=codec.encode(torch.zeros(rows, 48), "float32"))
    return pb.Call(keep_features=pb.KeepFeaturesRequest(header=HEADER, features=[entry]))


def tensor(dtype: str = "float32", **changes: Any) -> pb.Tensor:
    return pb.Tensor(**{"dtype": dtype, "shape": [4, 48], "data": GOOD.data, **changes})


REFUSED: dict[str, tuple[pb.Call, str]] = {
    "nothing": (pb.Call(), "an empty call"),
    "no exchange's": (
        pb.Call(step=pb.StepRequest(header=HEADER, inputs=pb.Inputs(lengths=[1]))),
        "none of embeddings, low_rank",
    ),
    "another width": (step(embeddings=codec.encode(torch.zeros(4, 3), "float32")), "(4, 48)"),
    "another length": (step(lengths=[3]), "(3, 48)"),
    "too long": (step(lengths=[101]), "101 tokens in one request; the host takes 100 (llm.max-t"),
    "no labels": (step(labels=()), "1 label positions and 0"),
    "a label outside": (step(labels=(64,)), "label 64 is out of range"),
    "cut": (step(embeddings=tensor(data=GOOD.data[:-1])), "767 bytes do not hold"),
    "an unknown dtype": (step(embeddings=tensor("float8")), "float8"),
    "an unknown dtype for the reply": (step(dtype="float8"), "float8"),
    "odd positions": (step(position_ids=[0] * 5), "5 position ids"),
    "odd token types": (step(token_type_ids=[0] * 3), "3 token types"),
    "positions that the model lacks": (low_rank({"position_ids": [0, 1]}), "no position_ids"),
    "token types that it lacks": (low_rank({"token_type_ids": [0, 1]}), "no token_type_ids"),
    "ids for some of the tokens": (step(token_ids=[1] * 3), "3 token ids for 4 tokens"),
    "an id that there is not": (step(token_ids=[64] * 4), "token 64 is out of range"),
    "ids that the model does not look up": (step(token_ids=[1] * 4), "no token_ids"),
    "features for layers that take none": (step(deep=GOOD), "(4, 48), not (0, 0)"),
    "four axes": (low_rank({"position_ids": [0, 1] * 4}), "8 position ids"),
    "a token outside": (low_rank({"token_ids": [1, 64]}), "token 64 is out of range"),
    "too few tokens": (low_rank({"token_ids": [1]}), "1 token ids for 2 rows"),
    "many runs": (
        low_rank({"run_lengths": [2] + [0] * 1000, "run_sites": [1] * 1001}),
        "1001 sites",
    ),
    "a run without a site": (low_rank({"run_lengths": [1, 1]}), "1 sites and 2 runs"),
    "an unknown site": (low_rank({"run_sites": [3]}), "site 3"),
    "factors of two dtypes": (
        low_rank(b=codec.encode(torch.ones(48, 1), "bfloat16")),
        "torch.float32 and b (48, 1) in torch.bfloat16",
    ),
    "factors of other rows": (low_rank(z=codec.encode(torch.ones(3, 1), "float32")), "3 rows"),
    "many axes": (low_rank(z=tensor(shape=[1] * 1000, data=b"\0" * 4)), "of 1000 axes"),
    "endless axes": (low_rank(z=tensor(shape=[0, *[2**31] * 3], data=b"")), "1099511627776 num"),
    "endless axes, int8": (low_rank(z=tensor("int8", shape=[0, *[2**31] * 3])), "at most 109951"),
    "more features than rows": (pictures(3), "3 features for 2 rows"),
    "features of no rows": (features(0), "(0, 48)"),
    "features of too many rows": (features(101), "101 rows"),
    "room for nothing": (pb.Call(reserve=pb.ReserveRequest(header=HEADER)), "room for no token"),
    "a sequence without a token": (decode(tokens=[5]), "1 tokens for 2 sequences"),
    "no sequence": (decode(sequences=[], tokens=[]), "0 tokens for 0 sequences"),
    "a next token outside": (decode(tokens=[5, 64]), "token 64 is out of range"),
    "rows of other tokens": (decode(rows=GOOD), "rows of shape (4, 48) for 2"),
    "odd positions of tokens": (decode(position_ids=[1]), "1 position ids for 2"),
    **{
        f"many positions to {kind}": (positions(kind), "3 numbers called")
        for kind in ("step", "forward", "score", "token_losses")
    },
    "a token too few": (losses(5), "2 positions and 1 tokens"),
    "a token outside the vocabulary": (losses(5, 64), "token 64 is out of range"),
    "more tokens than positions": (losses(5, 6, 7), "3 numbers called"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_request_is_refused_with_the_reason(dispatcher: Dispatcher, case: str) -> None:
    call, says = REFUSED[case]
    assert says in ask(dispatcher, call).refused


def test_the_requests_that_were_spoilt_are_good_ones(dispatcher: Dispatcher) -> None:
    assert list(ask(dispatcher, pictures(1)).missing.keys) == [b"k"]
    assert ask(dispatcher, decode()).gone
    for call in (step(), low_rank(), features(9), losses(5, 6)):
        assert ask(dispatcher, call).WhichOneof("what") == call.WhichOneof("what")


def test_a_sample_longer_than_the_models_positions_is_refused(
    dispatcher: Dispatcher, llm_half: LLMHalf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, a place outside a table of positions ends the process that looks it up."""
    monkeypatch.setattr(llm_half, "longest", 1)
    assert "a sample of 2 tokens" in ask(dispatcher, low_rank()).refused


def test_logits_that_no_reply_holds_are_refused_before_they_are_computed(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "LARGEST", 3 * 64 * 8 - 1)
    for kind in ("forward", "score"):
        call = pb.Call()
        request = getattr(call, kind)
        request.header.CopyFrom(HEADER)
        request.inputs.CopyFrom(inputs())
        request.positions.extend([1, 2, 3])
        assert "3 positions × 64 tokens" in ask(dispatcher, call).refused
    call.score.candidates.extend([5, 6])
    assert ask(dispatcher, call).HasField("score")


def test_a_refusal_repeats_no_more_than_a_little_of_what_was_sent(dispatcher: Dispatcher) -> None:
    named = low_rank()
    named.token_losses.inputs.low_rank.factors[0].site = "x" * 10_000
    for call in (named, step(lengths=[0] * 10_000)):
        assert 0 < len(ask(dispatcher, call).refused) < 200


def test_bytes_that_are_no_call_are_refused_and_the_stream_goes_on(service: StandIn) -> None:
    good = pb.Call(describe=pb.DescribeRequest(header=HEADER)).SerializeToString()
    with serve(service) as address, grpc.insecure_channel(address) as channel:
        found = channel.stream_stream(METHOD)(iter([JUNK, good]), timeout=10)
        first, second = (pb.Answer.FromString(answer) for answer in found)
    assert first.refused == "20 bytes that are no call" and second.HasField("describe")


def test_another_protocol_version_is_refused(
    remote: RemoteLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Caller, "header", lambda self: pb.Header(protocol=PROTOCOL_VERSION + 1))
    with pytest.raises(HostRefusedError, match="same version"):
        remote.describe()


@pytest.mark.parametrize(
    ("dtype", "gradient", "complaint"),
    [("float16", 1e6, "float16 holds numbers up to"), ("int8", float("nan"), "finite")],
)
def test_a_gradient_the_dtype_cannot_hold_is_refused_by_name(
    dtype: str, gradient: float, complaint: str
) -> None:
    sent, labels = (
        EmbeddingInputs(torch.randn(4, 48), Layout((4,))),
        torch.tensor([IGNORE, 1, 2, 3]),
    )
    with serve(StandIn(gradient)) as address, RemoteLLM(address, dtype=dtype) as remote:
        with pytest.raises(HostRefusedError, match=complaint):
            remote.step(sent, labels)


class Saying:
    """In the place of a client's session: always one answer."""

    def __init__(self, answer: pb.Answer | bytes) -> None:
        self.answer = answer if isinstance(answer, bytes) else answer.SerializeToString()

    def ask(self, call: bytes, timeout: float) -> bytes:
        return self.answer

    def close(self) -> None:
        pass


@pytest.fixture
def nobody() -> Iterator[RemoteLLM]:
    with RemoteLLM("127.0.0.1:1", dtype="float32", retry_seconds=30) as remote:
        yield remote


def score(remote: RemoteLLM) -> object:
    sent = EmbeddingInputs(torch.ones(4, 48), Layout((4,)))
    return remote.score(sent, torch.tensor([1, 3]), torch.tensor([1, 2, 3]))


def token_losses(remote: RemoteLLM) -> object:
    sent = EmbeddingInputs(torch.ones(4, 48), Layout((4,)))
    return remote.token_losses(sent, torch.tensor([1, 3]), torch.tensor([1, 2]))


SMALL = codec.encode(torch.zeros(1, 3), "float32")
Ask = Callable[[RemoteLLM], object]
WRONG: dict[str, tuple[pb.Answer | bytes, Ask | None, str]] = {
    "no answer": (JUNK, None, "20 bytes that are no answer"),
    "an empty one": (b"", None, "nothing to step"),
    "of another call": (pb.Answer(score=pb.ScoreReply()), None, "score to step"),
    "without a gradient": (pb.Answer(step=pb.StepReply(loss=1)), None, r"shapes \[\]"),
    "of another shape": (
        pb.Answer(step=pb.StepReply(gradients=[SMALL])),
        None,
        r"shapes \[\(1, 3\)\], sent were \[\(14, 48\)\]",
    ),
    "of other positions": (
        pb.Answer(score=pb.ScoreReply(log_probabilities=SMALL)),
        score,
        r"log-probabilities of shape \(1, 3\), not \(2, 3\)",
    ),
    "of fewer tokens": (
        pb.Answer(token_losses=pb.TokenLossesReply(losses=[0.5])),
        token_losses,
        "1 losses at 2 positions",
    ),
    "in an unknown dtype": (
        pb.Answer(describe=pb.Description(dtype="float8")),
        RemoteLLM.describe,
        "computes in 'float8'",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_answer_that_cannot_be_used_is_the_hosts_error_at_once(
    nobody: RemoteLLM, what: str
) -> None:
    answer, ask, says = WRONG[what]
    nobody._host._session = Saying(answer)  # type: ignore[assignment]
    with pytest.raises(HostRefusedError, match=says):
        ask(nobody) if ask else nobody.step(*batch(0))
    assert nobody.traffic.retries == 0
