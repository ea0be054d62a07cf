"""Each message that was once answered with a crash instead of a reason."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
import torch

from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.protocol import PROTOCOL_VERSION, HostRefusedError
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.connection import METHOD
from fednano_flwr.exchange.wire.dispatch import Dispatcher
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.llm_half import LLMHalf
from tests.batches import answered_at_the_end as batch

JUNK = b"\xff" * 20
HEADER = pb.Header(protocol=PROTOCOL_VERSION)


@pytest.fixture
def dispatcher(llm_half: LLMHalf) -> Dispatcher:
    return Dispatcher(FrozenLLM(llm_half, max_tokens=100))


def test_bytes_that_are_no_call_are_refused_and_the_stream_goes_on(llm_half: LLMHalf) -> None:
    good = pb.Call(keep_features=pb.KeepFeaturesRequest(header=HEADER)).SerializeToString()
    with serve(FrozenLLM(llm_half)) as address, grpc.insecure_channel(address) as channel:
        found = channel.stream_stream(METHOD)(iter([JUNK, good]), timeout=10)
        first, second = (pb.Answer.FromString(answer) for answer in found)
        assert first.refused == "20 bytes that are no call" and second.HasField("keep_features")


def low_rank(**changes: pb.Tensor) -> pb.Call:
    call = pb.Call(next_tokens=pb.NextTokensRequest(header=HEADER, positions=[1]))
    inputs = call.next_tokens.inputs
    inputs.lengths.append(2)
    inputs.low_rank.image_runs.append(2)
    inputs.low_rank.token_ids.extend([1, 2])
    z, b = (codec.encode(torch.ones(n, 1), "float32") for n in (2, 48))
    inputs.low_rank.factors.add(site="text", **{"z": z, "b": b, **changes})
    return call


def refusal(dispatcher: Dispatcher, call: pb.Call) -> str:
    return dispatcher.answer(call.SerializeToString()).refused


def test_factors_of_two_dtypes_are_refused(dispatcher: Dispatcher) -> None:
    assert dispatcher.answer(low_rank().SerializeToString()).HasField("next_tokens")
    narrow = codec.encode(torch.ones(48, 1), "bfloat16")
    answer = dispatcher.answer(low_rank(b=narrow).SerializeToString())
    assert "torch.float32 and b" in answer.refused and "bfloat16" in answer.refused


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"position_ids": [0, 1]}, "takes no position_ids"),
        ({"position_ids": [0, 1] * 3}, "takes no position_ids"),
        ({"position_ids": [0, 1] * 4}, "8 position ids and"),
        ({"token_type_ids": [0, 1]}, "takes no token_type_ids"),
    ],
)
def test_positions_and_types_that_the_model_does_not_take_are_refused(
    dispatcher: Dispatcher, more: dict[str, list[int]], says: str
) -> None:
    call = low_rank()
    call.next_tokens.inputs.MergeFrom(pb.Inputs(**more))
    assert says in refusal(dispatcher, call)


def test_a_tensor_of_very_many_axes_is_refused(dispatcher: Dispatcher) -> None:
    many = pb.Tensor(dtype="float32", shape=[1] * 1000, data=b"\0" * 4)
    assert "a tensor of 1000 axes" in refusal(dispatcher, low_rank(z=many))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_empty_tensor_of_endless_other_axes_is_refused(
    dispatcher: Dispatcher, dtype: str
) -> None:
    empty = pb.Tensor(dtype=dtype, shape=[0, 2**31, 2**31, 2**31])
    assert "at most 1099511627776 numbers" in refusal(dispatcher, low_rank(z=empty))


def test_more_runs_than_rows_are_refused(dispatcher: Dispatcher) -> None:
    call = low_rank()
    call.next_tokens.inputs.low_rank.image_runs.extend([0] * 1000)
    assert "1001 runs of tokens and images for 2 rows" in refusal(dispatcher, call)


def test_a_sample_longer_than_the_models_positions_is_refused(
    dispatcher: Dispatcher, llm_half: LLMHalf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, a place outside a table of positions ends the process that looks it up."""
    monkeypatch.setattr(llm_half, "longest", 1)
    assert "a sample of 2 tokens" in refusal(dispatcher, low_rank())


def test_a_refusal_repeats_no_more_than_a_little_of_what_was_sent(dispatcher: Dispatcher) -> None:
    call = low_rank()
    del call.next_tokens.inputs.lengths[:]
    call.next_tokens.inputs.lengths.extend([0] * 10_000)
    assert len(refusal(dispatcher, call)) < 200
    named = low_rank()
    named.next_tokens.inputs.low_rank.factors[0].site = "x" * 10_000
    assert len(refusal(dispatcher, named)) < 200


class Saying:
    """In the place of a client's session: always one answer."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def ask(self, call: bytes, timeout: float) -> bytes:
        return self.answer

    def close(self) -> None:
        pass


@pytest.fixture
def remote() -> Iterator[RemoteLLM]:
    with RemoteLLM("127.0.0.1:1", dtype="float32", retry_seconds=30) as remote:
        yield remote


WRONG = {
    "no answer": (JUNK, "20 bytes that are no answer"),
    "an empty one": (b"", "nothing to step"),
    "of another call": (
        pb.Answer(score=pb.ScoreReply()).SerializeToString(),
        "score to step",
    ),
    "without a gradient": (
        pb.Answer(step=pb.StepReply(loss=1)).SerializeToString(),
        "gradients of shapes \\[\\]",
    ),
    "of another shape": (
        pb.Answer(
            step=pb.StepReply(gradients=[codec.encode(torch.zeros(3, 48), "float32")])
        ).SerializeToString(),
        r"shapes \[\(3, 48\)\], sent were \[\(14, 48\)\]",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_answer_that_cannot_be_used_is_the_hosts_error_at_once(
    remote: RemoteLLM, what: str
) -> None:
    answer, says = WRONG[what]
    remote._host._session = Saying(answer)  # type: ignore[assignment]
    with pytest.raises(HostRefusedError, match=says):
        remote.step(*batch(0))
    assert remote.traffic.retries == 0


def test_logits_for_other_positions_are_the_hosts_error(remote: RemoteLLM) -> None:
    logits = codec.encode(torch.zeros(1, 3), "float32")
    remote._host._session = Saying(  # type: ignore[assignment]
        pb.Answer(score=pb.ScoreReply(logits=logits)).SerializeToString()
    )
    inputs = EmbeddingInputs(torch.ones(4, 48), (4,))
    with pytest.raises(HostRefusedError, match=r"logits of shape \(1, 3\), not \(2, 3\)"):
        remote.score(inputs, torch.tensor([1, 3]), torch.tensor([1, 2, 3]))


def test_a_host_that_computes_in_an_unknown_dtype_is_refused(remote: RemoteLLM) -> None:
    answer = pb.Answer(describe=pb.Description(dtype="float8"))
    remote._host._session = Saying(answer.SerializeToString())  # type: ignore[assignment]
    with pytest.raises(HostRefusedError, match="computes in 'float8'"):
        remote.describe()
