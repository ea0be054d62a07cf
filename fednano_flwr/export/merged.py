"""A checkpoint of the model's own class with the adapters merged, for plain transformers.

Written file by file, with the names of the original's files and tensors. A tensor that stays as it
is goes from one mapped file to the other. Peak memory: the tensors of one file that change; with
another dtype, the largest file of the checkpoint in that dtype.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig

from fednano_flwr.adapters.product import Factors
from fednano_flwr.base.output import require_space
from fednano_flwr.config import ConfigError
from fednano_flwr.export.merge_weights import Rounding, merge, merge_lora
from fednano_flwr.models import skeleton
from fednano_flwr.models.checkpoint import HEAD, ModelCheckpoint
from fednano_flwr.models.families import canonical
from fednano_flwr.models.split import small_files
from fednano_flwr.models.weights import INDEX

SPARE = 64 * 2**20
"""Bytes of disk for processor, tokenizer and config."""
LOADED = tuple(
    "added_tokens chat_template generation_config merges preprocessor_config processor_config "
    "sentencepiece special_tokens_map spiece tokenizer video_preprocessor_config vocab".split()
)
"""How files of processor, tokenizer and generation begin; others say how the model was made."""


Merge = partial[Tensor]
"""`merge` or `merge_lora` with its adapter: takes the tensor, `dtype` and `rounding`."""


@dataclass
class Merged:
    """What was written.

    Attributes:
        changed: names of the tensors that adapters or a LoRA were merged into.
        head: name of the head that was the table of the embeddings and now is a tensor; else "".
        dtypes: of the changed tensors.
        nbytes: of all tensors.
        rounding: of the changed tensors.
    """

    changed: list[str] = field(default_factory=list)
    head: str = ""
    dtypes: set[str] = field(default_factory=set)
    nbytes: int = 0
    rounding: Rounding = field(default_factory=Rounding)


def write_merged(
    checkpoint: ModelCheckpoint,
    adapters: Mapping[str, Factors],
    lora: Mapping[str, Factors],
    folder: Path,
    dtype: torch.dtype | None = None,
) -> Merged:
    """Write config, weights, processor and tokenizer into the empty `folder`.

    Args:
        adapters: by site; each B holds the scale s.
        lora: likewise, by the layer's name in the module tree.
        dtype: of all weights; None keeps the checkpoint's own.

    Raises:
        ConfigError: the checkpoint lacks a tensor, is stored in a dtype that is not read, or has a
            number that is too large for `dtype`.
        OutputError: the disk is too small.
    """
    merged = Merged()
    targets = _targets(checkpoint, adapters) | _layers(checkpoint, lora)
    untie = "text" in adapters and checkpoint.tied
    _check_space(checkpoint, folder, dtype, untie)
    _write_config(checkpoint, folder, dtype, untie)
    weight_map: dict[str, str] = {}
    filenames = dict.fromkeys(file for file, _ in checkpoint.files.values())
    for filename in tqdm(filenames, desc="writing", unit=" files", disable=None, file=sys.stderr):
        tensors: dict[str, Tensor] = {}
        with safe_open(checkpoint.path(filename), framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118  (it is no mapping)
                if (name := checkpoint.called(key)) is None:
                    continue  # no part of the model
                tensor = stored.get_tensor(key)
                target = dtype if dtype and tensor.is_floating_point() else tensor.dtype
                tensors[key] = tensor.to(target)
                if untie and name == checkpoint.token_embeddings:
                    merged.head = _head_beside(key)
                    tensors[merged.head] = tensors[key]
                if name in targets:
                    tensors[key] = targets[name](tensor, dtype=target, rounding=merged.rounding)
                    merged.changed.append(key)
                    merged.dtypes.add(_name(target))
                if tensors[key].dtype != tensor.dtype or name in targets:
                    _check_range(key, tensor, tensors[key])
        (folder / filename).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / filename, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / filename)  # it is its user's alone else
        merged.nbytes += sum(tensor.nbytes for tensor in tensors.values())
        weight_map |= dict.fromkeys(tensors, filename)
    if checkpoint.chosen == INDEX:
        index = {"metadata": {"total_size": merged.nbytes}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for file in small_files(checkpoint.folder):
        if len(file.parts) > 1 or file.name.startswith(LOADED) or file.suffix == ".model":
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.folder / file, folder / file)
    return merged


def _targets(checkpoint: ModelCheckpoint, adapters: Mapping[str, Factors]) -> dict[str, Merge]:
    """By canonical name, how each tensor changes that NanoAdapters are merged into."""
    family = checkpoint.family
    both = (family.connector, family.second_connector)
    connectors = dict(zip(family.modalities, both, strict=False))
    found: dict[str, Merge] = {}
    biases = set()  # some connectors have none
    for site, adapter in adapters.items():
        merged = partial(merge, adapter=adapter)
        if site not in connectors:
            found[checkpoint.token_embeddings] = merged
            continue
        connector = connectors[site]
        if connector.cannot:
            raise ConfigError(
                f"model {checkpoint.name}: the adapters cannot be merged into the family "
                f"{checkpoint.config.model_type}: {connector.cannot}; use --format peft"
            )
        found |= dict.fromkeys(connector.rows, merged)
        if connector.linear:
            biases.add(f"{connector.linear}.bias")
            found[f"{connector.linear}.weight"] = partial(merged, outputs_first=True)
            found[f"{connector.linear}.bias"] = merged
    needed = [name for name in found if name not in biases]
    if missing := [name for name in needed if name not in checkpoint.files]:
        raise ConfigError(
            f"model {checkpoint.name}: the family {checkpoint.config.model_type} merges adapters "
            f"into {missing[0]}, which the checkpoint lacks; use --format peft, or mend the "
            "family's connector"
        )
    return found


def _layers(checkpoint: ModelCheckpoint, lora: Mapping[str, Factors]) -> dict[str, Merge]:
    """Likewise of a LoRA's layers. Each needs a tensor that no other part of the model reads."""
    found = {canonical(f"{name}.weight"): partial(merge_lora, lora=f) for name, f in lora.items()}
    pairs = checkpoint.tree.all_tied_weights_keys.items()
    tied = {canonical(name) for pair in pairs for name in pair}
    for name in found:
        if name in tied or name not in checkpoint.files:
            why = (
                "another part of the model reads it" if name in tied else "the checkpoint lacks it"
            )
            raise ConfigError(
                f"model {checkpoint.name}: the LoRA cannot be merged into {name}: {why}; use "
                "--format peft"
            )
    return found


