"""`fednano size`: what each side of a model takes, from its config alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fednano_flwr.cli import size_tables
from fednano_flwr.cli.options import Revision, exit_status
from fednano_flwr.cli.size_tables import (
    LIMIT,
    PICTURE_TOKENS,
    SHARD_ROWS,
    TEXT_TOKENS,
    Counted,
    SizeOptions,
    Upload,
)
from fednano_flwr.config import DTYPES, ConfigError
from fednano_flwr.models.configs import shipped

if TYPE_CHECKING:
    from fednano_flwr.models.size import Parts, SizeConfig

UPLOADS = (("float32", ""), ("float32", "float32"), ("int8", ""), ("int4", ""), ("int4", "log4"))
"""`upload.adapters` and `upload.fisher` that are weighed; "": no Fisher is asked for."""

command = typer.Typer()


@command.command(
    "size",
    epilog="Example: fednano size llava-1.5-7b --rank 64 --dtype bfloat16. "
    f"What is counted and how: docs/models.md. Shipped configs: {', '.join(shipped())}.",
)
def size_command(
    model: Annotated[
        str,
        typer.Argument(help="A shipped config's name, a folder, a config.json or a hub id."),
    ],
    rank: Annotated[int, typer.Option(min=1, help="r of the NanoAdapters.")] = 64,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Token rows that a client keeps; else what 1,653 ScienceQA questions use.",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(click_type=click.Choice(DTYPES), help="Of the frozen parts and the wire.")
    ] = "bfloat16",
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a sample; else one picture's and 128 of text."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples in a step; only matters to the lowrank exchange.")
    ] = 8,
    llm_rank: Annotated[
        int, typer.Option(min=1, help="r of a LoRA inside the language model (site llm).")
    ] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object of all counts.")] = False,
    revision: Revision = "",
) -> None:
    """Show what each side of a model takes: parameters, storage, memory and traffic.

    MODEL is the name of a shipped config (below), a model's folder, a config.json,
    package:NAME/SUB, or a hub id.

    Counted from its config alone: no weight is read or downloaded. Exits with 2 if there is no such
    model or it cannot be cut.
    """
    options = SizeOptions(model, rank, rows, dtype, tokens, batch_size, revision, llm_rank)
    with exit_status():
        counted = count(options)
        whole = json.dumps(_as_json(counted), indent=2) if as_json else size_tables.show(counted)
        typer.echo(whole)


def count(options: SizeOptions) -> Counted:
    """Count all that the command shows.

    Raises:
        ConfigError: there is no such model, its family cannot be cut, or it has fewer rows.
    """
    # Imported here: it brings torch, which `fednano --help` must not wait for.
    from fednano_flwr.models import size

    found = size.read_size_config(options.model, options.revision)
    parts = size.count(found.config)
    if options.rows is not None and options.rows > parts.vocabulary:
        raise ConfigError(f"--rows {options.rows}: the model has {parts.vocabulary:,} rows")
    pictures = PICTURE_TOKENS if parts.picture_tokens is None else parts.picture_tokens
    setting = size.Setting(
        rank=options.rank,
        rows=options.rows or min(SHARD_ROWS, parts.vocabulary),
        dtype_bytes=size.DTYPE_BYTES[options.dtype],
        tokens=options.tokens or pictures + TEXT_TOKENS,
        batch_size=options.batch_size,
        file_bytes=_file_bytes(found),
        picture_tokens=pictures,
        llm_rank=options.llm_rank,
    )
    uploads = _uploads(parts, options.rank)
    return Counted(options, found, size.Sizes(parts, setting), uploads, _download(found))


def _as_json(counted: Counted) -> dict[str, Any]:
    sizes, parts = counted.sizes, counted.sizes.parts
    return {
        "model": counted.options.model,
        "family": counted.found.config.model_type,
        "config": counted.found.origin,
        "dtype": counted.options.dtype,
        "setting": asdict(sizes.setting),
        "parts": asdict(parts),
        "parameters": {
            "token_embeddings": parts.token_embeddings,
            "model": parts.model,
            "server": parts.server,
            "adapters": sizes.adapter_parameters,
        },
        "model_bytes": sizes.model_bytes,
        "server_bytes": sizes.server_bytes,
        "adapter_bytes": sizes.adapter_bytes,
        "client_bytes": sizes.client_bytes,
        "client_parts": [asdict(item) for item in sizes.client()],
        "client_bytes_without_options": sizes.client_bytes_without_options,
        "client_parts_without_options": [asdict(item) for item in sizes.client(False)],
        "client_files_counted": counted.found.folder is not None,
        "download_bytes_without_bundle": counted.download,
        "rows_within_5_percent": sizes.most_rows(LIMIT),
        "session": [asdict(item) for item in sizes.session()],
        "training_memory": [asdict(item) for item in sizes.training_memory()],
        "uploads": {upload.name: asdict(upload) for upload in counted.uploads},
        "step_bytes": {
            "embeddings": asdict(sizes.embeddings_step()),
            "lowrank": asdict(sizes.lowrank_step()),
        },
    }


def _uploads(parts: Parts, rank: int) -> list[Upload]:
    """Weigh the records of real adapters of this size."""
    import torch

    from fednano_flwr import config
    from fednano_flwr.adapters.site import adapter_state, build_adapters
    from fednano_flwr.rounds.records import to_upload

    adapter = config.Adapter(rank, 2.0 * rank, 0.0, config.ALL_SITES)
    theta = adapter_state(build_adapters(parts.hidden_size, adapter, seed=0, sites=parts.sites))
    diagonals = {key: torch.zeros_like(value) for key, value in theta.items()}
    found = []
    for adapters, fisher in UPLOADS:
        upload = config.Upload(adapters, fisher or "float32", error_feedback=False)
        record = to_upload(theta, diagonals if fisher else None, theta, upload, own=None)
        state = sum(array.numpy().nbytes for array in record.values())
        found.append(Upload(adapters, fisher, state, record.count_bytes()))
    return found


def _file_bytes(found: SizeConfig) -> int:
    """Config, processor and tokenizer, as a bundle holds them."""
    from fednano_flwr.models.split import small_files

    if found.folder is None:
        return 0
    return sum((found.folder / file).stat().st_size for file in small_files(found.folder))


def _download(found: SizeConfig) -> int | None:
    """Bytes of the checkpoint's files that hold a tensor of the client; None without weights."""
    from fednano_flwr.models.bundle import MANIFEST
    from fednano_flwr.models.checkpoint import ModelCheckpoint
    from fednano_flwr.models.weights import INDEX, SINGLE

    folder = found.folder
    if folder is None or (folder / MANIFEST).exists():
        return None
    if not any((folder / name).exists() for name in (INDEX, SINGLE)):
        return None
    checkpoint = ModelCheckpoint(str(folder))
    files = {folder / checkpoint.files[name][0] for name in checkpoint.tensors("edge")}
    if not all(file.exists() for file in files):
        return None
    return sum(file.stat().st_size for file in files) + _file_bytes(found)
