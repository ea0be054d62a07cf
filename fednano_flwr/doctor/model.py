"""The model's half that this machine loads: found, whole, and of the same model as the other's.

Nothing is downloaded: of a model on the hub, what the cache holds is looked at.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fednano_flwr.config import ConfigError, Model
from fednano_flwr.doctor.finding import Finding, look, ok, problem, warning

if TYPE_CHECKING:
    from fednano_flwr.models.bundle import EdgeBundle
    from fednano_flwr.models.checkpoint import Half
    from fednano_flwr.models.size import Parts

HALVES: dict[Half, str] = {"llm": "language model", "edge": "client's half"}
SHOWN = 3


@dataclass(frozen=True)
class Found:
    """Where a model lies on this machine.

    Attributes:
        folder: None where neither a folder nor the hub's cache has its config.
        on_hub: its name is one on the hub.
    """

    folder: Path | None
    on_hub: bool = False


def find(name: str, revision: str = "") -> Found:
    """Where `model.name` lies, without asking the hub.

    Raises:
        ConfigError: it can be no model.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    from fednano_flwr.base.resources import ResourceError, resolve
    from fednano_flwr.models.source import locate

    try:
        folder = resolve("model.name", name)
    except ResourceError as error:
        raise ConfigError(str(error)) from error
    if folder.exists() or name.startswith(("package:", "/", ".", "~")) or name.count("/") > 1:
        if not (folder / "config.json").is_file():
            missing = f"{folder} has no config.json" if folder.exists() else f"no folder {folder}"
            raise ConfigError(f"model.name = {name!r}: {missing}; set it to a model's folder")
        locate(name, revision)  # refuses a revision of a folder
        return Found(folder)
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision or None)
    except HFValidationError as error:
        raise ConfigError(f"model.name = {name!r}: no folder here, nor a hub id: {error}") from None
    return Found(Path(cached).parent if isinstance(cached, str) else None, on_hub=True)


def check_half(name: str, half: Half, revision: str = "") -> list[Finding]:
    """Whether the files of a side's tensors are here, and hold them.

    Raises:
        ConfigError: the model cannot be read or cut.
    """
    found = find(name, revision)
    if found.folder is None:
        return [_to_download(name, "is not in the hub's cache")]
    from fednano_flwr.models.checkpoint import ModelCheckpoint
    from fednano_flwr.models.processor import has_processor
    from fednano_flwr.models.source import read_config

    read_config(name, found.folder)
    if found.on_hub and not _has_weights(found.folder):
        return [_to_download(name, "has no weights in the hub's cache")]
    if half == "edge" and not has_processor(found.folder):
        return [
            problem(
                f"model {name}: {found.folder} has no processor, which the {HALVES[half]} needs",
                "copy its tokenizer and processor files there from where the model came from",
            )
        ]
    checkpoint = ModelCheckpoint(str(found.folder))
    shapes = checkpoint.tensors(half)
    files = sorted({checkpoint.files[name][0] for name in shapes if name in checkpoint.files})
    missing = [file for file in files if not (found.folder / file).exists()]
    if missing:
        listed = (
            f"{len(missing)} of the {len(files)} files of the {HALVES[half]} ({_some(missing)})"
        )
        if found.on_hub:
            return [_to_download(name, f"lacks {listed} in the hub's cache")]
        return [
            problem(
                f"model {name}: {listed} are missing in {found.folder}, which "
                "model.safetensors.index.json lists",
                "copy them there from where the model came from",
            )
        ]
    checkpoint.check(shapes)
    return [
        ok(
            f"model {name}: {len(files)} file{'s hold' if len(files) > 1 else ' holds'} the "
            f"{HALVES[half]} (fingerprint {checkpoint.fingerprint})"
        )
    ]


def check_processor(name: str, revision: str = "") -> list[Finding]:
    """Whether processor, tokenizer and config of a model fit together, where they are here.

    Raises:
        ConfigError: they do not, or cannot be read.
    """
    from fednano_flwr.edge.questions import load_encoder
    from fednano_flwr.models.bundle import open_checkpoint
    from fednano_flwr.models.processor import has_processor

    folder = find(name, revision).folder
    if folder is None or not has_processor(folder):
        return []
    load_encoder(open_checkpoint(str(folder)))
    return [ok(f"model {name}: processor, tokenizer and config fit together")]


def parts_of(name: str, revision: str = "") -> Parts | None:
    """Sizes of a model's parts; None where its config is not here, or no good.

    The latter is `check_half`'s, or `check_edge_path`'s, to say.
    """
    from fednano_flwr.models.size import count
    from fednano_flwr.models.source import read_config

    try:
        folder = find(name, revision).folder
        return None if folder is None else count(read_config(name, folder))
    except ConfigError:
        return None


