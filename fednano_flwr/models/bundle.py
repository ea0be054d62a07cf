"""An edge bundle: a client's half of one checkpoint in a folder of its own.

edge_bundle.json     manifest: model, fingerprint, counts, size and SHA-256 of every file
model.safetensors    the tensors a client needs, and `token_ids` where the token table is cut
config.json, …       config, processor and tokenizer, as the checkpoint has them
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fednano_flwr.base.files import describe_file, inside
from fednano_flwr.base.resources import resolve
from fednano_flwr.config import ConfigError, Model
from fednano_flwr.models.checkpoint import Half, ModelCheckpoint
from fednano_flwr.models.families import AUTO
from fednano_flwr.models.fingerprint import same_checkpoint
from fednano_flwr.models.source import locate

MANIFEST = "edge_bundle.json"
FORMAT = 1
TOKEN_IDS = "token_ids"
HALVES: dict[Half, str] = {"llm": "language model", "edge": "client's half"}


class EdgeBundle(ModelCheckpoint):
    """A bundle that `fednano split` wrote, read like the checkpoint it was split from.

    Raises:
        ConfigError: a file is missing or is not what the manifest says.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, family=AUTO)  # whoever split the model has chosen it
        self._manifest = _manifest(path, self.folder)
        self._verify(path)
        self.name = self._manifest["model"]
        self.hub_id = self._manifest["hub_id"]
        self.revision = str(self._manifest.get("revision", ""))

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """That of the checkpoint it was split from."""
        return self._manifest["fingerprint"]

    def called(self, key: str) -> str | None:
        """The name itself: `fednano split` has written canonical ones."""
        return key

    def embedding_rows(
        self,
        ids: Sequence[int] | None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        if TOKEN_IDS not in self.files:
            return super().embedding_rows(ids, device, dtype)
        ((_, held),) = self.read([TOKEN_IDS])
        if ids is None:
            return super().embedding_rows(None, device, dtype)[0], held
        wanted = torch.tensor(ids)
        places = torch.searchsorted(held, wanted).clamp(max=len(held) - 1)
        missing = wanted[held[places] != wanted]
        if len(missing):
            raise ConfigError(
                f"edge bundle {self.folder} of {self.name} lacks the embeddings of {len(missing)} "
                f"tokens that this client's questions use, token {int(missing[0])} for one: it was "
                "split for another shard. Split again with this shard, or without --shard"
            )
        return self.rows(self.token_embeddings, places.tolist(), device, dtype), wanted

    def _verify(self, path: str) -> None:
        for name, expected in self._manifest["files"].items():
            try:
                file = inside(self.folder, name)
            except ValueError as error:
                raise ConfigError(f"edge bundle {path}: {MANIFEST}: {error}") from None
            there = file.is_file()
            if not there or describe_file(file) != expected:
                what = "is not the file that was written" if there else "is missing"
                raise ConfigError(f"edge bundle {path}: {name} {what}; copy or split it again")


def _manifest(path: str, folder: Path) -> dict[str, Any]:
    """A bundle's manifest.

    Raises:
        ConfigError: it cannot be read, lacks a key or is of another version's format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
        texts = [manifest[key] for key in ("model", "hub_id", "fingerprint")]
        if not (all(isinstance(text, str) for text in texts) and manifest["fingerprint"]):
            raise ValueError("it is incomplete")
        manifest["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"edge bundle {path}: {folder / MANIFEST} cannot be used: {error!r}; copy or split it "
            "again"
        ) from error
    return manifest


def open_checkpoint(name: str, revision: str = "", family: str = "") -> ModelCheckpoint:
    """The checkpoint called `name`, or the edge bundle where that is what the folder holds.

    Args:
        revision: branch, tag or commit of a model on the hub.
        family: `model.family`.

    Raises:
        ConfigError: no such model, a family that cannot be cut, or a damaged bundle.
    """
    if (locate(name, revision)[0] / MANIFEST).is_file():
        return EdgeBundle(name)
    return ModelCheckpoint(name, revision, family)


def open_whole(name: str, revision: str = "", family: str = "") -> ModelCheckpoint:
    """The checkpoint called `name`, which a server or a merged model needs.

    Raises:
        ConfigError: no such model, a family that cannot be cut, or only a client's half of one.
    """
    checkpoint = open_checkpoint(name, revision, family)
    if isinstance(checkpoint, EdgeBundle):
        raise ConfigError(
            f"model {name} is an edge bundle: it holds a client's half only; the server needs the "
            f"checkpoint that it was split from, {checkpoint.name}"
        )
    return checkpoint


@lru_cache(maxsize=2)  # many runs that are compared have one model
def check_half(model: Model, half: Half) -> str:
    """Refuse a checkpoint whose files do not hold what a side loads of it.

    Only headers are read. Files on the hub that the cache lacks are downloaded.

    Returns:
        What was found, in words.

    Raises:
        ConfigError: with the file and the tensor.
    """
    checkpoint = open_whole(model.name, model.revision, model.family)
    shapes = checkpoint.tensors(half)
    checkpoint.check(shapes)
    files = len({checkpoint.files[name][0] for name in shapes})
    return (
        f"model {model.name}: {files} file{'s hold' if files > 1 else ' holds'} the "
        f"{HALVES[half]} (fingerprint {checkpoint.fingerprint})"
    )


def check_bundle(key: str, path: str, model: Model | None) -> str:
    """Refuse a folder that is no edge bundle, or one of another model than the run's.

    Only the manifest is read; who opens the bundle compares its files with it.

    Args:
        key: that names the bundle, for errors.
        model: of the run; None to compare with none. One that cannot be read here is not compared.

    Returns:
        What was found, in words.

    Raises:
        ConfigError: it is such a folder.
        ResourceError: a package that `path` names is not installed.
    """
    folder = resolve(key, path)
    if not (folder / MANIFEST).is_file():
        raise ConfigError(
            f"{key} = {path!r}: {folder} has no {MANIFEST}; give the folder that `fednano split` "
            "wrote"
        )
    manifest = _manifest(path, folder)
    fingerprint, revision = manifest["fingerprint"], str(manifest.get("revision", ""))
    found = f"{key} = {path!r}: bundle of {manifest['model']} (fingerprint {fingerprint})"
    if model is None:
        return found
    try:
        whole = ModelCheckpoint(model.name, model.revision, model.family)
        other, commit = whole.fingerprint, whole.revision
    except ConfigError:  # a client need not have it; a server's own check says what is wrong
        return found
    if same_checkpoint(fingerprint, other) and (revision == commit or not (revision and commit)):
        return f"{found}, which was split from model.name"
    raise ConfigError(
        f"{key} = {path!r}: the bundle is of {manifest['model']} (fingerprint {fingerprint}, "
        f"revision {revision or 'none'}), and model.name = {model.name!r} has {other}, revision "
        f"{commit or 'none'}: the LLM service refuses such a client; split {model.name} with "
        f"`fednano split`, or set model.name to {manifest['model']} and model.revision to "
        f'"{revision}"'
    )
