"""How the LLM half runs: its attention, checkpointing, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import is_bitsandbytes_available

from fednano_flwr import client_app, preflight, server_app
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.llm import service
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models import llm_half
from fednano_flwr.models.layers import decoder_layers
from fednano_flwr.models.llm_half import LLMHalf, load_llm_half
from fednano_flwr.models.quantize import OLDEST
from tests import families
from tests.batches import labelled_everywhere as questions
from tests.local_grid import LocalGrid

# Gemma 2 caps attention's logits, which PyTorch's attention cannot, so transformers runs its own.
OWN_ATTENTION = ("paligemma",)
WITH_MASK = ("gemma3", "gemma4", "gemma4-large")
"""Whose pictures' tokens see each other, or whose layers see a window."""


def write(family: str, folder: Path, layers: int = 2) -> str:
    if family in ("llava", "gemma3", "blip-2"):  # which say themselves how many layers they have
        return str(families.write(family, folder))
    with mock.patch.dict(families.base.TEXT, {"num_hidden_layers": layers}):
        return str(families.write(family, folder))


@contextmanager
def attention_calls() -> Iterator[list[tuple[bool, bool]]]:
    """(has a mask, is causal) of each call of PyTorch's attention."""
    calls: list[tuple[bool, bool]] = []
    real = F.scaled_dot_product_attention

    def recorded(*args: Any, **kwargs: Any) -> Tensor:
        calls.append((kwargs.get("attn_mask") is not None, bool(kwargs.get("is_causal"))))
        return real(*args, **kwargs)

    with mock.patch("torch.nn.functional.scaled_dot_product_attention", recorded):
        yield calls


