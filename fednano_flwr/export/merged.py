"""A plain checkpoint of the model's own class that has the adapters in its weights.

File by file as the checkpoint has them, piece by piece: beside the connector's last layer, no more
than some megabytes are in memory. Only that layer and the token embeddings change.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from fednano_flwr.base.output import require_space
from fednano_flwr.config import ConfigError
from fednano_flwr.export import stream
from fednano_flwr.export.fold import LowRank, fold_columns, fold_rows
from fednano_flwr.export.stream import Outgoing, Stored
from fednano_flwr.models import skeleton
from fednano_flwr.models.bundle import EdgeBundle
from fednano_flwr.models.checkpoint import HEAD, INDEX, Checkpoint
from fednano_flwr.models.families import Connector, canonical
from fednano_flwr.models.split import small_files

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done, and bytes in all."""
SPARE = 64 * 2**20
# A model's own files of these names; others in its folder say how it was made.
LOADED = (
    "added_tokens",
    "chat_template",
    "generation_config",
    "merges",
    "preprocessor_config",
    "processor_config",
    "sentencepiece",
    "special_tokens_map",
    "spiece",
    "tokenizer",
    "video_preprocessor_config",
    "vocab",
)
Fold = Callable[[Tensor], Tensor]


@dataclass
class Merged:
    """What was changed.

    Attributes:
        changed: names of the tensors that the adapters went into.
        untied: the head's name, where it was the table of the embeddings and now is a tensor.
        dtypes: of the changed tensors.
        nbytes: of all tensors.
        change: sum of squares of what the adapters change in them.
        lost: sum of squares of what rounding to the stored dtype takes or adds.
    """

    changed: list[str] = field(default_factory=list)
    untied: str = ""
    dtypes: set[str] = field(default_factory=set)
    nbytes: int = 0
    change: float = 0.0
    lost: float = 0.0

    @property
    def rounding(self) -> float:
        """Norm of the rounding, relative to that of the change."""
        return (self.lost / self.change) ** 0.5 if self.change else 0.0


def check_mergeable(checkpoint: Checkpoint, sites: Mapping[str, LowRank]) -> Connector:
    """Refuse a model whose weights cannot take the adapters; where they go, otherwise.

    Raises:
        ConfigError: with the family and the reason.
    """
    family = checkpoint.config.model_type
    if isinstance(checkpoint, EdgeBundle):
        raise ConfigError(
            f"{checkpoint.folder} is an edge bundle, a client's half of {checkpoint.name}; "
            "--format merged needs the whole checkpoint"
        )
    connector = checkpoint.family.connector
    if connector.cannot:
        raise ConfigError(
            f"model {checkpoint.name}: the adapters cannot be put into the weights of the family "
            f"{family}: {connector.cannot}; use --format peft"
        )
    wanted = [*(connector.parts() if "image" in sites else ()), checkpoint.token_embeddings]
    for name in wanted:
        if name not in checkpoint.files:
            raise ConfigError(
                f"model {checkpoint.name}: it has no tensor {name}, which a checkpoint of the "
                f"family {family} needs; is it whole?"
            )
    return connector


def write_merged(
    checkpoint: Checkpoint,
    sites: Mapping[str, LowRank],
    folder: Path,
    dtype: torch.dtype | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Merged:
    """Write config, weights, processor and tokenizer into `folder`, which is there and empty.

    Args:
        sites: the adapters, "image" and "text" as far as there are such.
        dtype: of all weights; None is the checkpoint's own.

    Raises:
        ConfigError: the model's weights cannot take the adapters.
        OutputError: the disk is too small.
    """
    merged = Merged()
    folds = _folds(checkpoint, check_mergeable(checkpoint, sites), sites)
    plan = _plan(checkpoint, folds, "text" in sites, dtype, merged)
    merged.nbytes = sum(one.nbytes for tensors in plan.values() for one in tensors.values())
    require_space(folder, merged.nbytes + SPARE, "the merged model")
    config = _write_config(checkpoint, folder, "text" in sites, dtype)
    planned = {str(checkpoint.called(key)) for tensors in plan.values() for key in tensors}
    _require_whole(checkpoint, config, planned)
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        progress("writing", done, merged.nbytes)

    for filename, tensors in plan.items():
        target = folder / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        stream.write(target, tensors, written)
    if checkpoint.chosen == INDEX:
        places = {key: file for file, tensors in plan.items() for key in tensors}
        index = {
            "metadata": {"total_size": merged.nbytes},
            "weight_map": dict(sorted(places.items())),
        }
        _write_json(folder / INDEX, index)
    for file in loaded_files(checkpoint.folder):
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.folder / file, target)
    return merged


def loaded_files(folder: Path) -> list[Path]:
    """Files of processor, tokenizer and generation, by their paths in the folder."""
    return [
        file
        for file in small_files(folder)
        if len(file.parts) > 1 or file.name.startswith(LOADED) or file.suffix == ".model"
    ]


def _folds(
    checkpoint: Checkpoint, connector: Connector, sites: Mapping[str, LowRank]
) -> dict[str, tuple[Fold, bool]]:
    """By canonical name: what changes the tensor, and whether it takes it as a whole."""
    folds: dict[str, tuple[Fold, bool]] = {}
    if "image" in sites:
        image = sites["image"]
        rows = [*connector.rows, *([f"{connector.linear}.bias"] if connector.linear else [])]
        for name in rows:
            folds[name] = partial(fold_rows, adapter=image), True
        if connector.linear:
            folds[f"{connector.linear}.weight"] = partial(fold_columns, adapter=image), True
    if "text" in sites:
        folds[checkpoint.token_embeddings] = partial(fold_rows, adapter=sites["text"]), False
    return folds


