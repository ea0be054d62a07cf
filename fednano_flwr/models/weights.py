"""Which file of a checkpoint holds which tensor, in the layouts that `from_pretrained` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from fednano_flwr.base.files import check_name
from fednano_flwr.config import ConfigError
from fednano_flwr.models.source import locate, read_config

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
DISTRIBUTED = "shard-*-model-*-of-*.safetensors"
OTHER_WEIGHTS = ("*.safetensors", "*.bin*", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
LFS = b"version https://git-lfs"


class WeightFiles:
    """Config and safetensors files of one model.

    Args:
        name: `model.name` of the run config: a folder, a hub id or `package:NAME/SUB`.
        revision: `model.revision`: branch, tag or commit on the hub.
        family: `model.family`.

    Attributes:
        hub_id: the model's name on the hub; "" for a folder.
        revision: its commit there; "" for a folder.

    Raises:
        ConfigError: there is no such model, or its family cannot be cut.
    """

    def __init__(self, name: str, revision: str = "", family: str = "") -> None:
        self.name = name
        self.folder, self.revision = locate(name, revision)
        self._on_hub = bool(self.revision)
        self.hub_id = name if self._on_hub else ""
        self._downloaded: dict[str, Path] = {}
        self._checked: set[str] = set()
        self.config: PretrainedConfig = read_config(name, self.folder, family)

    def called(self, key: str) -> str | None:
        """Canonical name of the tensor that a file calls `key`; None where it is none of the model.

        Raises:
            ConfigError: the tensor is stored in a form that is not read.
        """
        raise NotImplementedError

    @cached_property
    def chosen(self) -> str:
        """`SINGLE` or `INDEX`, whichever `from_pretrained` begins with."""
        if self._has(SINGLE):
            return SINGLE
        if (self.folder / INDEX).is_file():
            return INDEX
        others = sorted(
            path.name for kind in OTHER_WEIGHTS for path in self.folder.glob(kind) if path.is_file()
        )
        there = f" (there: {', '.join(others)})" if others else ""
        raise self.error(
            f"{self.folder} has neither {SINGLE} nor {INDEX}, and no other weights are read{there}."
            f" Rename a variant to {SINGLE}, or load the model with transformers and save it with "
            "save_pretrained"
        )

    @cached_property
    def files(self) -> dict[str, tuple[str, str]]:
        """Canonical tensor name → (file, the tensor's name in it), of all tensors of the model.

        Raises:
            ConfigError: no files that are read, or some that `from_pretrained` reads otherwise.
        """
        self._refuse_other_layouts()
        files: dict[str, tuple[str, str]] = {}
        for key, file in self._listed.items():
            name = self.called(key)
            if name is None:
                continue
            if name in files:
                raise self.error(
                    f"{files[name][1]} in {files[name][0]} and {key} in {file} are the same "
                    f"tensor, {name}; remove one of them"
                )
            files[name] = file, key
        if self.chosen == INDEX and not self._on_hub:
            for file in sorted(set(self._listed.values())):
                if (self.folder / file).exists():
                    self.path(file)
        return files

    def path(self, filename: str) -> Path:
        """Where one of its files lies; downloaded first, where it lies on the hub.

        Raises:
            ConfigError: the name leads out of the folder, or the file is missing, or a shard does
                not hold what the index says.
        """
        path = self._found(filename)
        if filename not in self._checked:
            self._checked.add(filename)
            if self.chosen == INDEX and filename in self._listed.values():
                self._check_shard(filename, path)
        return path

    @contextmanager
    def opened(self, path: Path) -> Iterator[Any]:
        """A safetensors file of the model.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            pointer = ""
            with suppress(OSError), path.open("rb") as raw:
                if raw.read(len(LFS)) == LFS:
                    pointer = "; it is a pointer of git-lfs: git lfs pull gets the file itself"
            raise self.error(
                f"{path} is no safetensors file that can be read: {error}{pointer}"
            ) from error

    def error(self, text: str) -> ConfigError:
        """An error that names the model."""
        return ConfigError(f"model {self.name}: {text}")

    @cached_property
    def _listed(self) -> dict[str, str]:
        """Which file holds which tensor, by the names that files have for tensors."""
        if self.chosen == SINGLE:
            with self.opened(self.path(SINGLE)) as file:
                return dict.fromkeys(file.keys(), SINGLE)
        index = self.folder / INDEX
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            if not isinstance(weight_map, dict):
                raise ValueError("its weight_map is no object")
            for name in weight_map.values():
                check_name(name)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise self.error(f"{index} cannot be used: {error}") from error
        return weight_map

    def _refuse_other_layouts(self) -> None:
        """Refuse what `from_pretrained` reads besides, or instead of, the usual files.

        Raises:
            ConfigError: there is such.
        """
        if (self.folder / ADAPTER).is_file():
            raise self.error(
                f"{self.folder} has {ADAPTER}, and from_pretrained puts that adapter on top of the "
                "weights. Merge it into them with PEFT, or move it elsewhere"
            )
        explicit = getattr(self.config, "transformers_weights", None)
        if explicit not in (None, SINGLE):
            raise self.error(
                f"its config.json names the weights {explicit!r} (transformers_weights), and only "
                f"{SINGLE} and {INDEX} are read; rename the file and remove the key"
            )
        if parts := sorted(path.name for path in self.folder.glob(DISTRIBUTED)):
            raise self.error(
                f"{self.folder} holds a distributed checkpoint ({parts[0]}, …), which is not read; "
                "load it with transformers and save it with save_pretrained"
            )

    def _has(self, filename: str) -> bool:
        if not self._on_hub:
            return (self.folder / filename).is_file()
        try:
            self._found(filename)
        except ConfigError as error:
            unknown = isinstance(error.__cause__, LocalEntryNotFoundError)  # the hub was not asked
            if unknown and not (self.folder / INDEX).is_file():
                raise
            if isinstance(error.__cause__, EntryNotFoundError):
                return False
            raise
        return True

    def _check_shard(self, filename: str, path: Path) -> None:
        """Compare a file with what the index says of it.

        `from_pretrained` reads what the files hold, and the index says which side reads which file.

        Raises:
            ConfigError: they differ in a tensor of the model.
        """
        try:
            with self.opened(path) as file:
                held = set(file.keys())
        except ConfigError:
            return  # reported when a tensor of it is read; the other side need not have it
        listed = {key for key, name in self._listed.items() if name == filename}
        for key in sorted(held ^ listed):
            if self.called(key) is not None:
                raise self.error(
                    f"{INDEX} has {key} in {self._listed.get(key, 'no file')}, and {filename} "
                    f"{'holds' if key in held else 'lacks'} it: they are not of one checkpoint; "
                    "get both anew"
                )

    def _found(self, filename: str) -> Path:
        if self._on_hub:
            if filename not in self._downloaded:  # asks the hub each time
                self._downloaded[filename] = self._download(filename)
            return self._downloaded[filename]
        path = self.folder / filename
        try:
            check_name(filename)
            found = path.exists()
        except (OSError, ValueError) as error:  # a name that is too long for one of a file
            raise self.error(f"in {self.folder}: {error}") from None
        if not found:
            by = f", which {INDEX} lists" if self.chosen == INDEX else ""
            raise self.error(f"{path} is missing{by}")
        return path

    def _download(self, filename: str) -> Path:
        try:
            return Path(hf_hub_download(self.hub_id, filename, revision=self.revision))
        except OSError as error:
            raise self.error(
                f"{filename} (revision {self.revision}) is not in this machine's cache and cannot "
                f"be downloaded: {str(error).splitlines()[0]}"
            ) from error
