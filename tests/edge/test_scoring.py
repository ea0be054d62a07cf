"""A question's score, and the loss of its right answer beside that of the unsplit model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fednano_flwr.adapters.site import randomize
from fednano_flwr.data.metrics import token_f1
from fednano_flwr.data.sample import Sample
from fednano_flwr.edge import scoring
from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.generation import generate
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Limits, Question
from fednano_flwr.edge.scoring import FREE_ANSWER, score_questions, tally
from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.protocol import LLMService
from fednano_flwr.exchange.registry import EXCHANGES
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.llm_half import LLMHalf
from tests.models.unsplit import Unsplit

FREE = (
    Sample("caption", "w30 w31", "g", "s", free_answer="w22 w23 w24 w25 w26"),
    Sample("word", "w32 w33 w34", "g", "s", free_answer="w27", references=("w28", "w29 w40")),
)


@pytest.fixture
def mixed(questions: list[Question], encoder: QuestionEncoder) -> list[Question]:
    """Letters and free answers in turn, with pictures and without."""
    pictured = questions[0].sample.images
    assert pictured and not questions[1].sample.images
    seen = Sample("seen", "w35 w36", "g", "s", free_answer="w37 w38 w39", images=pictured)
    free = [encoder.encode(sample) for sample in (*FREE, seen)]
    return [free[0], *questions[:2], free[1], questions[2], free[2], questions[3]]


@pytest.fixture(scope="session")
def whole(tiny_model: Path) -> Unsplit:
    return Unsplit(tiny_model, "llava", "float32")


@pytest.fixture
def changed(edge: NanoEdge) -> NanoEdge:
    """Adapters that change something."""
    randomize(edge.adapters, 0.3, seed=4)
    return edge


@pytest.mark.parametrize("labels_at", ["server", "client"])
@pytest.mark.parametrize("kind", EXCHANGES)
def test_losses_are_those_of_the_unsplit_model(
    kind: str,
    labels_at: str,
    changed: NanoEdge,
    mixed: list[Question],
    whole: Unsplit,
    llm_half: LLMHalf,
) -> None:
    llm = EXCHANGES[kind](FrozenLLM(llm_half), labels_at)
    scores = score_questions(changed, llm, mixed, 3)
    logits = whole.logits(mixed, changed.encoder, changed.adapters, "right")
    answers = torch.tensor([token for question in mixed for token in question.answer])
    each = F.cross_entropy(logits, answers, reduction="none").split([len(q.answer) for q in mixed])
    assert [score.loss for score in scores] == pytest.approx([float(own.sum()) for own in each])
    assert [score.tokens for score in scores] == [len(question.answer) for question in mixed]
    assert [score.tokens for score in scores] == [6, 1, 1, 2, 1, 4, 1]  # with the answers' ends


def test_free_answers_are_scored_by_the_metric_and_options_by_their_letters(
    changed: NanoEdge, mixed: list[Question], llm: Exchange
) -> None:
    free = [question for question in mixed if not question.options]
    said = dict(zip([q.sample.uid for q in free], generate(changed, llm, free, 8), strict=True))
    asked: dict[str, tuple[str, ...]] = {}

    def metric(answer: str, references: tuple[str, ...]) -> float:
        asked[answer] = tuple(references)
        return 0.25

    scores = score_questions(changed, llm, mixed, 4, metric)
    assert [score.value for score in scores if score.tokens > 1] == [0.25] * 3
    assert {score.value for score in scores if score.tokens == 1} <= {0.0, 1.0}
    right = {"caption": ("w22 w23 w24 w25 w26",), "seen": ("w37 w38 w39",)}
    right["word"] = ("w27", "w28", "w29 w40")
    assert asked == {said[uid]: references for uid, references in right.items()}
    plain = score_questions(changed, llm, free, 4, token_f1)
    wanted = [token_f1(said[q.sample.uid], right[q.sample.uid]) for q in free]
    assert [score.value for score in plain] == wanted


def test_options_cost_one_call_a_batch_and_free_answers_one_more_than_their_generation(
    changed: NanoEdge, mixed: list[Question], llm_half: LLMHalf
) -> None:
    class Counted(LLMService):
        def __init__(self, service: FrozenLLM) -> None:
            self.service, self.calls = service, list[str]()

        def _call(self, method: str, owner: bytes, *arguments: object) -> object:
            self.calls.append(method)
            return getattr(self.service, method)(*arguments)

    host = Counted(FrozenLLM(llm_half))
    llm = EXCHANGES["embeddings"](host)  # keeps no features
    score_questions(changed, llm, [q for q in mixed if q.options], 2)
    assert host.calls == ["score", "score"]
    host.calls.clear()
    score_questions(changed, llm, mixed, 7, max_answer_tokens=2)
    assert host.calls.count("score") == host.calls.count("token_losses") == 1


@pytest.mark.parametrize("labels_at", ["server", "client"])
def test_options_without_letters_are_scored_by_all_their_tokens(
    labels_at: str,
    changed: NanoEdge,
    mixed: list[Question],
    whole: Unsplit,
    llm_half: LLMHalf,
) -> None:
    words = tuple((*range(20 + n, 22 + n + n % 3), 3) for n in range(14))  # the end is 3
    asked = [
        replace(mixed[0], words=words, answer=words[5]),
        mixed[1],
        replace(mixed[5], words=words[::-1], answer=words[0]),
    ]
    llm = EXCHANGES["lowrank"](FrozenLLM(llm_half), labels_at)
    scores = score_questions(changed, llm, asked, 4, limits=Limits(request=150))
    for place in (0, 2):
        question = asked[place]
        each = [replace(question, answer=word) for word in question.words]
        logits = whole.logits(each, changed.encoder, changed.adapters, "right")
        tokens = torch.tensor([token for word in question.words for token in word])
        losses = F.cross_entropy(logits, tokens, reduction="none")
        sums = [float(own.sum()) for own in losses.split([len(word) for word in question.words])]
        right = question.words.index(question.answer)
        best = float(min(sums) == sums[right])
        assert scores[place] == pytest.approx((best, sums[right], len(question.answer)))
        likeliest = question.words[sums.index(min(sums))]
        (score,) = score_questions(changed, llm, [replace(question, answer=likeliest)], 4)
        assert score.value == 1 and score.loss == pytest.approx(min(sums))


def test_an_accent_is_the_same_in_either_way_to_write_it(
    changed: NanoEdge, mixed: list[Question], llm: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "generate", lambda *_: ["caf\u00e9", "cafe\u0301", "cafe"])
    free = next(question for question in mixed if not question.options)
    accented = replace(free.sample, free_answer="caf\u00e9", references=("thé",))
    scores = score_questions(changed, llm, [replace(free, sample=accented)] * 3, 4)
    assert [score.value for score in scores] == [1, 1, 0]


@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan")])
def test_a_score_that_is_no_share_is_refused_with_its_question(
    value: float, changed: NanoEdge, mixed: list[Question], llm: Exchange
) -> None:
    with pytest.raises(ValueError, match=r"dataset\.metric.*caption"):
        score_questions(changed, llm, mixed, 2, lambda answer, references: value)


def test_a_tally_has_the_sum_of_scores_and_the_free_answers_by_themselves() -> None:
    closed = Sample("1", "q", "g", "a", ("x", "y"), answer=0)
    free = Sample("2", "q", "g", "b", free_answer="x")
    counts = tally([closed, free, free], [1.0, 0.25, 0.5])
    assert counts["all"] == counts["text only"] == [1.75, 3]
    assert counts[FREE_ANSWER] == counts["b"] == [0.75, 2]
    assert counts["a"] == [1.0, 1]