def _plan(
    checkpoint: Checkpoint,
    folds: Mapping[str, tuple[Fold, bool]],
    text: bool,
    dtype: torch.dtype | None,
    merged: Merged,
) -> dict[str, dict[str, Outgoing]]:
    """All tensors to be written, by the file that they go to and their name in it."""
    plan: dict[str, dict[str, Outgoing]] = {}
    for filename in dict.fromkeys(file for file, _ in checkpoint.files.values()):
        own: dict[str, Outgoing] = {}
        for key, stored in _stored_in(checkpoint, filename).items():
            name = checkpoint.called(key)
            if name is None:
                continue  # no part of the model
            target = dtype if dtype and stored.dtype.is_floating_point else stored.dtype
            if name in folds:
                merged.changed.append(key)
                merged.dtypes.add(str(target).removeprefix("torch."))
                fold, whole = folds[name]
                pieces = partial(_folded, stored, fold, whole, target, merged)
            else:
                pieces = partial(_converted, stored, target)
            own[key] = Outgoing(target, stored.shape, pieces)
            if text and name == checkpoint.token_embeddings and checkpoint.tied:
                # The head goes on with the table as it was.
                merged.untied = _head_beside(key)
                own[merged.untied] = Outgoing(
                    target, stored.shape, partial(_converted, stored, target)
                )
        plan[filename] = own
    return plan


def _stored_in(checkpoint: Checkpoint, filename: str) -> dict[str, Stored]:
    try:
        return stream.stored_in(checkpoint.path(filename))
    except ValueError as error:
        raise ConfigError(
            f"model {checkpoint.name}: {error}; only unquantized checkpoints can be merged into"
        ) from error


def _head_beside(embeddings: str) -> str:
    """What a checkpoint that calls its embeddings so calls its head."""
    return f"language_model.{HEAD}" if embeddings.startswith("language_model.model.") else HEAD


def _converted(stored: Stored, dtype: torch.dtype) -> Iterator[Tensor]:
    for piece in stored.pieces():
        yield _rounded(stored, piece, piece, dtype)


def _folded(
    stored: Stored, fold: Fold, whole: bool, dtype: torch.dtype, merged: Merged
) -> Iterator[Tensor]:
    for piece in [stored.whole()] if whole else stored.pieces():
        exact = fold(piece)
        rounded = _rounded(stored, piece, exact, dtype)
        merged.change += float((exact - piece.to(exact.dtype)).square().sum())
        merged.lost += float((rounded.to(exact.dtype) - exact).square().sum())
        yield rounded


def _rounded(stored: Stored, piece: Tensor, exact: Tensor, dtype: torch.dtype) -> Tensor:
    """`exact` in the dtype that it is written in.

    Args:
        piece: what the checkpoint has in its place.

    Raises:
        ConfigError: a number that is finite there would not be.
    """
    rounded = exact.to(dtype)
    if not (rounded.isfinite() | ~piece.isfinite()).all():
        wider = "bfloat16" if dtype == torch.float16 else "float32"
        raise ConfigError(
            f"{stored.key} has numbers that would not be finite as "
            f"{str(dtype).removeprefix('torch.')}, so nothing is written; --dtype {wider} has a "
            "wider range"
        )
    return rounded


def _write_config(
    checkpoint: Checkpoint, folder: Path, untied: bool, dtype: torch.dtype | None
) -> PretrainedConfig:
    """The config as the checkpoint has it, but for what the change asks for.

    Raises:
        ConfigError: the family's config cannot say that the head is a tensor of its own.
    """
    config: dict[str, Any] = json.loads((checkpoint.folder / "config.json").read_text("utf-8"))
    parts = [config, *(config[key] for key in ("text_config", "llm_config") if config.get(key))]
    for part in parts:
        if untied:
            part["tie_word_embeddings"] = False
        if dtype is not None:
            part.pop("torch_dtype", None)
            part["dtype"] = str(dtype).removeprefix("torch.")
    _write_json(folder / "config.json", config)
    read: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if untied and (read.tie_word_embeddings or _says_tied(read.get_text_config())):
        raise ConfigError(
            f"model {checkpoint.name}: its config.json has no text_config, so that it cannot say "
            "that the head is no longer the embeddings' table; save it anew with a current "
            "version of transformers"
        )
    return read


def _says_tied(text: PretrainedConfig) -> bool:
    return bool(getattr(text, "tie_word_embeddings", False))


def _require_whole(checkpoint: Checkpoint, config: PretrainedConfig, planned: set[str]) -> None:
    """Refuse a checkpoint that lacks tensors: what is written should load without a word.

    Raises:
        ConfigError: with some of their names.
    """
    tree = {canonical(name) for name, _ in skeleton.build(config).named_parameters()}
    if checkpoint.tied and HEAD not in planned:
        tree.discard(HEAD)
    missing = sorted(tree - planned)
    if missing:
        raise ConfigError(
            f"model {checkpoint.name}: the checkpoint lacks {len(missing)} of its tensors, "
            f"{missing[0]} for one"
        )


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
