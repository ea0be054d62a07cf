"""Questions that are longer than `dataset.max-tokens`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.data.errors import SampleError
from fednano_flwr.data.sample import Place, Sample, Turn
from fednano_flwr.edge.encoder import QuestionEncoder, encode_all, load_encoder
from fednano_flwr.edge.fit import Fit
from fednano_flwr.edge.questions import Question
from fednano_flwr.in_process import run_in_process
from fednano_flwr.models.checkpoint import ModelCheckpoint
from tests.models.test_families import picture

WORDS = " ".join(f"w{k}" for k in range(20, 49))
LONG = Sample(
    "q",
    f"{WORDS} w50 ?",
    "g",
    "s",
    ("w30", "w31"),
    answer=1,
    images=(picture(0, 24, 24),),
    context=f"w51 {WORDS}",
)
DIALOGUE = Sample(
    "d",
    f"{WORDS} w50",
    "g",
    "s",
    free_answer="w40 w41",
    images=(picture(1, 24, 24),),
    turns=(
        Turn("system", ("w51",)),
        Turn("user", (f"w52 {WORDS}", Place.PICTURE)),
        Turn("assistant", ("w53 ",)),
        Turn("user", ("w54",)),
        Turn("assistant", ("w55",)),
        Turn("user", ("w56",)),
        Turn("assistant", ("w57",)),
        Turn("user", (f"{WORDS} w50",)),
    ),
)


def length(question: Question) -> int:
    return len(question.ids) + question.longest_answer


def places(encoder: QuestionEncoder, question: Question) -> int:
    return question.ids.tolist().count(encoder.processor.image_token_id)


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def encoder(request: pytest.FixtureRequest, family_folder: Callable[[str], Path]) -> Any:
    return load_encoder(ModelCheckpoint(str(family_folder(request.param))))


def test_a_longer_question_is_left_out_with_its_number_of_tokens(encoder: QuestionEncoder) -> None:
    whole = length(encoder.encode(LONG))
    assert Fit(whole).encode(encoder, LONG).sample is LONG
    assert Fit().encode(encoder, LONG).sample is LONG
    questions, left_out = encode_all(encoder, [LONG], Fit(whole - 1))
    reason = f"its {whole} tokens are more than dataset.max-tokens = {whole - 1}"
    assert not questions and left_out == [("q", reason)]


def test_a_context_is_cut_at_its_end_and_then_the_question_at_its_start(
    encoder: QuestionEncoder,
) -> None:
    whole = encoder.encode(LONG)
    for over in range(1, 55, 3):
        most = length(whole) - over
        found = Fit(most, cut=True).encode(encoder, LONG)
        assert most - 4 <= length(found) <= most
        assert LONG.context.startswith(found.sample.context)
        assert LONG.question.endswith(found.sample.question)
        assert found.sample.question == LONG.question or not found.sample.context
        assert places(encoder, found) == places(encoder, whole)
        assert found.answer == whole.answer and found.options == whole.options
        assert replace(found.sample, context=LONG.context, question=LONG.question) == LONG
    with pytest.raises(SampleError, match="no more can be cut"):
        Fit(20, cut=True).encode(encoder, LONG)


def test_of_a_dialogue_the_oldest_exchanges_without_a_picture_go_first(
    encoder: QuestionEncoder,
) -> None:
    whole = encoder.encode(DIALOGUE)
    shown, said = DIALOGUE.turns[:3], DIALOGUE.turns[3:]
    one = Fit(length(whole) - 1, cut=True).encode(encoder, DIALOGUE)
    assert one.sample.turns == shown + said[2:]
    two = Fit(length(one) - 1, cut=True).encode(encoder, DIALOGUE)
    assert two.sample.turns == shown + said[4:]
    for over in (2, 9, 40):
        most = length(two) - over
        found = Fit(most, cut=True).encode(encoder, DIALOGUE)
        system, user, assistant, last = found.sample.turns
        assert most - 4 <= length(found) <= most
        assert system == shown[0] and assistant == shown[2] and user.parts[1] is Place.PICTURE
        assert shown[1].text.endswith(user.text) and said[4].text.endswith(last.text)
        assert last == said[4] or len(user.text.split()) == 1
        assert places(encoder, found) == places(encoder, whole) and found.answer == whole.answer
        assert found.sample.question == last.text


def test_a_text_without_spaces_can_be_cut(encoder: QuestionEncoder) -> None:
    text = replace(LONG, context="", question="字" * 100)

    def by_character(text: str) -> int:
        return len(text)

    from fednano_flwr.edge.fit import shortened

    shorter = shortened(text, 30, by_character)
    assert shorter is not None and shorter.question == "字" * 60


def test_a_run_trains_and_scores_cut_questions(
    run_config: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    flat = run_config(num_server_rounds=1, local_epochs=1, dataset__max_skipped=1.0)
    most = {"dataset.max-tokens": 30}
    counts = []
    for how in ("skip", "cut"):
        config = RunConfig.parse({**flat, **most, "dataset.too-long": how, "run.name": how})
        record = run_in_process(config, 2).rounds[1]
        assert record["failures"] == {"train": {}, "evaluate": {}}
        counts.append(sum(record["train_questions_per_client"].values()))
        assert ("| cut      the text of " in capsys.readouterr().out) == (how == "cut")
    assert counts[0] < counts[1]
    with pytest.raises(ConfigError, match="too-long"):
        RunConfig.parse({**flat, "dataset.too-long": "shorten"})
