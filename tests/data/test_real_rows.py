"""Data that others made, as rows: easy-VQA, the ScienceQA sample, and captions in a CSV file."""

import csv
import json
import os
from collections import Counter
from pathlib import Path

import easy_vqa
import pytest

from fednano_flwr.data.defects import MISSING_PICTURE
from fednano_flwr.data.images import open_image
from fednano_flwr.data.load import load_questions
from tests.data.conftest import settings

SAMPLES = os.environ.get("FEDNANO_TEST_DATA", "")
ROWS = 400


@pytest.fixture(scope="module")
def easy(tmp_path_factory) -> Path:
    """easy-VQA's first questions of each split: messages/<split>.jsonl and table/<split>.csv."""
    folder = tmp_path_factory.mktemp("easy")
    for kind in ("messages", "table"):
        (folder / kind).mkdir()
    for split, questions, pictures in (
        ("train", easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        ("test", easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    ):
        (folder / "messages" / split).symlink_to(Path(pictures[0]).parent)
        rows = list(zip(*questions, strict=True))[:ROWS]
        with (folder / "messages" / f"{split}.jsonl").open("w") as lines:
            for question, answer, picture in rows:
                turns = [
                    {"role": "user", "content": f"<image>{question}"},
                    {"role": "assistant", "content": answer},
                ]
                row = {"messages": turns, "images": [f"{split}/{picture}.png"]}
                print(json.dumps(row), file=lines)
        (folder / "table" / split).symlink_to(Path(pictures[0]).parent)
        with (folder / "table" / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["picture", "question", "answer", "options"])
            for question, answer, picture in rows:
                writer.writerow(
                    [f"{split}/{picture}.png", question, answer, easy_vqa.get_answers()]
                )
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
    problems = json.loads((folder / "problems.json").read_text("utf-8"))
    splits = json.loads((folder / "pid_splits.json").read_text("utf-8"))
    (tmp_path / "images").symlink_to(folder / "images")
    for split in ("train", "test"):
        with (tmp_path / f"{split}.jsonl").open("w") as file:
            for pid in splits[split]:
                raw = problems[pid]
                image = raw["image"] and f"images/{split}/{pid}/{raw['image']}"
                answer = raw["choices"][raw["answer"]]
                turns = [("user", raw["question"]), ("assistant", answer)]
                messages = [{"role": role, "content": text} for role, text in turns]
                row = {**raw, "pid": pid, "image": image, "messages": messages}
                print(json.dumps(row), file=file)
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


def test_captions_in_a_csv_file_are_answers_to_one_instruction(easy, tmp_path):
    (tmp_path / "pictures").symlink_to(easy / "table" / "train")
    texts, answers, pictures = easy_vqa.get_train_questions()
    said: dict[int, str] = {}
    for text, answer, picture in zip(texts, answers, pictures, strict=True):
        if text in ("what color is the shape?", "what shape is in the image?"):
            said[picture] = f"{said.get(picture, 'A picture:')} {answer}"
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        writer.writerows((f"pictures/{picture}.png", text) for picture, text in said.items())
    own = {"path": str(tmp_path / "captions.csv"), "instruction": "Describe the picture."}
    found = load_questions(settings(name="table", test_fraction=0.2, **own))
    assert len(found.train) == len(said) > 100 and not found.skipped
    assert Counter(s.question for s in found.train) == {"Describe the picture.": len(said)}
    assert found.train[0].free_answer.startswith("A picture: ")
