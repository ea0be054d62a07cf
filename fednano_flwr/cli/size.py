"""`fednano size`: what each side of a model takes, from its config alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fednano_flwr.base.console import human_bytes
from fednano_flwr.cli.options import Revision, exit_status
from fednano_flwr.cli.size_tables import (
    COMPRESSED,
    DTYPE_BYTES,
    LIMIT,
    PICTURE_TOKENS,
    SHARD_ROWS,
    TEXT_TOKENS,
    UPLOADS,
    PackedRecord,
    Records,
    SizeOptions,
    client_table,
    memory_table,
    parts_table,
    round_table,
    step_table,
)
from fednano_flwr.config import DTYPES, ConfigError

if TYPE_CHECKING:
    from fednano_flwr.models.size import SizeConfig, Sizes

command = typer.Typer()


@command.command(
    "size",
    epilog="Example: fednano size llava-1.5-7b --rank 64 --dtype bfloat16. "
    "What is counted and how: docs/models.md.",
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
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object of all counts.")] = False,
    revision: Revision = "",
) -> None:
    """Show what each side of a model takes: parameters, storage, memory and traffic.

    MODEL is llava-1.5-7b, llava-1.5-13b or instructblip-vicuna-7b (their configs are shipped), a
    model's folder, a config.json, package:NAME/SUB, or a hub id.

    Counted from its config alone: no weight is read or downloaded. Exits with 2 if there is no such
    model or it cannot be cut.
    """
    with exit_status():
        options = SizeOptions(model, rank, rows, dtype, tokens, batch_size, revision)
        typer.echo(size(options, as_json))


def size(options: SizeOptions, as_json: bool) -> str:
    """The tables to show, or one JSON object.

    Raises:
        ConfigError: there is no such model, its family cannot be cut, or it has fewer rows.
    """
    # Imported here: they bring torch, which `fednano --help` must not wait for.
    from fednano_flwr.models.size import Setting, Sizes, count, read_size_config

    found = read_size_config(options.model, options.revision)
    parts = count(found.config)
    if options.rows is not None and options.rows > parts.vocabulary:
        raise ConfigError(f"--rows {options.rows}: the model has {parts.vocabulary:,} rows")
    pictures = PICTURE_TOKENS if parts.picture_tokens is None else parts.picture_tokens
    setting = Setting(
        rank=options.rank,
        rows=min(SHARD_ROWS, parts.vocabulary) if options.rows is None else options.rows,
        dtype_bytes=DTYPE_BYTES[options.dtype],
        tokens=pictures + TEXT_TOKENS if options.tokens is None else options.tokens,
        batch_size=options.batch_size,
        file_bytes=_file_bytes(found),
    )
    sizes = Sizes(parts, setting)
    records = _records(parts.hidden_size, options.rank)
    download = _download_without_bundle(found)
    if as_json:
        return json.dumps(_as_json(options, found, sizes, records, download), indent=2)
    heading = (
        f"{options.model}: {parts.model:,} parameters, {human_bytes(sizes.model_bytes)} in "
        f"{options.dtype} ({found.config.model_type}; {found.origin})"
    )
    return "\n\n".join(
        [
            heading,
            parts_table(sizes),
            client_table(options, found, sizes, download),
            memory_table(sizes),
            round_table(sizes, records),
            step_table(options, sizes),
        ]
    )


def _as_json(
    options: SizeOptions, found: SizeConfig, sizes: Sizes, records: Records, download: int | None
) -> dict[str, Any]:
    parts, setting = sizes.parts, sizes.setting
    return {
        "model": options.model,
        "family": found.config.model_type,
        "config": found.origin,
        "dtype": options.dtype,
        "setting": asdict(setting),
        "parts": asdict(parts),
        "parameters": {
            "token_embeddings": parts.token_embeddings,
            "model": parts.model,
            "server": parts.server,
            "adapters": sizes.adapter_parameters,
        },
        "model_bytes": sizes.model_bytes,
        "server_bytes": sizes.server_bytes,
        "client_bytes": sizes.client_bytes,
        "client_share": sizes.client_bytes / sizes.model_bytes,
        "client_parts": [asdict(item) for item in sizes.client()],
        "client_bytes_without_options": sizes.client_bytes_without_options,
        "client_share_without_options": sizes.client_bytes_without_options / sizes.model_bytes,
        "client_parts_without_options": [asdict(item) for item in sizes.client(False)],
        "client_files_counted": found.folder is not None,
        "download_bytes_without_bundle": download,
        "rows_within_5_percent": sizes.most_rows(LIMIT),
        "training_memory": [asdict(item) for item in sizes.training_memory()],
        "adapter_bytes": sizes.adapter_bytes,
        "download_bytes": sizes.adapter_bytes,
        "upload_bytes": sizes.upload_bytes(fisher=True),
        "upload_bytes_without_fisher": sizes.upload_bytes(fisher=False),
        "upload_bytes_compressed": records.compressed.record,
        "upload_share_compressed": records.compressed.record / sizes.model_bytes,
        "upload_compressed": dict(zip(("adapters", "fisher"), COMPRESSED, strict=True)),
        "upload_bytes_packed": {
            "+".join(filter(None, key)): each.record for key, each in records.packed.items()
        },
        "record_bytes": {"adapters": records.adapters, "with_fisher": records.with_fisher},
        "step_bytes": {
            "embeddings": asdict(sizes.embeddings_step()),
            "lowrank": asdict(sizes.lowrank_step()),
        },
    }


def _records(hidden_size: int, rank: int) -> Records:
    """Weigh the records of real adapters of this size."""
    import torch

    from fednano_flwr.adapters.site import adapter_state, build_adapters
    from fednano_flwr.config import SITES, Adapter, Upload
    from fednano_flwr.rounds.records import to_arrays
    from fednano_flwr.rounds.uploads import to_upload

    adapter = Adapter(rank, 2.0 * rank, 0.0, ",".join(SITES))
    theta = adapter_state(build_adapters(hidden_size, adapter, seed=0))
    fisher = {key: torch.zeros_like(value) for key, value in theta.items()}
    packed = {}
    for adapters, diagonals in UPLOADS:
        upload = Upload(adapters, diagonals or "float32", error_feedback=False)
        record = to_upload(theta, fisher if diagonals else None, theta, upload, own=None)
        state = sum(array.numpy().nbytes for array in record.values())
        packed[adapters, diagonals] = PackedRecord(state, record.count_bytes())
    return Records(to_arrays(theta).count_bytes(), to_arrays(theta, fisher).count_bytes(), packed)


def _file_bytes(found: SizeConfig) -> int:
    """Config, processor and tokenizer, as a bundle holds them."""
    from fednano_flwr.models.split import small_files

    if found.folder is None:
        return 0
    return sum((found.folder / file).stat().st_size for file in small_files(found.folder))


def _download_without_bundle(found: SizeConfig) -> int | None:
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
