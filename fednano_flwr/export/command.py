"""`fednano export`: write a run's result as PEFT adapters or as a merged model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from fednano_flwr.base.console import human_bytes
from fednano_flwr.base.output import new_folder, require_free
from fednano_flwr.base.resources import ResourceError, resolve
from fednano_flwr.config import ConfigError
from fednano_flwr.config.sections import LLM_SITE
from fednano_flwr.export.card import card, counted, label
from fednano_flwr.export.license import CARD, License, find_license
from fednano_flwr.export.merged import write_merged
from fednano_flwr.export.result import CONFIG, WEIGHTS, RunResult, Saved, read_run
from fednano_flwr.models.bundle import open_checkpoint, open_whole
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.families import Family, of
from fednano_flwr.models.source import locate, read_config
from fednano_flwr.runs.results import other_model


def export(run: Path, form: str, which: str, out: Path, model: str, dtype: str | None) -> str:
    """Write the folder and say in words what it holds.

    Args:
        run: the run's folder.
        form: "peft" or "merged".
        which: adapters of the "best" or the "last" round.
        model: the model, where the run's config does not say it as this machine does; "" else.
        dtype: of a merged model's weights; None keeps the checkpoint's.

    Raises:
        ConfigError: the run or the model cannot be used, or they do not go together.
        OutputError: `out` cannot be written.
    """
    if dtype and form == "peft":
        raise ConfigError("--dtype is for --format merged: adapters are always float32")
    require_free(out)
    result = read_run(run, which)
    write = _export_merged if form == "merged" else _export_adapters
    lines = [
        f"adapters of round {result.round} ({which}) of {run} in {out}",
        *write(result, out, model, dtype),
        *(f"warning: {note}" for note in result.run.notes),
    ]
    return "\n".join(lines)


def _export_adapters(result: RunResult, out: Path, model: str, dtype: str | None) -> list[str]:
    """The adapters in PEFT's layout, without what ties them to a machine or to this project."""
    checkpoint = _open(result, model, whole=False) if model else None
    license = _license(result, checkpoint)
    base = result.model.get("hub_id") or label(result.run.config.model.name)
    family = checkpoint.family if checkpoint else _family(result)
    with new_folder(out) as folder:
        for part in result.parts:
            place = folder if part is result.parts[0] else folder / LLM_SITE
            _copy(part, base, place)
        (folder / CARD).write_text(card(result, family, license), encoding="utf-8")
    numbers = sum(value.numel() for part in result.parts for value in part.state.values())
    lines = [f"{numbers:,} parameters in PEFT's layout, float32"]
    if result.inside:
        where = f" ({out / LLM_SITE})" if result.nano else ""
        lines.append(f"the LoRA{where} is on {', '.join(counted(result.lora))}")
    return lines


def _copy(part: Saved, base: str, folder: Path) -> None:
    """A part in PEFT's layout, with another name of the base model."""
    folder.mkdir(exist_ok=True)
    config = {**part.config, "base_model_name_or_path": base}
    config["auto_mapping"] = None  # would have PEFT import this project
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    shutil.copyfile(part.folder / WEIGHTS, folder / WEIGHTS)


def _export_merged(result: RunResult, out: Path, model: str, dtype: str | None) -> list[str]:
    checkpoint = _open(result, model, whole=True)
    license = _license(result, checkpoint)
    with new_folder(out) as folder:
        target = getattr(torch, dtype) if dtype else None
        merged = write_merged(checkpoint, result.adapters, result.lora, folder, target)
        for text in license.texts:
            shutil.copyfile(text, folder / text.name)
        readme = card(result, checkpoint.family, license, merged)
        (folder / CARD).write_text(readme, encoding="utf-8")
    lines = [
        f"merged into {checkpoint.name}: {checkpoint.family.architecture}, "
        f"{human_bytes(merged.nbytes)}; changed: {', '.join(counted(merged.changed))}",
        f"stored as {' and '.join(sorted(merged.dtypes))}: rounding is "
        f"{merged.rounding.relative:.2g} times what the adapters change",
    ]
    if merged.head:
        lines.append(f"the head is a tensor of its own now: {merged.head}, as it was")
    if not result.model.get("fingerprint"):
        lines.append(
            "warning: the run does not say which model it was (an older version wrote it); only "
            "the size of its embeddings could be compared"
        )
    return lines


def _open(result: RunResult, model: str, whole: bool) -> ModelCheckpoint:
    """The model that the adapters were trained on.

    Args:
        whole: an edge bundle does not do.

    Raises:
        ConfigError: there is no such model, or it is another one.
    """
    run = result.run
    at = run.model(model)
    try:
        checkpoint = (open_whole if whole else open_checkpoint)(at.name, at.revision, at.family)
    except ConfigError as error:
        remark = "" if model else "; --model PATH says where it is on this machine"
        raise ConfigError(f"{error}{remark}") from error
    size = checkpoint.config.get_text_config().hidden_size
    if result.nano and size != result.width:
        raise ConfigError(
            f"model {at.name} has embeddings of size {size}, the adapters of {run.path} are for "
            f"size {result.width}: they were trained on another model ({run.config.model.name})"
        )
    differs = other_model(
        run.environment, checkpoint.name, checkpoint.fingerprint, checkpoint.revision
    )
    if differs:
        raise ConfigError(f"{run.path}: {differs}: the adapters do not belong to it")
    return checkpoint


def _family(result: RunResult) -> Family | None:
    """The model's family, where its config is on this machine or on the hub."""
    at = result.run.model()
    try:
        return of(read_config(at.name, locate(at.name, at.revision)[0], at.family))
    except ConfigError:
        return None


def _license(result: RunResult, checkpoint: ModelCheckpoint | None) -> License:
    """The model's license, by its folder if it is on this machine, or by the hub."""
    run = result.run
    hub_id = str(result.model.get("hub_id") or "")
    commit = run.model().revision
    if checkpoint is not None:
        hub_id, commit = hub_id or checkpoint.hub_id, checkpoint.revision or commit
        return find_license(checkpoint.folder, hub_id, commit)
    try:
        folder = resolve("model.name", run.config.model.name)
    except ResourceError:
        folder = None
    return find_license(folder, hub_id, commit)
