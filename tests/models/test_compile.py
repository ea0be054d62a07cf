"""Compiled decoder layers: the same results, and a few graphs for all layers and batches."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.host_options import HostOptions
from fednano_flwr.models.layers import VARIANTS
from fednano_flwr.models.llm_half import load_llm_half
from tests import tiny_families
from tests.models.test_host_options import questions

COMPILER = os.environ.get("CXX", "g++")
BATCHES = ((9, 5), (7,), (12, 3, 4))
"""Lengths of samples: two, one, and three of them."""


TOLERANCE = 1e-5


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def compare(folder: Path, options: HostOptions) -> None:
    """A compiling host against a plain one, on batches of several sizes, and its graphs."""
    plain = FrozenLLM(load_llm_half(str(folder)))
    half = load_llm_half(str(folder), options=options)
    host, everything = FrozenLLM(half), torch.arange(half.vocabulary)
    for lengths in BATCHES:
        inputs, labels = questions(half, lengths)
        loss, gradient = plain.step(inputs, labels)
        again, gradient_again = host.step(inputs, labels)
        assert again == pytest.approx(loss, rel=TOLERANCE)
        assert error(gradient_again, gradient) < TOLERANCE
        last = torch.tensor([lengths[0] - 1])
        scores = plain.score(inputs, last, everything)
        assert error(host.score(inputs, last, everything), scores) < TOLERANCE


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture(autouse=True)
def nothing_is_compiled() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_layers_share_what_is_compiled(tmp_path: Path, checkpointing: bool) -> None:
    with mock.patch.dict(tiny_families.TEXT, {"num_hidden_layers": 4}):
        folder = tiny_families.write("instructblip", tmp_path / "instructblip")
    options = HostOptions(checkpointing, compile=True, compile_backend="eager")
    compare(folder, options)
    # With and without gradients, for one sample and for several: not once a layer or a length.
    assert graphs() == 4
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
def test_each_kind_of_layer_is_compiled_for_itself(tmp_path: Path) -> None:
    folder = tiny_families.write("gemma3", tmp_path / "gemma3")
    compare(folder, HostOptions(compile=True, compile_backend="eager"))
    # Local and global attention, each as above: as many as PyTorch's own limit.
    assert graphs() == 8 < VARIANTS <= torch._dynamo.config.recompile_limit


@pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"compiling for a CPU needs a C++ compiler, {COMPILER}"
)
def test_machine_code_gives_the_same_results(tmp_path: Path) -> None:
    folder = tiny_families.write("instructblip", tmp_path / "instructblip")
    with mock.patch(f"{__name__}.BATCHES", BATCHES[:1]):
        compare(folder, HostOptions(checkpointing=True, compile=True))
    assert graphs() == 2
