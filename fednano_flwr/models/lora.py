"""LoRA inside the language model: which layers have one, its first values, and its places."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.config import Adapter, ConfigError
from fednano_flwr.models.checkpoint import ModelCheckpoint

NAME = "default"
"""Of the adapter in PEFT."""
PREFIX = "llm."
"""Of a parameter's name; then comes the layer's in the whole model, then PEFT's."""
ALL_LINEAR = "all-linear"
ATTENTION = re.compile(r"(.*\.)?[^.]*(attn|attention)[^.]*\..*")
"""Names of layers of the attention."""
SUFFIXES = re.compile(r"[\w.]+(\s*,\s*[\w.]+)*")
"""Names as PEFT takes a list of; anything else is a regular expression."""
HEAD = "lm_head"
OF_PEFT, WEIGHTS = "base_model.model.", "adapter_model.safetensors"
"""Of a parameter's name in PEFT's files, and the file."""


def lora_targets(host: nn.Module, path: str, wanted: str = "") -> dict[str, nn.Linear]:
    """The linear layers of a language model that have a LoRA, by their names in it.

    Args:
        path: of it in the whole model, whose names `wanted` goes by.
        wanted: `adapter.llm-targets`.

    Raises:
        ConfigError: `adapter.llm-targets` names none.
    """
    linear = {
        name: module
        for name, module in host.named_modules()
        if isinstance(module, nn.Linear) and name != HEAD
    }
    wanted = wanted.strip()
    if not wanted:
        found = {name for name in linear if ATTENTION.fullmatch(name)}
    elif wanted == ALL_LINEAR:
        found = set(linear)
    else:
        config = LoraConfig(target_modules=_modules(wanted))
        try:
            found = {
                name for name in linear if check_target_module_exists(config, _joined(path, name))
            }
        except re.error as error:
            raise ConfigError(f"adapter.llm-targets = {wanted!r}: {error}") from None
    if not found:
        ends = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise ConfigError(
            f"adapter.llm-targets = {wanted!r}: the language model has no such linear layer; its "
            f"own are called {ends}"
        )
    return {name: module for name, module in linear.items() if name in found}


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _modules(wanted: str) -> list[str] | str:
    if SUFFIXES.fullmatch(wanted):
        return [name.strip() for name in wanted.split(",")]
    return wanted


def fresh_lora(checkpoint: ModelCheckpoint, adapter: Adapter, seed: int) -> dict[str, Tensor]:
    """A LoRA that changes nothing yet, float32: A drawn as by PEFT, from the seed; B is zero.

    Raises:
        ConfigError: as `lora_targets`.
    """
    path = checkpoint.family.host
    targets = lora_targets(checkpoint.llm_tree().get_submodule(path), path, adapter.llm_targets)
    drawn = torch.Generator().manual_seed(derive_seed(Purpose.LLM_ADAPTERS, seed))
    values: dict[str, Tensor] = {}
    for name, layer in targets.items():
        a = torch.empty(adapter.llm_rank, layer.in_features)
        b = torch.zeros(layer.out_features, adapter.llm_rank)
        nn.init.kaiming_uniform_(a, math.sqrt(5), generator=drawn)
        full = full_name(path, name)
        values |= {f"{full}.lora_A.weight": a, f"{full}.lora_B.weight": b}
    return dict(sorted(values.items()))


def full_name(path: str, name: str) -> str:
    """Of a layer in the host's part of a model, which lies at `path` in the whole."""
    return PREFIX + _joined(path, name)


def save_lora(values: Mapping[str, Tensor], adapter: Adapter, model: str, folder: Path) -> None:
    """Write a LoRA in PEFT's layout for the whole model.

    Args:
        model: written as the base model's name.

    Raises:
        OSError: it cannot be written.
    """
    names = sorted({_layer(name) for name in values})
    config = LoraConfig(
        r=adapter.llm_rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # PEFT divides by it
        target_modules=names,
        base_model_name_or_path=model,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    renamed = {OF_PEFT + name.removeprefix(PREFIX): value for name, value in values.items()}
    save_file({name: value.contiguous() for name, value in renamed.items()}, folder / WEIGHTS)


def read_lora(folder: Path) -> dict[str, Tensor]:
    """The values that `save_lora` wrote.

    Raises:
        OSError, SafetensorError: they cannot be read.
    """
    found = load_file(folder / WEIGHTS)
    return {PREFIX + name.removeprefix(OF_PEFT): value for name, value in found.items()}


def digest_of(values: Mapping[str, Tensor]) -> str:
    """What tells a LoRA's values (float32) from another's; "" of none."""
    if not values:
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(values.items()):
        digest.update(f"{name} {list(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _layer(name: str) -> str:
    """The layer in the whole model that a parameter is of."""
    return name.removeprefix(PREFIX).rpartition(".lora_")[0]


class LoraPlaces:
    """PEFT's LoRA layers in a loaded language model, whose parameters are exchanged at will.

    Args:
        host: the language model; its linear layers are wrapped in place.
        path: of it in the whole model.
        adapter: rank, scale and targets.
        dtype: of the parameters.
        quantization: of the linear layers, as in `LLMHalf`.

    Attributes:
        devices: where each parameter's layer is.
    """

    def __init__(
        self, host: Any, path: str, adapter: Adapter, dtype: torch.dtype, quantization: str
    ) -> None:
        names = list(lora_targets(host, path, adapter.llm_targets))
        config = LoraConfig(
            r=adapter.llm_rank,
            lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # PEFT divides by it
            target_modules=names,
        )
        host.is_loaded_in_8bit = quantization == "8bit"  # PEFT asks the model
        host.is_loaded_in_4bit = quantization == "4bit"
        with torch.random.fork_rng(devices=[]):  # PEFT draws values that are not used
            inject_adapter_in_model(config, host, NAME)
        self._dtype = dtype
        self.devices: dict[str, torch.device] = {}
        self._places: dict[str, nn.Module] = {}
        for name in names:
            layer = host.get_submodule(name)
            assert isinstance(layer, LoraLayer)
            base: Any = layer.get_base_layer()
            for factor in ("lora_A", "lora_B"):
                full = f"{full_name(path, name)}.{factor}.weight"
                self._places[full] = getattr(layer, factor)[NAME].requires_grad_(False)
                self.devices[full] = base.weight.device
        self._now: Mapping[str, nn.Parameter] = {}

    def placed(self, values: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
        """Copies of values as parameters, each where its layer is.

        Raises:
            ValueError: they are not of these layers.
        """
        if set(values) != set(self._places):
            raise ValueError(
                f"a LoRA of {len(values)} factors; the language model has places for "
                f"{len(self._places)} others"
            )
        return {
            name: nn.Parameter(value.to(self.devices[name], self._dtype, copy=True), False)
            for name, value in values.items()
        }

    def use(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Compute with these from now on; a graph keeps those that it was made with."""
        if parameters is not self._now:
            for name, parameter in parameters.items():
                self._places[name].weight = parameter
            self._now = parameters
