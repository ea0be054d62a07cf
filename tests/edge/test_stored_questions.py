"""Questions kept in little memory are the questions that were kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fednano_flwr.data.table import in_memory, read_table, write_table
from fednano_flwr.edge.encoder import encode_all, load_encoder
from fednano_flwr.edge.questions import Limits, Question
from fednano_flwr.edge.stored_questions import StoredQuestions, _packed, _unpacked
from fednano_flwr.models.checkpoint import ModelCheckpoint
from tests.models.test_families import SAMPLES
from tests.models.test_long_answers import SAMPLES as LONG


def same(one: Question, other: Question) -> bool:
    for field in fields(Question):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            if a.dtype != b.dtype or not torch.equal(a, b):
                return False
        elif field.name == "geometry":
            if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
                return False
        elif a != b:
            return False
    return True


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_what_is_kept_of_a_question_is_all_of_it(
    family_folder: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    encoder = load_encoder(ModelCheckpoint(str(family_folder(family))))
    samples = [*SAMPLES, *LONG.values()]
    write_table(tmp_path / "t.arrow", samples)
    questions, left_out = encode_all(encoder, read_table(tmp_path / "t.arrow"))
    assert not left_out and len(questions) == len(samples)
    for found, sample in zip(questions, samples, strict=True):
        assert same(found, encoder.encode(sample))
    assert same(questions[-1], encoder.encode(samples[-1]))
    assert [q.sample.uid for q in questions[1:7:2]] == [samples[n].uid for n in (1, 3, 5)]
    with pytest.raises(IndexError):
        questions[len(samples)]


def test_those_that_a_host_refuses_are_named_and_the_others_keep_their_order(
    questions: list[Question],
) -> None:
    samples = [replace(q.sample, uid=f"q{n}") for n, q in enumerate(questions)]
    kept = StoredQuestions(in_memory(samples))
    for row, (sample, question) in enumerate(zip(samples, questions, strict=True)):
        kept.add(row, sample, replace(question, sample=sample))
    limits = Limits(request=sorted(len(q.ids) for q in questions)[6])
    short, left_out = kept.within(limits)
    refused = [limits.refusal(question) for question in questions]
    assert [q.sample for q in short] == [
        s for s, no in zip(samples, refused, strict=True) if not no
    ]
    assert left_out == [(s.uid, no) for s, no in zip(samples, refused, strict=True) if no]
    assert 0 < len(short) < len(kept) and not short.within(limits)[1]


@pytest.mark.parametrize(
    "values", [[], [0], [5, 5], [0, 0, 0], [1, 2, 2, 2, 1, 1, 0, 0, 0, 0, 7], [2**30] * 70000]
)
def test_runs_of_equal_tokens_are_unpacked_as_they_were(values: list[int]) -> None:
    packed = _packed(np.array(values, dtype=np.int32))
    assert _unpacked(packed).tolist() == values and len(packed) <= len(values)
    assert packed.dtype == np.int32
