"""A model's checkpoint on disk or on the hub, read tensor by tensor.

Only the tensors asked for are read: a client opens none of the language model's, the host none of
the vision encoder's. From the hub, only the shards that hold them are downloaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from fednano_flwr.config import ConfigError
from fednano_flwr.models.families import FAMILIES, Family
from fednano_flwr.resources import ResourceError, resolve

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
FINGERPRINT_ROWS = 64


class Checkpoint:
    """Config and tensors of one model of a known family.

    Args:
        name: `model.name` of the run config: a folder, a hub id or `package:NAME/SUB`.

    Raises:
        ConfigError: there is no such model, or its family cannot be cut.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder, self._on_hub = _locate(name)
        self.config: PretrainedConfig = _config(name, self.folder)
        self.family: Family = FAMILIES[self.config.model_type]

    @cached_property
    def files(self) -> dict[str, tuple[str, str]]:
        """Canonical tensor name → (file, the tensor's name in it)."""
        index = self.folder / INDEX
        if index.exists():
            weight_map = json.loads(index.read_text())["weight_map"]
        else:
            with safe_open(self._file(SINGLE), framework="pt") as file:
                weight_map = dict.fromkeys(file.keys(), SINGLE)
        return {self.family.canonical(key): (file, key) for key, file in weight_map.items()}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the named tensors as stored, file by file.

        Raises:
            ConfigError: the checkpoint lacks one of them.
        """
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self._entry(name)[0], []).append(name)
        for filename, wanted in by_file.items():
            with safe_open(self._file(filename), framework="pt") as file:
                for name in wanted:
                    yield name, file.get_tensor(self.files[name][1])

    def skeleton(self, without: Iterable[str]) -> Any:
        """The model less some parts, its parameters on the meta device and so without memory."""
        with init_empty_weights(include_buffers=False):
            whole = getattr(transformers, self.family.architecture)(self.config)
        for part in without:
            owner, _, leaf = part.rpartition(".")
            delattr(whole.get_submodule(owner), leaf)
        return whole

    def fill(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        """Give every parameter of `module` (built on the meta device) its frozen weight."""
        names = {self.family.canonical(name): name for name, _ in module.named_parameters()}
        for canonical, tensor in self.read(names):
            owner_name, _, leaf = names[canonical].rpartition(".")
            owner = module.get_submodule(owner_name)
            expected = getattr(owner, leaf).shape
            if tensor.shape != expected:
                raise ConfigError(
                    f"model {self.name}: tensor {canonical} has shape {tuple(tensor.shape)}, "
                    f"the config asks for {tuple(expected)}"
                )
            weight = nn.Parameter(tensor.to(device, dtype), requires_grad=False)
            setattr(owner, leaf, weight)
        for buffers in module.modules():
            for key, value in buffers.named_buffers(recurse=False):
                setattr(buffers, key, value.to(device))
        module.eval()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what both halves hold: the config, and the first token embeddings."""
        digest = hashlib.sha256()
        # As written, not as this version of transformers completes it: sides may differ in version.
        config = json.loads((self.folder / "config.json").read_text())
        digest.update(json.dumps(config, sort_keys=True).encode())
        filename, key = self._entry(self.family.embeddings)
        with safe_open(self._file(filename), framework="pt") as file:
            rows = file.get_slice(key)[:FINGERPRINT_ROWS]
        digest.update(rows.float().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _entry(self, name: str) -> tuple[str, str]:
        if name not in self.files:
            raise ConfigError(f"model {self.name}: the checkpoint has no tensor {name}")
        return self.files[name]

    def _file(self, filename: str) -> Path:
        if self._on_hub:
            return Path(hf_hub_download(self.name, filename))
        path = self.folder / filename
        if not path.exists():
            raise ConfigError(f"model {self.name}: {path} is missing (safetensors are read only)")
        return path


def check_model(name: str) -> None:
    """Refuse a model that is not there or cannot be cut, before any weight is read.

    Raises:
        ConfigError: with the families that work.
    """
    _config(name, _locate(name)[0])


def _locate(name: str) -> tuple[Path, bool]:
    """Folder that holds config and processor, and whether weights come from the hub."""
    try:
        folder = resolve("model.name", name)
    except ResourceError as error:
        raise ConfigError(str(error)) from error
    if (folder / "config.json").exists():
        return folder, False
    if folder.exists() or name.startswith("package:"):
        raise ConfigError(f"model.name = {name!r}: {folder} has no config.json")
    try:
        return Path(snapshot_download(name, allow_patterns=SMALL_FILES)), True
    except (OSError, HFValidationError) as error:
        raise ConfigError(
            f"model.name = {name!r}: neither a folder here nor a model that the Hugging Face hub "
            f"(or its cache) could give: {str(error).splitlines()[0]}"
        ) from error


def _config(name: str, folder: Path) -> PretrainedConfig:
    kind = json.loads((folder / "config.json").read_text()).get("model_type", "none")
    if kind not in FAMILIES:
        raise ConfigError(
            f"model.name = {name!r}: its family is {kind}; those that can be cut are: "
            f"{', '.join(FAMILIES)}"
        )
    return AutoConfig.from_pretrained(folder)
