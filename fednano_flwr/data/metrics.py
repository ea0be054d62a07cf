"""How right a free answer is: the metrics that `dataset.metric` names.

A metric is a pure function of an answer and of the references, all the answers that count as right.
Its score is from 0 to 1. A question with options has none of these: it is scored 1 where the right
option is the likeliest, else 0.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import fmean

from rapidfuzz.distance import LCSseq, Levenshtein

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.data.prompts import normalise_answer

ANLS_THRESHOLD = 0.5
VQA_PEOPLE = 3
"""So many other people have to have given an answer that counts as wholly right."""
_LETTERS = "a-z0-9ß-öø-ɏͰ-ԯḀ-ỿ"
"""What words of Latin, Greek and Cyrillic are made of: scripts that put spaces between words."""
_ARTICLES = ("a", "an", "the")
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact(answer: str, references: Sequence[str]) -> float:
    """1 where it is one of the references, both normalised (`normalise_answer`)."""
    return float(normalise_answer(answer) in map(normalise_answer, references))


def contains(answer: str, references: Sequence[str]) -> float:
    """1 where a reference is in it as whole words, both normalised; "5" is not in "-5" or "5.2"."""
    text = normalise_answer(answer)
    wanted = (re.escape(word) for word in map(normalise_answer, references) if word)
    whole = (rf"(?<![{_LETTERS}.-]){word}(?![{_LETTERS}]|[.,-]\d)" for word in wanted)
    return float(any(re.search(pattern, text) for pattern in whole))


def vqa(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy: mean over the references of min(1, m / 3)      (Antol et al., ICCV 2015)

    m counts the other references that are the answer: each reference in turn is left out. They are
    the answers of people (ten in VQA), one a person, with their repeats. With n < 4 of them, 3 is
    replaced by n − 1, and one reference makes an exact match.

    Answers are compared in the form of the official evaluation: lower case, numbers up to ten as
    digits, without articles and punctuation. It writes apostrophes into contractions that lack
    them; here apostrophes are left out. It takes answers as they are where all people agree; here
    they are always brought into this form.
    """
    said, people = _vqa_form(answer), [_vqa_form(reference) for reference in references]
    matches, needed = people.count(said), min(VQA_PEOPLE, len(people) - 1)
    if not needed:
        return float(matches)
    return fmean(min(1.0, (matches - (one == said)) / needed) for one in people)


def _vqa_form(text: str) -> str:
    text = found = " ".join(text.split())
    joins = bool(re.search(r"\d,\d", text))
    for mark in _MARKS:
        outer = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if outer or joins else " ")
    words = re.sub(r"\.(?!\d)", "", found).lower().replace("'", "").split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in _ARTICLES)


def token_f1(answer: str, references: Sequence[str]) -> float:
    """F1 of the words of answer and reference, the best of all     (Rajpurkar et al., EMNLP 2016)

    Words are in lower case, without punctuation and articles.
    """

    def words(text: str) -> Counter[str]:
        found = text.lower().translate(_NO_PUNCTUATION).split()
        return Counter(word for word in found if word not in _ARTICLES)

    def of(reference: Counter[str]) -> float:
        return _f1((said & reference).total(), said.total(), reference.total())

    said = words(answer)
    return max(of(words(reference)) for reference in references)


def anls(answer: str, references: Sequence[str]) -> float:
    """1 − NL where NL < 0.5, else 0; the best of all references        (Biten et al., ICCV 2019)

    NL is the Levenshtein distance over the length of the longer text, both in lower case.
    """

    def written(text: str) -> str:
        return " ".join(text.lower().split())

    said = written(answer)
    distance = min(Levenshtein.normalized_distance(said, written(one)) for one in references)
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words, the best of all            (Lin, ACL 2004)

    Words are runs of letters and digits in lower case, as they stand: without stemming.
    """

    def words(text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())

    def of(reference: list[str]) -> float:
        return _f1(LCSseq.similarity(said, reference), len(said), len(reference))

    said = words(answer)
    return max(of(words(reference)) for reference in references)


def _f1(common: int, said: int, wanted: int) -> float:
    """Of numbers of words; 1 where there are none at all."""
    return 2 * common / (said + wanted) if said + wanted else 1.0


@dataclass(frozen=True)
class Metric:
    """How free answers are scored.

    Attributes:
        label: what its mean is called, in lines, tables and figures.
        score: from an answer and its references to 0 … 1.
    """

    label: str
    score: Callable[[str, Sequence[str]], float]


METRICS = {
    "auto": Metric("accuracy", exact),
    "exact": Metric("accuracy", exact),
    "contains": Metric("containment accuracy", contains),
    "vqa": Metric("VQA accuracy", vqa),
    "f1": Metric("token F1", token_f1),
    "anls": Metric("ANLS", anls),
    "rouge-l": Metric("ROUGE-L", rouge_l),
}
"""By `dataset.metric`."""


def find_metric(name: str) -> Metric:
    """The metric of this name, or another package's function, as `module:function`.

    Raises:
        ConfigError: there is none.
    """
    if name in METRICS:
        return METRICS[name]
    module, _, function = name.partition(":")
    try:
        if not function:
            raise ValueError(f"must be one of {', '.join(METRICS)}, or module:function")
        return Metric(function, getattr(import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"dataset.metric = {name!r}: {error}") from None


def metric_label(config: RunConfig) -> str:
    """What a run's mean score is called; another package's function is not imported for it."""
    name = config.dataset.metric
    return METRICS[name].label if name in METRICS else name.rpartition(":")[2]
