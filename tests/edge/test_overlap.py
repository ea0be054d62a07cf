"""Clients embed the next batch while the host works on one, with the results of taking turns."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.config import Adapter
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.edge import scoring, training
from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question
from fednano_flwr.edge.scoring import score_questions
from fednano_flwr.edge.training import TrainingPlan, fisher_diagonal, train
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.protocol import AdaptedBatch, FrozenBatch
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.edge_half import EdgeHalf
from fednano_flwr.models.llm_half import LLMHalf

PLAN = TrainingPlan(2, 2, 0.01, 0.0, 1.0)
LONGEST = 30.0


def picture(seed: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Picture(data=file.getvalue())


def sample(number: int) -> Sample:
    """Every second with a picture, every third with a free answer."""
    images = (picture(number),) if number % 2 == 0 else ()
    uid, text = str(number), f"w{20 + number} w21"
    if number % 3 == 0:
        return Sample(uid, text, "g", "s", free_answer="w37 w38", images=images)
    return Sample(uid, text, "g", "s", ("w22", "w23"), answer=1, images=images)


@pytest.fixture(scope="module")
def questions(encoder: QuestionEncoder) -> list[Question]:
    return [encoder.encode(sample(number)) for number in range(8)]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def make_edge(half: EdgeHalf, encoder: QuestionEncoder, kind: type[NanoEdge]) -> NanoEdge:
    adapters = build_adapters(48, Adapter(4, 8.0, 0.1, "image,text"), seed=0)
    return kind(half, half.token_table(), adapters, encoder)


class Watched(NanoEdge):
    """Says when each batch starts to be embedded, in the order of batches."""

    started: list[threading.Event]
    calls: int

    def embed(
        self, questions: Sequence[Question], endings: Sequence[tuple[int, ...]] | None = None
    ) -> FrozenBatch:
        self.started[self.calls].set()
        self.calls += 1
        return super().embed(questions, endings)


class Patient(EmbeddingsExchange):
    """A host that answers a batch only when the next one has started to be embedded."""

    def __init__(self, host: FrozenLLM, edge: Watched, batches: int) -> None:
        super().__init__(host)
        self.edge, self.batches, self.asked = edge, batches, 0
        edge.calls, edge.started = 0, [threading.Event() for _ in range(batches)]

    def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
        self._wait()
        return super().loss(batch, labels)

    def score(self, batch: AdaptedBatch, positions: Tensor, candidates: Tensor) -> Tensor:
        self._wait()
        return super().score(batch, positions, candidates)

    def _wait(self) -> None:
        self.asked += 1
        if self.asked < self.batches:
            assert self.edge.started[self.asked].wait(LONGEST), "the next batch is not prepared"
        later = self.edge.started[self.asked + 1 :]
        assert not any(event.is_set() for event in later), "more than one batch is prepared"


Work = Callable[[NanoEdge, EmbeddingsExchange, list[Question]], object]
WORK: dict[str, tuple[int, Work]] = {
    "training": (8, lambda edge, llm, q: train(edge, llm, q, PLAN, seed=1)),
    "fisher": (4, lambda edge, llm, q: fisher_diagonal(edge, llm, q, 2)),
    "scoring": (4, lambda edge, llm, q: score_questions(edge, llm, q, 2)),
}


@pytest.mark.parametrize("kind", WORK)
def test_the_next_batch_is_embedded_while_the_host_is_asked_for_one(
    kind: str, edge_half: EdgeHalf, llm_half: LLMHalf, encoder: QuestionEncoder
) -> None:
    batches, work = WORK[kind]
    edge = make_edge(edge_half, encoder, Watched)
    assert isinstance(edge, Watched)
    llm = Patient(FrozenLLM(llm_half), edge, batches)
    closed = [encoder.encode(sample(number)) for number in (1, 2, 4, 5, 7, 8, 10, 11)]
    work(edge, llm, closed)
    assert llm.asked == edge.calls == batches  # nothing is embedded twice


def in_turns(items, prepare):  # type: ignore[no-untyped-def]
    return (prepare(item) for item in items)


def test_results_are_those_of_one_thread_bit_for_bit(
    edge_half: EdgeHalf,
    llm_half: LLMHalf,
    encoder: QuestionEncoder,
    questions: list[Question],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    for threads in (2, 1):
        if threads == 1:
            monkeypatch.setattr(training, "prefetch", in_turns)
            monkeypatch.setattr(scoring, "prefetch", in_turns)
        edge = make_edge(edge_half, encoder, NanoEdge)
        llm = EmbeddingsExchange(FrozenLLM(llm_half))
        trained = train(edge, llm, questions, PLAN, seed=3, running_fisher=True)
        assert trained.fisher is not None
        diagonal = fisher_diagonal(edge, llm, questions, 3)
        right = score_questions(edge, llm, questions, 3)
        tensors = [adapter_state(edge.adapters), trained.fisher, diagonal]
        results.append((trained.loss, right, edge.encoded, tensors))
    both, alone = results
    assert both[:3] == alone[:3] and both[2] == 4
    for got, expected in zip(both[3], alone[3], strict=True):
        assert got.keys() == expected.keys()
        assert all(
            torch.equal(got[name], value) and value.any() for name, value in expected.items()
        )


def test_embedding_records_no_gradient_and_adapting_does(
    edge_half: EdgeHalf, encoder: QuestionEncoder, questions: list[Question]
) -> None:
    edge = make_edge(edge_half, encoder, NanoEdge)
    frozen = edge.embed(questions)
    assert not frozen.hidden.requires_grad
    torch.manual_seed(0)
    batch = edge.adapt(frozen)
    torch.manual_seed(0)
    again = edge(questions)
    for site in ("image", "text"):
        assert batch.z[site].requires_grad and torch.equal(batch.z[site], again.z[site])
    assert torch.equal(batch.hidden, again.hidden)


def test_an_unreadable_picture_ends_training_at_its_own_batch(
    edge_half: EdgeHalf, llm_half: LLMHalf, encoder: QuestionEncoder, questions: list[Question]
) -> None:
    seed, per_batch = 1, PLAN.batch_size
    drawn = torch.Generator().manual_seed(derive_seed(Purpose.ORDER, seed))
    order = torch.randperm(8, generator=drawn).tolist()
    broken = list(questions)
    bad = next(i for i in order[2 * per_batch :] if broken[i].sample.images)
    trained = order.index(bad) // per_batch  # batches before the bad one
    assert trained >= 2
    damaged = replace(broken[bad].sample, images=(Picture(data=b"not a picture"),))
    broken[bad] = replace(broken[bad], sample=damaged)

    class Counting(EmbeddingsExchange):
        asked = 0

        def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
            self.asked += 1
            return super().loss(batch, labels)

    llm = Counting(FrozenLLM(llm_half))
    edge = make_edge(edge_half, encoder, NanoEdge)
    before = adapter_state(edge.adapters)
    with pytest.raises(DataError, match=r"a picture of 13 bytes cannot be decoded"):
        train(edge, llm, broken, PLAN, seed)
    assert llm.asked == trained
    after = adapter_state(edge.adapters)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_two_threads_embed_the_same_pictures_once(
    edge_half: EdgeHalf, encoder: QuestionEncoder, questions: list[Question]
) -> None:
    edge = make_edge(edge_half, encoder, NanoEdge)
    results: list[FrozenBatch] = []
    meet = threading.Barrier(4)

    def embed() -> None:
        meet.wait(LONGEST)
        results.append(edge.embed(questions))

    threads = [threading.Thread(target=embed) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONGEST)
    assert len(results) == 4 and edge.encoded == 4
    assert all(torch.equal(result.hidden, results[0].hidden) for result in results)
