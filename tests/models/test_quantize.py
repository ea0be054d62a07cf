"""Quantized hosts: what they need, and that their gradients are those of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.bitsandbytes import dequantize_bnb_weight
from transformers.utils import is_bitsandbytes_available

from fednano_flwr import client_app, preflight, server_app
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models import llm_half
from fednano_flwr.models.llm_half import LLMHalf, load_llm_half
from fednano_flwr.models.quantize import OLDEST
from tests import families, tiny
from tests.batches import labelled_everywhere as questions
from tests.local_grid import LocalGrid
from tests.opened import recorded

with_bitsandbytes = pytest.mark.skipif(
    not is_bitsandbytes_available(OLDEST),
    reason="quantized hosts need bitsandbytes: pip install 'fednano-flwr[quantized]'",
)
QUANTIZE = "fednano_flwr.models.quantize"
KINDS = {"8bit": "Int8Params", "4bit": "Params4bit"}
# Of a host's loss, gradient and weights with the unquantized ones: random weights of a tiny model
# round badly in 4 bits. That rounding is all that differs is what the comparison with the
# dequantized weights shows.
LOSS = {"8bit": 0.01, "4bit": 0.05}
COSINE = {"8bit": 0.99, "4bit": 0.8}
WEIGHTS = {"8bit": 0.01, "4bit": 0.12}


# In 4 bits a CPU needs wider layers than the other tiny families' fixed sizes allow.
WIDE = ("llava", "llava_next", "llava_onevision", "internvl", "smolvlm", "instructblip")
CASES = [
    pytest.param(bits, family, marks=() if family in families.CORE else pytest.mark.slow)
    for bits, of in (("8bit", families.TINY), ("4bit", WIDE))
    for family in of
]


def write(family: str, folder: Path, width: int) -> Path:
    if family == "llava":
        return tiny.write_checkpoint(folder, width=width)
    wide = {"hidden_size": width, "intermediate_size": 2 * width}
    with mock.patch.dict(families.base.TEXT, wide):
        return families.write(family, folder)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llava", tmp_path_factory.mktemp("wide"), 64)


def quantized(half: LLMHalf) -> dict[str, str]:
    """Class of each parameter that is not a plain one."""
    return {
        name: type(parameter).__name__
        for name, parameter in half.named_parameters()
        if type(parameter) is not torch.nn.Parameter
    }


def dequantize(half: LLMHalf, plain: LLMHalf, tolerance: float) -> None:
    """Put a quantized half's weights into an unquantized one, whose own they are close to."""
    for name in quantized(half):
        layer = half.get_submodule(name.removesuffix(".weight"))
        weight = plain.get_parameter(name)
        rounded = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None)).to(weight)
        assert error(rounded, weight) < tolerance
        weight.data = rounded


def error(got: Tensor, expected: Tensor) -> float:
    """Length of the difference, relative to what is expected."""
    assert got.shape == expected.shape
    return float((got - expected).norm() / expected.norm())


def cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one.flatten(), other.flatten(), dim=0))


@with_bitsandbytes
@pytest.mark.parametrize(("kind", "family"), CASES)
def test_a_quantized_host_gives_nearly_the_models_loss_and_gradient(
    kind: str, family: str, tmp_path: Path
) -> None:
    checkpoint = write(family, tmp_path / family, width=64 if kind == "4bit" else 48)
    with recorded() as opened:
        half = load_llm_half(str(checkpoint), quantization=kind)
    parts = {name.partition(".")[0] for name in opened}
    assert parts == {"language_model"} or parts == {"language_model", "lm_head"}

    found = quantized(half)
    assert set(found.values()) == {KINDS[kind]}
    layers = half.get_submodule("_host").config.get_text_config().num_hidden_layers
    assert len(found) >= 5 * layers  # two of a convolution's or four, and three of a block's or two
    assert not [name for name in found if "head" in name or "embed" in name]

    plain = load_llm_half(str(checkpoint))
    assert half.size == plain.size == sum(p.numel() for p in plain.parameters())
    assert FrozenLLM(half).describe() == FrozenLLM(plain).describe()
    inputs, labels = questions(half)
    loss, (gradient,) = FrozenLLM(half).step(inputs, labels)
    plain_loss, (plain_gradient,) = FrozenLLM(plain).step(inputs, labels)
    assert loss != plain_loss and loss == pytest.approx(plain_loss, rel=LOSS[kind])
    assert gradient.isfinite().all() and gradient.any(dim=1).all()
    assert cosine(gradient, plain_gradient) > COSINE[kind]

    dequantize(half, plain, WEIGHTS[kind])
    same_loss, (same_gradient,) = FrozenLLM(plain).step(inputs, labels)
    assert loss == pytest.approx(same_loss, rel=1e-6)
    assert error(gradient, same_gradient) < 1e-5


