"""The benchmark of many clients at one language model: its model and its prepared steps."""

from __future__ import annotations

import pytest

from benchmarks.crowd import Preset, prepare
from benchmarks.models import Shape, random_half
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.jobs import StepJob

PRESET = Preset("random", image_tokens=5, text_tokens=8, rank=2, dtype="float32")


@pytest.mark.parametrize("exchange", ["lowrank", "embeddings"])
def test_prepared_steps_have_the_same_loss_alone_and_in_a_shared_pass(exchange: str) -> None:
    half = random_half(Shape(width=32, layers=2, heads=4, inner=48, vocabulary=50))
    host = FrozenLLM(half)
    work = [prepare(node, PRESET, exchange, 32, 50) for node in range(4)]
    assert len({one.inputs.layout.lengths for one in work}) > 1  # so that a shared pass has padding
    owners = [str(node).encode() for node in range(4)]
    for one, owner in zip(work, owners, strict=True):
        host.keep_features(one.features, owner)
    alone = [host.step(w.inputs, w.labels, o)[0] for w, o in zip(work, owners, strict=True)]
    jobs = [StepJob(w.inputs, w.labels, o) for w, o in zip(work, owners, strict=True)]
    host.serve([sample for job in jobs for sample in job.samples()])
    assert [job.future.result()[0] for job in jobs] == pytest.approx(alone, rel=1e-5)
    assert len(set(alone)) == 4