def _check_space(
    checkpoint: ModelCheckpoint, folder: Path, dtype: torch.dtype | None, untie: bool
) -> None:
    """Refuse a checkpoint that lacks tensors, and a disk that is too small."""
    whole = skeleton.stored(checkpoint.tree)
    shapes = {canonical(name): tensor.shape for name, tensor in whole.items()}
    if checkpoint.tied:
        shapes.pop(HEAD, None)
    checkpoint.check(shapes)
    names = [*shapes, *([checkpoint.token_embeddings] if untie else [])]
    nbytes = checkpoint.nbytes(names)
    if dtype:
        nbytes = sum(shapes[name].numel() for name in names) * dtype.itemsize
    require_space(folder, nbytes + SPARE, "the merged model")


def _head_beside(embeddings: str) -> str:
    """The head's name in a checkpoint that calls its token embeddings `embeddings`."""
    return f"language_model.{HEAD}" if embeddings.startswith("language_model.model.") else HEAD


def _check_range(key: str, before: Tensor, after: Tensor) -> None:
    """Refuse a dtype in which a finite number is not finite."""
    if (after.isfinite() | ~before.isfinite()).all():
        return
    wider = "bfloat16" if after.dtype == torch.float16 else "float32"
    raise ConfigError(
        f"{key} has numbers that would not be finite as {_name(after.dtype)}, so nothing is "
        f"written; --dtype {wider} has a wider range"
    )


def _write_config(
    checkpoint: ModelCheckpoint, folder: Path, dtype: torch.dtype | None, untie: bool
) -> None:
    """The checkpoint's config, with the dtype and the head as they now are."""
    config: Any = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        if untie:
            part.tie_word_embeddings = False
        if dtype:
            part.dtype = dtype
    config.save_pretrained(folder)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