def rows_of(bundle: str) -> int | None:
    """Token embeddings in a bundle; None where that cannot be read, which is said elsewhere."""
    from fednano_flwr.models.bundle import MANIFEST

    try:
        manifest = json.loads((Path(bundle).expanduser() / MANIFEST).read_text(encoding="utf-8"))
        return int(manifest["token_rows"]["kept"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_edge_path(
    key: str, path: str, model: Model | None, shard: Path | None = None
) -> list[Finding]:
    """Whether an edge bundle is whole, of the run's model, and has the tokens of a shard.

    Args:
        key: that names the bundle, for findings.
        model: the run's; None where that is not known.

    Raises:
        ConfigError: it is no bundle, or is damaged.
    """
    bundle = open_bundle(key, path)
    findings = [
        ok(
            f"{key} = {path!r}: bundle of {bundle.name}, files as written (fingerprint "
            f"{bundle.fingerprint})"
        )
    ]
    findings += look("the bundle's processor", lambda: check_processor(path))
    if model is not None:
        findings += look("the bundle's model", lambda: check_same(key, bundle, model))
    if shard is not None:
        findings += look("the bundle's tokens", lambda: check_vocabulary(key, bundle, shard))
    return findings


def open_bundle(key: str, path: str) -> EdgeBundle:
    """An edge bundle whose files are what its manifest says.

    Raises:
        ConfigError: it is none, or is damaged.
    """
    from fednano_flwr.models.bundle import MANIFEST, EdgeBundle

    folder = Path(path).expanduser()
    if not (folder / MANIFEST).is_file():
        there = f"has no {MANIFEST}" if folder.is_dir() else "is no folder"
        raise ConfigError(f"{key} = {path!r}: {there}; give the folder that `fednano split` wrote")
    return EdgeBundle(str(folder))


def check_same(key: str, bundle: EdgeBundle, model: Model) -> list[Finding]:
    """Whether a bundle was split from the run's model, where that lies here as well.

    Raises:
        ConfigError: the model is damaged.
    """
    from fednano_flwr.models.checkpoint import ModelCheckpoint
    from fednano_flwr.models.fingerprint import same_checkpoint

    name, found = model.name, find(model.name, model.revision)
    folder = found.folder
    if folder is None or not _has_weights(folder):
        return []
    checkpoint = ModelCheckpoint(str(folder))
    if not (folder / checkpoint.files[checkpoint.token_embeddings][0]).exists():
        return []
    other, commit = checkpoint.fingerprint, folder.name if found.on_hub else ""
    if same_checkpoint(bundle.fingerprint, other) and (
        bundle.revision == commit or not (bundle.revision and commit)
    ):
        return [ok(f"the bundle was split from model.name = {name!r}")]
    return [
        problem(
            f"{key}: the bundle is of {bundle.name} (fingerprint {bundle.fingerprint}, revision "
            f"{bundle.revision or 'none'}), and model.name = {name!r} has {other}, revision "
            f"{commit or 'none'}: the LLM service will refuse this client",
            f"split {name} with `fednano split`, or set model.name to {bundle.name} and "
            f'model.revision to "{bundle.revision}"',
        )
    ]


def check_vocabulary(key: str, bundle: EdgeBundle, shard: Path) -> list[Finding]:
    """Whether a bundle with a cut token table has the tokens of a shard.

    Raises:
        ConfigError: it lacks some.
    """
    from fednano_flwr.data.errors import DataError
    from fednano_flwr.data.shard_folder import TEST_FILE, TRAIN_FILE
    from fednano_flwr.data.table import read_table
    from fednano_flwr.edge.questions import load_encoder, used_tokens
    from fednano_flwr.models.bundle import TOKEN_IDS

    if TOKEN_IDS not in bundle.files:
        return [ok(f"{key}: the bundle holds the embeddings of all tokens")]
    shard = shard.expanduser().absolute()
    tables = [shard / file for file in (TRAIN_FILE, TEST_FILE)]
    if not all(table.is_file() for table in tables):
        return []  # what is the matter with the shard is said elsewhere
    encode = load_encoder(bundle).encode
    questions = []
    for sample in itertools.chain.from_iterable(read_table(table, shard) for table in tables):
        with contextlib.suppress(FileNotFoundError, DataError):  # a run leaves these out
            questions.append(encode(sample))
    ids = used_tokens(questions)
    bundle.embedding_rows(ids)
    return [ok(f"{key}: the bundle holds the embeddings of the shard's {len(ids)} tokens")]


def _has_weights(folder: Path) -> bool:
    """Whether the file is here that says which tensors there are."""
    from fednano_flwr.models.weights import INDEX, SINGLE

    return any((folder / name).is_file() for name in (SINGLE, INDEX))


def _to_download(name: str, what: str) -> Finding:
    """A problem where the hub must not be asked, else a warning."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return problem(
            f"model.name = {name!r} {what}, and HF_HUB_OFFLINE is set",
            f"hf download {name} on a machine that may, and copy its cache here; or give a folder",
        )
    return warning(
        f"model.name = {name!r} {what}: a run downloads it at its start",
        f"hf download {name} beforehand, or set model.name to a folder",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
