"""A language model over several devices: which part goes where, and that activations follow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import backend_registration

from fednano_flwr.config import ConfigError
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models import skeleton
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.layers import device_of, place
from fednano_flwr.models.llm_half import load_llm_half
from tests.conftest import REPOSITORY
from tests.families import every
from tests.models.test_host_options import questions

GPU = [torch.device("cuda", index) for index in range(3)]
STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
MANY = 2**30


def on_meta(folder: Path) -> Any:
    """The language model and head of a checkpoint, without weights, tied as its config says."""
    source = ModelCheckpoint(str(folder))
    host = source.llm_tree().get_submodule(source.family.host)
    if "lm_head.weight" not in source.files:
        host.lm_head.weight = host.get_input_embeddings().weight
    return host


def parts(host: Any) -> dict[str, str]:
    """Every part of a language model by name: embeddings, layers, what is beside them, head."""
    layers = host.get_decoder().layers
    inside = skeleton.name_of(host, layers)
    owner = inside.rpartition(".")[0]
    beside = [f"{owner}.{name}" for name, _ in host.get_submodule(owner).named_children()]
    names = [name for name in beside if name != inside]
    return dict.fromkeys([*names, *(f"{inside}.{i}" for i in range(len(layers))), "lm_head"], "cpu")


def bytes_on(host: Any, places: Any) -> dict[torch.device, int]:
    total: dict[torch.device, int] = {}
    for name, parameter in host.named_parameters():
        device = device_of(places, name)
        total[device] = total.get(device, 0) + parameter.numel() * 4
    return total


@pytest.mark.parametrize("family", every(but=("blip-2",)))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_layers_stay_whole_and_fit_the_memory_given(
    family: str, strategy: str, family_folder: Callable[[str], Path]
) -> None:
    # Not of the tiny OPT, most of which is one table of positions.
    host = on_meta(family_folder(family))
    size = sum(bytes_on(host, {"": GPU[0]}).values())
    limit = int(0.7 * size)
    places = place(host, strategy, torch.float32, {0: limit, 1: limit, 2: limit})
    used = bytes_on(host, places)
    assert set(used) <= set(GPU) and len(used) > 1 and max(used.values()) <= limit
    for layer in host.get_decoder().layers:
        name = skeleton.name_of(host, layer)
        assert len({device_of(places, f"{name}.{part}") for part, _ in layer.named_modules()}) == 1
    for name, _ in host.named_buffers():
        assert device_of(places, name) in GPU


def test_sequential_fills_the_first_gpu_balanced_shares_and_too_few_are_refused(
    family_folder: Callable[[str], Path],
) -> None:
    host = on_meta(family_folder("gemma3"))
    room = {0: MANY, 1: MANY}
    assert set(bytes_on(host, place(host, "sequential", torch.float32, room))) == {GPU[0]}
    shared = bytes_on(host, place(host, "balanced", torch.float32, room))
    assert set(shared) == set(GPU[:2]) and min(shared.values()) > max(shared.values()) / 3
    spared = bytes_on(host, place(host, "balanced_low_0", torch.float32, room))
    assert spared.get(GPU[0], 0) < min(shared.values())
    with pytest.raises(ConfigError, match=r"llm\.device-map.*llm\.dtype"):
        place(host, "sequential", torch.float32, {0: min(shared.values())})


def test_a_tied_head_goes_where_the_embeddings_are(family_folder: Callable[[str], Path]) -> None:
    host = on_meta(family_folder("gemma3"))
    assert host.lm_head.weight is host.get_input_embeddings().weight
    wanted = parts(host) | {"lm_head": "cuda:1"}
    assert place(host, wanted, torch.float32)["lm_head"] == torch.device("cpu")


def test_each_tensor_is_read_straight_to_its_own_device(
    family_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = parts(on_meta(family_folder("instructblip"))) | {
        "model.layers.1": "meta",
        "lm_head": "meta",
    }
    asked: dict[str, torch.device | None] = {}
    real = ModelCheckpoint._converted

    def converted(self: Any, path: Path, key: str, stored: Tensor, device: Any, *how: Any) -> Any:
        asked[key] = device
        return real(self, path, key, stored, device, *how)

    monkeypatch.setattr(ModelCheckpoint, "_converted", converted)
    made: list[nn.Module] = []
    monkeypatch.setattr(
        "fednano_flwr.models.layers.dispatch", lambda host, places: made.append(host)
    )
    load_llm_half(str(family_folder("instructblip")), dtype="bfloat16", device_map=wanted)
    far = {name for name, device in asked.items() if device == torch.device("meta")}
    assert far == {n for n in asked if ".layers.1." in n or "lm_head" in n} and len(far) > 5
    assert {asked[name] for name in asked.keys() - far} == {torch.device("cpu")}
    (host,) = made
    for name, parameter in host.named_parameters():
        assert parameter.is_meta == (".layers.1." in name or "lm_head" in name), name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["instructblip", "gemma3", "qwen2_5_vl", "blip-2"])
def test_a_dispatched_host_gives_the_same_bits(
    family: str, checkpointing: bool, family_folder: Callable[[str], Path]
) -> None:
    name = str(family_folder(family))
    wanted = parts(on_meta(family_folder(family)))
    plain = load_llm_half(name)
    half = load_llm_half(name, device_map=wanted, checkpointing=checkpointing)
    hooked = [module for module in half.modules() if hasattr(module, "_hf_hook")]
    assert len(hooked) > len(wanted) and half.device == torch.device("cpu")
    inputs, labels = questions(half)
    loss, (gradient,) = FrozenLLM(plain).step(inputs, labels)
    again, (gradient_again,) = FrozenLLM(half).step(inputs, labels)
    assert again == loss and torch.equal(gradient_again, gradient)
    ids = torch.tensor([3, 5])
    assert torch.equal(half.embed(ids), plain.embed(ids))


@pytest.mark.parametrize(
    ("family", "places"),
    [
        pytest.param("instructblip", ("cpu", "other"), marks=pytest.mark.slow),
        pytest.param("gemma3", ("other", "cpu"), marks=pytest.mark.slow),
        pytest.param("qwen2_5_vl", ("cpu", "other"), marks=pytest.mark.slow),
    ],
)
def test_activations_follow_the_weights_over_two_devices(
    family: str, places: tuple[str, str], family_folder: Callable[[str], Path]
) -> None:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this version of PyTorch has no second device to pretend with")
    command = [
        sys.executable,
        "-m",
        "tests.models.two_devices",
        str(family_folder(family)),
        *places,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-2000:]
    for layer, device in enumerate(places):
        assert f"layers.{layer}: {device}" in done.stdout