@pytest.mark.parametrize("family", families.every())
def test_attention_is_pytorchs_and_causal_without_a_mask_but_for_windows(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    half = load_llm_half(str(family_folder(family)))
    layers = decoder_layers(half.get_submodule("_host"))  # type: ignore[arg-type]
    with attention_calls() as calls:
        FrozenLLM(half).step(*questions(half))
    if family in OWN_ATTENTION:
        assert not calls
    else:
        text = half.get_submodule("_host").config.get_text_config()
        kinds = getattr(text, "layer_types", None) or ["full_attention"] * len(layers)
        masked = [
            family in WITH_MASK or kind == "sliding_attention"
            for layer, kind in zip(layers, kinds, strict=True)
            if hasattr(layer, "self_attn")
        ]
        assert calls == [(mask, not mask) for mask in masked]


@pytest.mark.parametrize("family", families.every())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpointing_changes_no_bit(
    family: str, dtype: str, family_folder: Callable[[str], Path]
) -> None:
    plain, saving = (
        FrozenLLM(
            load_llm_half(str(family_folder(family)), dtype=dtype, checkpointing=checkpointing)
        )
        for checkpointing in (False, True)
    )
    inputs, labels = questions(plain._half)
    for _ in range(2):
        loss, (gradient,) = plain.step(inputs, labels)
        saved_loss, (saved_gradient,) = saving.step(inputs, labels)
        assert saved_loss == loss and gradient.any(dim=1).all()
        assert torch.equal(saved_gradient, gradient)
        scores, again = (
            host.score(inputs, torch.arange(3), torch.arange(5)) for host in (plain, saving)
        )
        assert torch.equal(scores, again)


class Kept:
    """Bytes that a forward pass keeps for the backward, but for weights."""

    def __init__(self, half: LLMHalf, options: tuple[int, ...]) -> None:
        weights = {parameter.data_ptr() for parameter in half.parameters()}
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in weights:
                found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        inputs, labels = questions(half, options)
        positions = (labels != IGNORE).nonzero().squeeze(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            FrozenLLM(half).forward(inputs, positions)
        self.bytes = sum(found.values())


@pytest.mark.parametrize("family", ["instructblip", "qwen2_5_vl", "llava_next"])
def test_with_checkpointing_a_layer_keeps_its_input_only(family: str, tmp_path: Path) -> None:
    kept = {}
    for layers in (2, 6):
        folder = write(family, tmp_path / str(layers), layers)
        for checkpointing in (False, True):
            half = load_llm_half(folder, checkpointing=checkpointing)
            kept[layers, checkpointing] = Kept(half, (40, 30)).bytes
    one_input = 2 * 40 * 48 * 4
    assert kept[6, True] - kept[2, True] == 4 * one_input
    assert kept[6, False] - kept[2, False] > 4 * 10 * one_input


def test_layers_are_computed_again_for_a_gradient_only(
    family_folder: Callable[[str], Path],
) -> None:
    half = load_llm_half(str(family_folder("instructblip")), checkpointing=True)
    host, calls = FrozenLLM(half), []
    for layer in decoder_layers(half.get_submodule("_host")):  # type: ignore[arg-type]
        attention = layer.get_submodule("self_attn")
        attention.register_forward_hook(lambda *_: calls.append(1))
    inputs, labels = questions(half)
    host.score(inputs, torch.arange(3), torch.arange(5))
    host.token_losses(inputs, torch.arange(3), torch.arange(3))
    assert len(calls) == 2 * 2
    calls.clear()
    host.step(inputs, labels)
    assert len(calls) == 2 * 2


def test_checkpointing_turns_no_dropout_on(tmp_path: Path) -> None:
    folder = families.write("blip-2", tmp_path / "blip-2")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dropout": 0.0', '"dropout": 0.5'))
    assert '"dropout": 0.5' in config.read_text()
    host = FrozenLLM(load_llm_half(str(folder), checkpointing=True))
    inputs, labels = questions(host._half)
    (loss, (gradient,)), (again, (gradient_again,)) = (host.step(inputs, labels) for _ in range(2))
    assert loss == again and torch.equal(gradient, gradient_again)
    layers = decoder_layers(host._half.get_submodule("_host"))  # type: ignore[arg-type]
    assert not any(module.training for layer in layers for module in layer.modules())


@pytest.mark.skipif(not is_bitsandbytes_available(OLDEST), reason="bitsandbytes is missing")
def test_a_quantized_host_may_checkpoint(family_folder: Callable[[str], Path]) -> None:
    results = []
    for checkpointing in (False, True):
        half = load_llm_half(
            str(family_folder("instructblip")), quantization="8bit", checkpointing=checkpointing
        )
        results.append(FrozenLLM(half).step(*questions(half)))
    assert results[0][0] == results[1][0] and torch.equal(*results[0][1], *results[1][1])


def test_a_run_trains_with_a_checkpointing_host_as_without(
    run_config: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    losses = []
    for checkpointing in (False, True):
        flat = run_config(
            llm__checkpointing=checkpointing, num_server_rounds=1, run__name=str(checkpointing)
        )
        grid = LocalGrid(client_app.app, flat, clients=2)
        with mock.patch.object(service, "load_llm_half", wraps=service.load_llm_half) as load:
            folder = server_app.federate(grid, 1, RunConfig.parse(flat))
        assert load.call_args.args[4] is checkpointing
        losses.append(folder.rounds[1]["train_loss"])
    assert losses[0] == losses[1] > 0


def test_layers_that_cannot_be_told_are_refused(family_folder: Callable[[str], Path]) -> None:
    host: Any = load_llm_half(str(family_folder("instructblip"))).get_submodule("_host")
    assert [type(layer).__name__ for layer in decoder_layers(host)] == ["LlamaDecoderLayer"] * 2
    with mock.patch("fednano_flwr.models.layers.GradientCheckpointingLayer", nn.Bilinear):
        assert decoder_layers(host) == list(host.model.layers)  # by their list's name
        host.config.num_hidden_layers = 3
        with pytest.raises(ConfigError, match="its 3 decoder layers"):
            decoder_layers(host)


@pytest.mark.parametrize(
    ("device_map", "device", "quantization", "message"),
    [
        ("auto", "cuda", "4bit", r"llm\.device-map.* llm\.quantization = '4bit'"),
        ("auto", "cuda", "none", r"llm\.device-map = 'auto': no GPU"),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_is_read(
    device_map: str,
    device: str,
    quantization: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*args: Any) -> None:
        raise AssertionError("the checkpoint was opened")

    monkeypatch.setattr(llm_half, "open_whole", read)
    monkeypatch.setattr(llm_half, "check_quantization", lambda *args: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        load_llm_half("model", device, quantization=quantization, device_map=device_map)


def test_a_map_over_gpus_needs_a_device_without_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for device in ("cpu", "cuda:1"):
        with pytest.raises(ConfigError, match=f"llm.device is '{device}'; set it to \"cuda\""):
            load_llm_half("model", device, device_map="balanced")


def test_a_run_that_asks_for_what_this_machine_lacks_is_not_started(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = run_config(dataset__alpha=1.0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU on this machine"):
        preflight.validate(RunConfig.parse(flat | {"llm.device-map": "auto"}))
    with pytest.raises(ConfigError, match=r"llm\.device-map = 'even'.*balanced"):
        RunConfig.parse(flat | {"llm.device-map": "even"})
