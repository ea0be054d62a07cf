"""Data that others made, as rows: easy-VQA, the ScienceQA sample, and captions in a CSV file."""

import os
from collections import Counter
from pathlib import Path

import pytest

from fednano_flwr.data.defects import MISSING_PICTURE
from fednano_flwr.data.images import open_image
from fednano_flwr.data.load import load_questions
from tests.data.conftest import settings
from tests.data.real_rows import ROWS, write_captions, write_easy, write_scienceqa

SAMPLES = os.environ.get("FEDNANO_TEST_DATA", "")


@pytest.fixture(scope="module")
def easy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("easy")
    write_easy(folder)
    return folder


def test_easy_vqa_is_read_as_dialogues_and_as_a_table(easy):
    dialogues = load_questions(settings(name="messages", path=str(easy / "messages")))
    options = load_questions(settings(name="table", path=str(easy / "table")))
    assert not dialogues.skipped and not options.skipped
    for one, other in ((dialogues.train, options.train), (dialogues.test, options.test)):
        assert len(one) == len(other) == ROWS
        for said, chosen in zip(one, other, strict=True):
            assert said.question == chosen.question and len(chosen.choices) == 13
            assert said.free_answer == chosen.choices[chosen.answer]
            assert [p.read() for p in said.images] == [p.read() for p in chosen.images]
    assert open_image(dialogues.train[0].images[0]).size == (64, 64)


@pytest.mark.skipif(not SAMPLES, reason="the samples are in $FEDNANO_TEST_DATA")
def test_the_scienceqa_sample_is_the_same_as_it_is_as_dialogues_and_as_a_table(tmp_path):
    folder = Path(SAMPLES) / "scienceqa"
    write_scienceqa(folder, tmp_path)
    named = {"path": str(tmp_path), "max_skipped": 1.0, "group": "topic"}
    table = load_questions(settings(name="table", columns="id=pid,subject=subject", **named))
    talks = load_questions(settings(name="messages", columns="id=pid", **named))
    own = load_questions(settings(path=str(folder), max_skipped=1.0))
    expected = {sample.uid: sample for sample in (*own.train, *own.test)}
    found = {sample.uid: sample for sample in (*table.train, *table.test)}
    assert found.keys() == expected.keys() and table.skipped == own.skipped
    for uid, sample in expected.items():
        same = ("question", "choices", "answer", "context", "group", "subject")
        assert [getattr(found[uid], key) for key in same] == [getattr(sample, key) for key in same]
    for sample in (*talks.train, *talks.test):
        chosen = expected.get(sample.uid)  # a dialogue may end with what is no option
        assert chosen is None or sample.free_answer == chosen.choices[chosen.answer]
    assert talks.skipped[MISSING_PICTURE] == own.skipped[MISSING_PICTURE]


def test_captions_in_a_csv_file_are_answers_to_one_instruction(tmp_path):
    count = write_captions(tmp_path)
    own = {"path": str(tmp_path / "captions.csv"), "instruction": "Describe the picture."}
    found = load_questions(settings(name="table", test_fraction=0.2, **own))
    assert len(found.train) == count > 100 and not found.skipped
    assert Counter(s.question for s in found.train) == {"Describe the picture.": count}
    assert found.train[0].free_answer.startswith("A picture: ")