@with_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_scoring_does_not_change_what_a_later_step_gives(
    wide_model: Path, kind: str, dtype: str
) -> None:
    half = load_llm_half(str(wide_model), dtype=dtype, quantization=kind)
    host = FrozenLLM(half)
    inputs, labels = questions(half)
    loss, (gradient,) = host.step(inputs, labels)
    assert gradient.dtype == half.dtype and gradient.any()
    everything = torch.arange(half.vocabulary)
    scores = host.score(inputs, torch.arange(len(labels)), everything)
    assert F.cross_entropy(scores, labels).item() == pytest.approx(loss, rel=1e-5)
    again, (gradient_again,) = host.step(inputs, labels)
    assert again == loss and torch.equal(gradient_again, gradient)


@with_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_against_a_quantized_host(
    run_config: Callable[..., dict[str, Any]],
    wide_model: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flat = run_config(model__name=str(wide_model), llm__quantization=kind, num_server_rounds=1)
    grid = LocalGrid(client_app.app, flat, clients=2)
    folder = server_app.federate(grid, 1, RunConfig.parse(flat))
    assert folder.rounds[1]["train_loss"] > 0
    assert f"linear layers in {kind}, the rest in float32 on cpu" in capsys.readouterr().out


@with_bitsandbytes
def test_a_layer_that_a_cpu_decodes_wrongly_in_4_bits_is_refused_before_its_weight_is_read(
    tiny_model: Path,
) -> None:
    with recorded() as opened, pytest.raises(ConfigError, match=r"has 48 inputs.*multiple of 64"):
        load_llm_half(str(tiny_model), quantization="4bit")
    assert set(opened) == {"language_model.embed_tokens.weight"}  # of the fingerprint


def test_what_a_quantized_host_lacks_is_said_before_anything_is_read(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(name: str) -> None:
        raise AssertionError("the checkpoint was opened")

    monkeypatch.setattr(llm_half, "open_whole", read)
    name = str(tiny_model)
    monkeypatch.setattr(f"{QUANTIZE}.is_bitsandbytes_available", lambda oldest: False)
    for device in ("cpu", "cuda:1"):
        with pytest.raises(ConfigError, match="bitsandbytes"):
            load_llm_half(name, device, quantization="8bit")
    monkeypatch.setattr(f"{QUANTIZE}.is_bitsandbytes_available", lambda oldest: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"'4bit': llm\.device is 'cuda:1'.* no CUDA"):
        load_llm_half(name, "cuda:1", quantization="4bit")
    with pytest.raises(ConfigError, match=r"llm\.device .*'mps'"):
        load_llm_half(name, "mps", quantization="8bit")


def test_a_run_that_asks_for_what_is_missing_is_not_started(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = run_config(dataset__alpha=1.0)
    preflight.validate(RunConfig.parse(flat))
    monkeypatch.setattr(
        "fednano_flwr.models.quantize.is_bitsandbytes_available", lambda oldest: False
    )
    preflight.validate(RunConfig.parse(flat))
    with pytest.raises(ConfigError, match=r"bitsandbytes, .* missing"):
        preflight.validate(RunConfig.parse(flat | {"llm.quantization": "4bit"}))
