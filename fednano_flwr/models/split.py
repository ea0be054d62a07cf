"""Writing an edge bundle: the client's half of a checkpoint, in a folder of its own."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fednano_flwr.base.files import describe_file
from fednano_flwr.base.output import new_folder, require_space
from fednano_flwr.config import ConfigError
from fednano_flwr.models import skeleton
from fednano_flwr.models.bundle import FORMAT, MANIFEST, TOKEN_IDS, EdgeBundle
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.source import SMALL_FILES
from fednano_flwr.models.weights import SINGLE

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done, and bytes in all."""
SPARE = 64 * 2**20


def write_bundle(
    checkpoint: ModelCheckpoint,
    out: Path,
    ids: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress = lambda what, done, total: None,
) -> EdgeBundle:
    """Write what a client needs of `checkpoint` to the new folder `out`.

    Layers of the vision encoder that the model never uses are left out.

    Args:
        ids: ascending ids of the tokens to keep embeddings of; None keeps all.
        dtype: to store the tensors in; None is the checkpoint's own.

    Raises:
        ConfigError: `checkpoint` is a bundle itself, or lacks a tensor.
        OutputError: `out` is there already, or the disk is too small.
    """
    if isinstance(checkpoint, EdgeBundle):
        raise ConfigError(f"{checkpoint.folder} is an edge bundle already")
    shapes = checkpoint.tensors("edge")
    checkpoint.check(shapes)
    size = checkpoint.nbytes(shapes)
    names = [name for name in shapes if name != checkpoint.token_embeddings]
    dropped = skeleton.trim_encoder(copy.deepcopy(checkpoint.config))
    require_space(out, size + SPARE, "the edge bundle")
    with new_folder(out) as folder:
        tensors: dict[str, Tensor] = {}
        done = 0
        for name, tensor in checkpoint.read(names):
            tensors[name] = tensor.to(dtype or tensor.dtype).contiguous()
            done += tensor.numel() * tensor.element_size()
            progress("reading", done, size)
        table, kept = checkpoint.embedding_rows(ids)
        tensors[checkpoint.token_embeddings] = table.to(dtype or table.dtype).contiguous()
        if kept is not None:
            tensors[TOKEN_IDS] = kept
        progress("writing", size, size)
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        for file in small_files(checkpoint.folder):
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.folder / file, target)
        progress("checking", size, size)
        written = sorted(path for path in folder.rglob("*") if path.is_file())
        manifest = {
            "format": FORMAT,
            "model": checkpoint.name,
            "hub_id": checkpoint.hub_id,
            "revision": checkpoint.revision,
            "fingerprint": checkpoint.fingerprint,
            "family": checkpoint.config.model_type,
            "parameters": sum(t.numel() for name, t in tensors.items() if name != TOKEN_IDS),
            "encoder_layers_dropped": dropped,
            "token_rows": {
                "kept": len(table),
                "of": checkpoint.config.get_text_config().vocab_size,
            },
            "written_by": f"fednano-flwr {importlib.metadata.version('fednano-flwr')}",
            "files": {file.relative_to(folder).as_posix(): describe_file(file) for file in written},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        shutil.copymode(folder / MANIFEST, folder / SINGLE)  # safetensors makes it its user's alone
    return EdgeBundle(str(out))


def small_files(folder: Path) -> list[Path]:
    """Config, processor and tokenizer files, by their paths in the folder."""
    found = {path.relative_to(folder) for kind in SMALL_FILES for path in folder.rglob(kind)}
    return sorted(
        path
        for path in found
        if not any(part.startswith(".") for part in path.parts)
        and not path.name.endswith(".safetensors.index.json")
    )
