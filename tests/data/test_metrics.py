"""Metrics of free answers against values that were worked out by hand or by their authors' code."""

from __future__ import annotations

from fractions import Fraction

import pytest

from fednano_flwr.config import ConfigError
from fednano_flwr.config.project import default_config
from fednano_flwr.data.metrics import (
    METRICS,
    anls,
    contains,
    exact,
    find_metric,
    metric_label,
    rouge_l,
    token_f1,
    vqa,
)

PEOPLE = [*["a red bus"] * 6, *["Bus."] * 2, "two buses", "van"]


def test_exact_takes_any_of_the_references() -> None:
    assert exact("The Bus.", ["van", "bus"]) == 1
    assert exact("a bus stop", ["van", "bus"]) == 0


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("It is Paris, in France.", "Paris", 1),
        ("It is paris in France", "the Paris.", 1),
        ("nothing", "no", 0),
        ("that is 5.", "5", 1),
        ("that is -5", "5", 0),
        ("that is 5.2 cm", "5", 0),
        ("about 3.5 cm", "3.5", 1),
        ("它是巴黎的塔", "巴黎", 1),
        ("anything", "''", 0),
        ("drei Bären", "ren", 0),
        ("drei Bären", "Bären", 1),
    ],
)
def test_contains_finds_whole_words(answer: str, reference: str, score: float) -> None:
    assert contains(answer, ["elsewhere", reference]) == score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("red bus", Fraction(1)),  # 6 people; 5 others for each of them
        ("bus", Fraction(2 * 1 + 8 * 2, 30)),  # 2 people: 1/3 for each of them, 2/3 for the others
        ("2 buses", Fraction(9, 30)),  # 1 person: 0 for that one, 1/3 for the others
        ("car", Fraction(0)),
    ],
)
def test_vqa_accuracy_leaves_each_person_out_in_turn(answer: str, score: Fraction) -> None:
    assert vqa(answer, PEOPLE) == pytest.approx(float(score))


# By VQA's PythonEvaluationTools (vqaEval.py), run on these answers.
@pytest.mark.parametrize(
    ("answer", "people", "score"),
    [
        ("dont know", ["don't know"] * 3 + ["no"] * 7, 0.9),
        ("1,000", ["1000"] * 2 + ["1,000"] * 2 + ["many"] * 6, 1.0),
        ("blue red", ["blue/red", "blue/red", "blue, red", *["green"] * 7], 0.9),
        ("left hand", ["left-hand", "a left hand", *["right"] * 8], 0.6),
        ("none", ["0", "zero", "none", *["1"] * 7], 0.9),
        ("3.5", ["3.5.", "35", "3.5", "x"], 0.5),
    ],
)
def test_vqa_accuracy_is_that_of_the_official_evaluation(
    answer: str, people: list[str], score: float
) -> None:
    assert vqa(answer, people) == pytest.approx(score)


def test_vqa_accuracy_of_fewer_than_four_people_is_the_share_that_they_can_reach() -> None:
    assert vqa("two", ["2"]) == 1 and vqa("three", ["2"]) == 0
    assert vqa("bus", ["bus", "bus"]) == 1 and vqa("bus", ["bus", "van"]) == 0.5
    assert vqa("bus", ["bus"] * 3) == 1 and vqa("bus", ["bus", "bus", "van"]) == pytest.approx(
        2 / 3
    )
    assert vqa("bus", ["bus"] * 4) == 1 and vqa("bus", ["bus", "van", "car", "cab"]) == 0.25


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("The cat sat!", ["a cat sat down"], 4 / 5),  # 2 of 2 and 2 of 3 words
        ("cat cat", ["cat"], 2 / 3),  # a word counts as often as both have it
        ("dog", ["cat", "the dog"], 1),
        ("dog", ["cat"], 0),
        ("", ["the"], 1),  # neither has a word
    ],
)
def test_token_f1_by_hand(answer: str, references: list[str], score: float) -> None:
    assert token_f1(answer, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("Pariss", ["paris"], 5 / 6),
        ("pars", ["London", " PARIS "], 4 / 5),
        ("parxyz", ["paris"], 0),  # 3 edits of 6 letters: the threshold itself gives nothing
        ("pariyzx", ["paris"], 4 / 7),
        ("", ["paris"], 0),
    ],
)
def test_anls_by_hand(answer: str, references: list[str], score: float) -> None:
    assert anls(answer, references) == pytest.approx(score)


# By rouge_score 0.1.2, rougeL without stemming.
@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("police killed the gunman", ["police kill the gunman"], 0.75),
        ("the gunman kill police", ["police kill the gunman"], 0.5),
        ("a big-small cat", ["the big, small CAT sat on it", "dog"], 0.5454545454545454),
        ("ran", ["runs"], 0),
    ],
)
def test_rouge_l_is_that_of_its_authors_package(
    answer: str, references: list[str], score: float
) -> None:
    assert rouge_l(answer, references) == pytest.approx(score)


def test_rouge_l_knows_words_of_other_scripts() -> None:
    assert rouge_l("Москва большая", ["большая Москва"]) == 0.5


@pytest.mark.parametrize("name", METRICS)
def test_a_reference_itself_scores_1_and_another_answer_0(name: str) -> None:
    score = find_metric(name).score
    assert score("red bus", ["red bus"]) == 1
    assert score("red bus", ["van", "red bus"]) == (0.5 if name == "vqa" else 1)
    assert score("seven", ["red bus", "van"]) == 0


def test_an_unknown_metric_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.metric = 'bleu'.*exact.*rouge-l"):
        find_metric("bleu")
    with pytest.raises(ConfigError, match=r"dataset\.metric = 'math:bleu'"):
        find_metric("math:bleu")


def test_a_function_of_another_package_is_a_metric() -> None:
    assert find_metric("fednano_flwr.data.metrics:vqa").score is vqa
    named = {"vqa": "VQA accuracy", "nowhere:relaxed_accuracy": "relaxed_accuracy"}
    for name, label in named.items():
        assert metric_label(default_config({"dataset.metric": name})) == label
    assert metric_label(default_config()) == "accuracy"
