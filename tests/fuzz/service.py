"""The LLM service under attack, next to a client that minds its own business."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from benchmarks.stub_half import stub_half
from fednano_flwr.exchange.at_host import AtHost
from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.protocol import Layout
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.dispatch import Dispatcher
from fednano_flwr.llm.client_state import Graphs
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.sessions import Sessions
from fednano_flwr.models.llm_half import LLMHalf
from tests.fuzz.messages import VICTIMS_KEY, WIDE, calls, good, header, tensor

SIZE, VOCABULARY, MAX_TOKENS = 8, 16, 32
ATTACKER, VICTIM = b"1/2", b"1/3"


def stub() -> LLMHalf:
    return stub_half(SIZE, VOCABULARY)


class Attacked:
    """A host, what answers calls to it, and a victim's features and open graph in it."""

    def __init__(self, half: LLMHalf, part: AtHost | None = None) -> None:
        self._part = part
        sessions = Sessions(half.lora, 4, 2**30) if part and half.lora else None
        self.size, self.vocabulary = half.hidden_size, half.vocabulary
        self.features = FeatureStore(2**18, 2**18, most=100)
        self.host = FrozenLLM(half, MAX_TOKENS, self.features, Graphs(4, 600), sessions=sessions)
        self.dispatcher = Dispatcher(self.host)
        keep = pb.Call(keep_features=pb.KeepFeaturesRequest(header=header()))
        rows = codec.encode(torch.ones(2, self.size), "float32")
        keep.keep_features.features.add(key=VICTIMS_KEY, rows=rows)
        assert self.ask(keep, VICTIM).HasField("keep_features")
        forward = good("forward", random.Random(5), self.size, self.vocabulary)
        forward.forward.inputs.ClearField("turn")
        self.graph = self.ask(forward, VICTIM)
        assert self.graph.HasField("forward"), self.graph
        self.expected = self.victims_answers()

    def ask(self, call: pb.Call, owner: bytes) -> pb.Answer:
        return self.dispatcher.answer(call.SerializeToString(), owner, self._part)

    def victims_answers(self) -> list[bytes]:
        """What a good client gets, to the last bit."""
        rng = random.Random(1)
        step = good("step", random.Random(1), self.size, self.vocabulary)
        score = good("score", random.Random(2), self.size, self.vocabulary)
        request = pb.TokenLossesRequest(header=header(), positions=[3], tokens=[5])
        low = pb.Call(token_losses=request)
        low.token_losses.inputs.lengths.append(4)
        low.token_losses.inputs.low_rank.run_lengths.extend([1, 2, 1])
        low.token_losses.inputs.low_rank.run_sites.extend([1, 0, 1])
        low.token_losses.inputs.low_rank.token_ids.extend([3, 4])
        low.token_losses.inputs.low_rank.features.append(VICTIMS_KEY)
        low.token_losses.inputs.low_rank.factors.add(
            site="image",
            z=tensor(rng, 2, 1, dtype="float32"),
            b=tensor(rng, self.size, 1, dtype="float32"),
        )
        for call in (step, score):  # of nobody's features
            inputs = getattr(call, str(call.WhichOneof("what"))).inputs
            inputs.ClearField("turn")
            assert not inputs.low_rank.features
        found = [self.ask(call, VICTIM) for call in (step, score, low)]
        assert [a.WhichOneof("what") for a in found] == ["step", "score", "token_losses"], found
        return [answer.SerializeToString(deterministic=True) for answer in found]

    def check(self, how: str, rng: random.Random) -> Iterator[str]:
        """How calls of a draw end; they may end in no other way than by an answer."""
        numbers = (self.graph.forward.graph, *[self._room(rng)] * len(WIDE))  # often the room
        for message in calls(rng, how, self.size, self.vocabulary, numbers):
            yield self.end(message)

    def _room(self, rng: random.Random) -> int:
        """The attacker's own, sometimes with prompts in it."""
        cache = self.host.reserve(MAX_TOKENS // 2, ATTACKER).cache
        if rng.random() < 0.5:
            return cache
        prompts = EmbeddingInputs(torch.ones(5, self.size), Layout((3, 2))).with_(
            at_host=self._part
        )
        return self.host.prefill(cache, prompts, ATTACKER).cache

    def end(self, message: bytes) -> str:
        answer = self.dispatcher.answer(message, ATTACKER, self._part)
        end = answer.WhichOneof("what")
        assert end is not None, "an empty answer"
        if end == "refused":
            assert "the host failed" not in answer.refused, answer.refused
            assert len(answer.refused) < 1000
            return "refused"
        if end in ("missing", "gone", "session_gone", "busy"):
            return end
        self._check_own(pb.Call.FromString(message))
        return "answered"

    def _check_own(self, call: pb.Call) -> None:
        """What was answered is of the attacker's own things."""
        kind = str(call.WhichOneof("what"))
        request = getattr(call, kind)
        if kind == "backward":
            assert request.graph != self.graph.forward.graph, "another's graph"
        elif hasattr(request, "inputs"):
            named = list(request.inputs.low_rank.features)
            owned = [self.features.get(ATTACKER, key) is not None for key in named]
            assert all(owned), "features that are not the caller's own"

    def check_unharmed(self) -> None:
        """The victim still gets the same bits, and what is kept is within its bounds."""
        assert self.victims_answers() == self.expected
        gradient = codec.encode(torch.ones(tuple(self.graph.forward.logits.shape)), "float32")
        graph = pb.Call(
            backward=pb.BackwardRequest(
                header=header(),
                graph=self.graph.forward.graph,
                gradient=gradient,
                dtype="float32",
            )
        )
        assert self.ask(graph, VICTIM).HasField("backward")
        assert len(self.host.graphs) <= 1  # the attacker's last one
        assert len(self.host.caches) <= 1 and self.host.caches.tokens <= MAX_TOKENS
        assert self.features.count(ATTACKER) <= 100 and self.features.count(VICTIM) == 1
        assert self.features.bytes_in_memory <= 2**18 and self.features.bytes_on_disk <= 2**18
        self.features.close()
