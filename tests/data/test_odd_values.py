"""One question with an odd value among sound ones: it costs itself, and no other is changed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.data.cache import read_split
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import QuestionSet, load_questions
from fednano_flwr.data.prompts import user_text
from fednano_flwr.data.sample import Picture, Place, Sample, Turn
from fednano_flwr.data.sources import Found, Reading
from fednano_flwr.data.sources.scienceqa import NO_PROBLEM, NOT_IN_PROBLEMS, TWO_PROBLEMS, ScienceQA
from fednano_flwr.data.table import read_table, write_table
from tests.data.conftest import settings

ABSENT: list[Any] = [None, math.nan, "", "  "]
ODD: list[Any] = [
    *(5, 0, -1, 2.5, math.inf, 10**30, True, False),
    *([], ["a"], {}, {"a": 1}, [["a"]], [None]),
    *("\ud800", "x\0y"),
]
ODD_ID = "7"
IDS = [str(number) for number in range(10)]


def found_in(path: Path) -> Found:
    return Found("scienceqa", ScienceQA(path), str(path))


def shown(value: Any) -> str:
    return ascii(value)[:20]


@pytest.fixture
def scienceqa(write_scienceqa: Callable[..., Path]) -> Callable[..., QuestionSet]:
    """Reads ten questions, one of them with these fields."""

    def read(**fields: Any) -> QuestionSet:
        problems = {pid: {"hint": f"hint {pid}"} for pid in IDS}
        problems[ODD_ID] = problems[ODD_ID] | fields
        path = write_scienceqa(problems, train=IDS, test=[])
        return load_questions(settings(path=str(path), min_partition_size=1))

    return read


@pytest.fixture
def iconqa(tmp_path: Path, write_iconqa: Callable[..., Path]) -> Callable[..., QuestionSet]:
    """The same for any task; a field that is None is null in the file."""

    def read(task: str = "choose_txt", skills: Any = None, **fields: Any) -> QuestionSet:
        for pid in IDS:
            folder = write_iconqa("train", pid, task=task, hint=f"hint {pid}")
            (tmp_path / "iconqa_data" / "iconqa" / "test" / task).mkdir(parents=True, exist_ok=True)
            if pid == ODD_ID:
                raw = json.loads((folder / "data.json").read_text()) | fields
                (folder / "data.json").write_text(json.dumps(raw))
        if skills is not None:
            listed = {pid: ["counting"] for pid in IDS} | {ODD_ID: skills}
            (tmp_path / "iconqa_data" / "pid2skills.json").write_text(json.dumps(listed))
        return load_questions(settings(name="iconqa", path=str(tmp_path), tasks=task))

    return read


def odd_one(found: QuestionSet) -> Sample | None:
    """The question with the odd value, if it was read; the others are found to be as ever."""
    by_id = {sample.uid: sample for sample in found.train}
    odd = by_id.pop(ODD_ID, None)
    assert list(by_id) == [pid for pid in IDS if pid != ODD_ID]
    assert {pid: sample.context for pid, sample in by_id.items()} == {
        pid: f"hint {pid}" for pid in by_id
    }
    assert found.skipped.total() == (odd is None)
    return odd


@pytest.mark.parametrize("value", ABSENT, ids=shown)
def test_an_optional_value_that_is_empty_or_nan_counts_as_absent(value, scienceqa, iconqa):
    sample = odd_one(scienceqa(hint=value, topic=value, subject=value, image=value))
    assert sample is not None and "Context" not in user_text(sample)
    assert (sample.context, sample.images) == ("", ())
    assert (sample.group, sample.subject) == ("no topic", "no subject")
    sample = odd_one(iconqa(hint=value, grade=value))
    assert sample is not None and "Context" not in user_text(sample)
    assert (sample.group, sample.subject) == ("no grade/choose_txt", "choose_txt")
    for skills in (value, [value], []):
        sample = odd_one(iconqa(skills=skills if skills is not None else [None]))
        assert sample is not None and sample.subject == "choose_txt"


@pytest.mark.parametrize("value", ODD, ids=shown)
def test_a_value_that_is_not_text_costs_its_question_alone(value, scienceqa, iconqa):
    for field in ("hint", "topic", "subject"):
        found = scienceqa(**{field: value})
        assert odd_one(found) is None
        assert field in next(iter(found.skipped))
    for field in ("hint", "grade"):
        found = iconqa(**{field: value})
        assert odd_one(found) is None
        assert field in next(iter(found.skipped))


@pytest.mark.parametrize("value", [*ABSENT, *ODD], ids=shown)
def test_a_question_choices_answer_or_picture_of_another_type_costs_its_question(
    value, scienceqa, iconqa
):
    for field in ("question", "choices", "answer"):
        if field == "answer" and type(value) is int and value in (0, 1, 2):
            continue
        found = scienceqa(**{field: value})
        assert odd_one(found) is None
        assert field.removesuffix("s") in next(iter(found.skipped))
        if value != 0 or field != "answer" or value is False:
            assert odd_one(iconqa(**{field: value})) is None
    if value not in ABSENT:
        assert odd_one(scienceqa(image=value)) is None
    for task in ("choose_img", "fill_in_blank"):
        assert odd_one(iconqa(task, question=value)) is None
    assert odd_one(iconqa("choose_img", choices=["choice_0.png", value])) is None
    assert odd_one(iconqa("fill_in_blank", answer=value)) is None


@pytest.mark.parametrize("choices", [["a", None], ["a", math.nan], ["a", 1], ["a", True], "ab"])
def test_choices_that_are_not_a_list_of_texts_cost_their_question(choices, scienceqa):
    assert odd_one(scienceqa(choices=choices, answer=0)) is None


def test_choices_that_say_the_same_are_read_as_they_are(scienceqa):
    sample = odd_one(scienceqa(choices=["a", "a"], answer=1))
    assert sample is not None and sample.choices == ("a", "a")


@pytest.mark.parametrize("value", [value for value in ODD if value not in ([], "")], ids=shown)
def test_a_skill_that_is_not_text_costs_its_question_alone(value, iconqa):
    assert odd_one(iconqa(skills=[value])) is None
    if not isinstance(value, list):
        assert odd_one(iconqa(skills=value)) is None


def test_a_skill_may_stand_without_a_list(iconqa):
    sample = odd_one(iconqa(skills="time"))
    assert sample is not None and (sample.group, sample.subject) == ("time", "time")


@pytest.mark.parametrize("name", ["n" * 300 + ".png", "\ud800.png", "a\0b.png", "/etc/passwd"])
def test_a_picture_s_name_that_no_file_can_have_costs_its_question(name, scienceqa, iconqa):
    assert odd_one(scienceqa(image=name)) is None
    assert odd_one(iconqa("choose_img", choices=["choice_0.png", name])) is None


def test_problems_that_are_no_objects_or_that_share_an_id_cost_themselves(write_scienceqa):
    path = write_scienceqa({"1": {}, "2": {}}, train=list("123456"), test=[])
    whole = json.loads((path / "problems.json").read_text())
    one, same = json.dumps(whole["1"]), json.dumps(whole["2"])
    other = json.dumps(whole["2"] | {"answer": 0})
    (path / "problems.json").write_text(
        f'{{"1": {one}, "2": {same}, "2": {same}, "3": {same}, "3": {other}, "4": [], "5": null}}'
    )
    split = read_split(found_in(path), "train")
    assert split.questions.uids == ["1", "2"]
    assert split.skipped == {TWO_PROBLEMS: ["3"], NO_PROBLEM: ["4"], NOT_IN_PROBLEMS: ["5", "6"]}


def test_a_field_that_is_there_twice_with_different_values_costs_its_question(write_scienceqa):
    path = write_scienceqa({"1": {}, "2": {}}, train=["1", "2"], test=[])
    text = (path / "problems.json").read_text()
    (path / "problems.json").write_text(text.replace('"answer": 2', '"answer": 2, "answer": 1', 1))
    split = read_split(found_in(path), "train")
    assert split.skipped == {"answer is not one of the choices": ["1"]}


def test_a_number_of_thousands_of_digits_costs_its_question(write_scienceqa):
    path = write_scienceqa({"1": {}, "2": {}}, train=["1", "2"], test=[])
    text = (path / "problems.json").read_text()
    digits = "9" * 5000
    (path / "problems.json").write_text(text.replace('"answer": 2', f'"answer": {digits}', 1))
    assert read_split(found_in(path), "train").questions.uids == ["2"]


def test_ids_of_any_kind_are_looked_up_and_named(write_scienceqa):
    ids = [1, "2", None, True, 1.5, [3], {"a": 1}, "9" * 5000, "\ud800", "x\0", ""]
    path = write_scienceqa({str(pid): {} for pid in (1, 2, "\ud800", "x\0", "")}, train=ids)
    split = read_split(found_in(path), "train")
    assert split.questions.uids == ["1", "2"]
    assert sorted(split.skipped.pop(NOT_IN_PROBLEMS)) == sorted(
        ["None", "True", "1.5", "[3]", "{'a': 1}", "9" * 5000]
    )
    named = [pid for pids in split.skipped.values() for pid in pids]
    assert sorted(named) == ["", "\\ud800", "x\0"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_in_another_encoding_that_its_first_bytes_tell_is_read(write_scienceqa, encoding):
    path = write_scienceqa({"1": {"question": "Größe?"}}, train=["1"], test=[])
    for name in ("problems.json", "pid_splits.json"):
        (path / name).write_bytes((path / name).read_text().encode(encoding))
    assert read_split(found_in(path), "train").questions[0].question == "Größe?"


def test_whatever_a_source_makes_is_checked_before_it_is_written(write_scienceqa, monkeypatch):
    sound = {"question": "?", "group": "g", "subject": "s", "choices": ("a", "b"), "answer": 0}
    odd: list[dict[str, Any]] = [
        *({"context": math.nan}, {"context": 5}, {"group": ""}, {"subject": None}),
        *({"answer": 1.0}, {"answer": 2}, {"answer": None}, {"choices": ("a", b"b")}),
        *({"free_answer": 7, "choices": (), "answer": None}, {"question": "\ud800"}),
        *({"references": ("",)}, {"turns": (Turn("user", ("a\0",)),)}),
        {"turns": (Turn("user", (Place.PICTURE, "what?")),)},
    ]
    problems = [(str(n), Sample(str(n), **sound | fields)) for n, fields in enumerate([{}, *odd])]
    monkeypatch.setattr(
        ScienceQA, "read", lambda self, split: Reading(len(problems), iter(problems))
    )
    split = read_split(found_in(write_scienceqa({})), "train")
    assert split.questions.uids == ["0"]
    assert sum(map(len, split.skipped.values())) == len(odd)
    assert {reason.split()[0] for reason in split.skipped} >= {"context", "group", "subject"}


def test_a_value_is_never_turned_into_another_by_writing_it(tmp_path):
    def sample(context: Any) -> Sample:
        return Sample("1", "?", "g", "s", ("a", "b"), answer=0, context=context)

    for value in (5, True, math.nan):
        with pytest.raises(DataError, match="cannot be stored"):
            write_table(tmp_path / "t.arrow", [sample(value), sample("")])


def test_a_dialogue_is_read_as_it_was_written(tmp_path):
    turns = (Turn("user", (Place.PICTURE, "What is it?")), Turn("assistant", ("A cat.",)))
    turns += (Turn("user", ("Which colour?", Place.PICTURE)),)
    pictures = (Picture(data=b"one"), Picture(tmp_path / "two.png"))
    dialogue = Sample(
        *("1", "Which colour?", "g", "s"),
        free_answer="grey",
        references=("gray",),
        turns=turns,
        images=pictures,
    )
    write_table(tmp_path / "t.arrow", [dialogue])
    assert list(read_table(tmp_path / "t.arrow")) == [dialogue]
