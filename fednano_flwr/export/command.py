"""`fednano export`: write a run's result as PEFT adapters or as a merged model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fednano_flwr.base.console import human_bytes
from fednano_flwr.config import ConfigError, Model
from fednano_flwr.runs.results import model_of, other_model

if TYPE_CHECKING:
    from fednano_flwr.export.license import License
    from fednano_flwr.export.result import RunResult
    from fednano_flwr.models.checkpoint import Checkpoint

FORMATS = ("peft", "merged")
CARD = "README.md"


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
    if form not in FORMATS:
        raise ConfigError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    if dtype and form == "peft":
        raise ConfigError("--dtype is for --format merged: adapters are always float32")
    # Imported here: they bring torch, which `fednano --help` must not wait for.
    from fednano_flwr.base.output import require_free
    from fednano_flwr.export.result import read_run

    require_free(out)
    result = read_run(run, which)
    said = (
        _export_adapters(result, out, model)
        if form == "peft"
        else _export_merged(result, out, model, dtype)
    )
    return "\n".join([said, *(f"warning: {note}" for note in result.notes)])


def _export_adapters(result: RunResult, out: Path, model: str) -> str:
    from fednano_flwr.base.output import new_folder
    from fednano_flwr.export.card import adapters_card
    from fednano_flwr.export.peft_format import write_adapters

    checkpoint = _open(result, model) if model else None
    license = _license(result, checkpoint)
    family = checkpoint.config.model_type if checkpoint else _family(result)
    with new_folder(out) as folder:
        write_adapters(result, folder)
        (folder / CARD).write_text(adapters_card(result, family, license), encoding="utf-8")
    numbers = sum(value.numel() for value in result.state.values())
    return f"{_said(result)} in {out}\n{numbers:,} parameters in PEFT's layout, float32"


def _export_merged(result: RunResult, out: Path, model: str, dtype: str | None) -> str:
    import torch
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from fednano_flwr.base.output import new_folder
    from fednano_flwr.export.card import merged_card
    from fednano_flwr.export.merged import write_merged

    checkpoint = _open(result, model)
    license = _license(result, checkpoint)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with new_folder(out) as folder, Progress(*columns, transient=True) as bar:
        task = bar.add_task("writing")
        merged = write_merged(
            checkpoint,
            result.sites,
            folder,
            getattr(torch, dtype) if dtype else None,
            lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            ),
        )
        for text in license.texts:
            shutil.copyfile(text, folder / text.name)
        card = merged_card(result, checkpoint.config.model_type, license, merged)
        (folder / CARD).write_text(card, encoding="utf-8")
    lines = [
        f"{_said(result)}, merged into {checkpoint.name}, in {out}",
        f"{checkpoint.family.architecture}, {human_bytes(merged.nbytes)}; changed: "
        f"{', '.join(merged.changed)}",
    ]
    if merged.untied:
        lines.append(f"the head is a tensor of its own now: {merged.untied}, as it was")
    lines.append(
        f"stored as {' and '.join(sorted(merged.dtypes))}: rounding is {merged.rounding:.2g} times "
        "what the adapters change"
    )
    if not result.model.get("fingerprint"):
        lines.append(
            "warning: the run does not say which model it was (an older version wrote it); only "
            "the size of its embeddings could be compared"
        )
    return "\n".join(lines)


def _open(result: RunResult, model: str) -> Checkpoint:
    """The model that the adapters were trained on.

    Raises:
        ConfigError: there is no such model, or it is another one.
    """
    from fednano_flwr.models.bundle import open_checkpoint

    at = _model(result, model)
    name = at.name
    try:
        checkpoint = open_checkpoint(name, at.revision)
    except ConfigError as error:
        remark = "" if model else "; --model PATH says where it is on this machine"
        raise ConfigError(f"{error}{remark}") from error
    size = checkpoint.config.get_text_config().hidden_size
    if size != result.width:
        raise ConfigError(
            f"model {name} has embeddings of size {size}, the adapters of {result.folder} change "
            f"those of size {result.width}: they were trained on another model "
            f"({result.config['model.name']})"
        )
    differs = other_model(
        result.environment, checkpoint.name, checkpoint.fingerprint, checkpoint.revision
    )
    if differs:
        raise ConfigError(f"{result.folder}: {differs}: the adapters do not belong to it")
    return checkpoint


def _model(result: RunResult, elsewhere: str = "") -> Model:
    """The run's model, at the commit that the run had."""
    config = result.config
    configured = Model(str(config["model.name"]), str(config["model.revision"]))
    return model_of(configured, result.environment, elsewhere)


def _family(result: RunResult) -> str:
    """The model's family, where its config is on this machine or on the hub; "" where not."""
    from fednano_flwr.models.source import locate, read_config

    at = _model(result)
    try:
        return read_config(at.name, locate(at.name, at.revision)[0]).model_type
    except ConfigError:
        return ""


def _license(result: RunResult, checkpoint: Checkpoint | None) -> License:
    """Of the run's model, by its folder where it is on this machine, or by the hub."""
    from fednano_flwr.base.resources import ResourceError, resolve
    from fednano_flwr.export.license import find_license

    commit = _model(result).revision
    if checkpoint is not None:
        hub_id = result.model.get("hub_id") or checkpoint.hub_id
        return find_license(checkpoint.folder, hub_id, checkpoint.revision or commit)
    try:
        folder = resolve("model.name", str(result.config["model.name"]))
    except ResourceError:
        folder = None
    return find_license(folder, result.model.get("hub_id", ""), commit)


def _said(result: RunResult) -> str:
    return f"adapters of round {result.round} ({result.which}) of {result.folder}"
