"""`fednano size`: what each side of a model takes, from its config alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fednano_flwr.config import ConfigError
from fednano_flwr.console import human_bytes, table

if TYPE_CHECKING:
    from fednano_flwr.models.size import Item, SizeConfig, Sizes

SHARD_ROWS = 5_481
"""Token embeddings that 1,653 ScienceQA questions use with LLaMA's tokenizer: docs/models.md."""
TEXT_TOKENS = 128
PICTURE_TOKENS = 576
"""LLaVA-1.5's, for a family whose pictures take a number of tokens that depends on the picture."""
LIMIT = 0.05
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Asked:
    """What the command line says; None where it leaves the choice to the model."""

    model: str
    rank: int
    rows: int | None
    dtype: str
    tokens: int | None
    batch_size: int


@dataclass(frozen=True)
class Records:
    """Bytes of the records that carry a round's state, as Flower counts them."""

    adapters: int
    with_fisher: int


def size(asked: Asked, as_json: bool) -> str:
    """The tables to show, or one JSON object.

    Raises:
        ConfigError: there is no such model, its family cannot be cut, or it has fewer rows.
    """
    # Imported here: they bring torch, which `fednano --help` must not wait for.
    from fednano_flwr.models.size import Setting, Sizes, count, read_size_config

    found = read_size_config(asked.model)
    parts = count(found.config)
    if asked.rows is not None and asked.rows > parts.vocabulary:
        raise ConfigError(f"--rows {asked.rows}: the model has {parts.vocabulary:,} rows")
    pictures = PICTURE_TOKENS if parts.picture_tokens is None else parts.picture_tokens
    setting = Setting(
        rank=asked.rank,
        rows=min(SHARD_ROWS, parts.vocabulary) if asked.rows is None else asked.rows,
        dtype_bytes=DTYPE_BYTES[asked.dtype],
        tokens=pictures + TEXT_TOKENS if asked.tokens is None else asked.tokens,
        batch_size=asked.batch_size,
        file_bytes=_file_bytes(found),
    )
    sizes = Sizes(parts, setting)
    records = _records(parts.hidden_size, asked.rank)
    download = _download_without_bundle(found)
    if as_json:
        return json.dumps(_as_json(asked, found, sizes, records, download), indent=2)
    heading = (
        f"{asked.model}: {parts.model:,} parameters, {human_bytes(sizes.model_bytes)} in "
        f"{asked.dtype} ({found.config.model_type}; {found.origin})"
    )
    return "\n\n".join(
        [
            heading,
            _parts_table(sizes),
            _client_table(asked, found, sizes, download),
            _memory_table(sizes),
            _round_table(sizes, records),
            _step_table(asked, sizes),
        ]
    )


def _parts_table(sizes: Sizes) -> str:
    parts = sizes.parts
    head = "head (is the token embeddings)" if parts.tied else "head"
    frozen = (
        ("vision encoder", "client", parts.encoder),
        ("connector", "client", parts.connector),
        ("token embeddings", "both", parts.token_embeddings),
        ("language model, without them", "server", parts.language_model),
        (head, "server", parts.head),
        ("the model", "", parts.model),
        ("of it on the server", "", parts.server),
    )
    sized = [(*row, row[2] * sizes.setting.dtype_bytes) for row in frozen]
    adapters = f"NanoAdapters, rank {sizes.setting.rank} (trained)"
    sized.append((adapters, "client", sizes.adapter_parameters, sizes.adapter_bytes))
    rows = [
        (name, side, f"{number:,}", human_bytes(bytes_), _percent(number / parts.model))
        for name, side, number, bytes_ in sized
    ]
    return table("Parts", ("", "side", "parameters", "bytes", "of the parameters"), rows)


def _client_table(asked: Asked, found: SizeConfig, sizes: Sizes, download: int | None) -> str:
    parts = sizes.parts
    rows = []
    for plain, cut in zip(sizes.client(with_options=False), sizes.client(), strict=True):
        if plain.bytes or cut.bytes:
            rows.append((_named(plain.name, sizes), *_shown(plain), *_shown(cut)))
    both = (sizes.client_bytes_without_options, sizes.client_bytes)
    without, with_options = (human_bytes(each) for each in both)
    rows.append(("all of it", "", without, "", with_options))
    shares = [_percent(each / sizes.model_bytes) for each in both]
    rows.append(("of the model's bytes", "", shares[0], "", shares[1]))
    columns = ("", "parameters", "in full", "parameters", "as a bundle")
    lines = [
        table("What a client stores", columns, rows),
        "A bundle is what fednano split writes; a client that has one needs no other file.",
        f"It has {_rows_kept(asked, sizes)}",
        _limit(sizes),
    ]
    if parts.layers_unused:
        lines.insert(
            2,
            f"It lacks {_counted(parts.layers_unused, 'encoder layer')} whose output the model "
            "never uses.",
        )
    if download:
        lines.append(
            f"Without a bundle a client downloads {human_bytes(download)}: whole files of the "
            "checkpoint."
        )
    if found.folder is None:
        lines.append("Not counted: config, processor and tokenizer, which a config does not tell.")
    return "\n".join(lines)


def _rows_kept(asked: Asked, sizes: Sizes) -> str:
    rows, vocabulary = sizes.setting.rows, sizes.parts.vocabulary
    if rows == vocabulary:
        return f"all {vocabulary:,} token rows."
    kept = f"{rows:,} of {vocabulary:,} token rows"
    if asked.rows is not None:
        return f"{kept}, as asked (--rows)."
    return (
        f"{kept}: those that 1,653 ScienceQA questions use\n"
        "with LLaMA's tokenizer, about a tenth of the dataset (--rows changes it; docs/models.md)."
    )


def _limit(sizes: Sizes) -> str:
    most, vocabulary = sizes.most_rows(LIMIT), sizes.parts.vocabulary
    if most is None:
        return f"Even without any token row it would exceed {100 * LIMIT:g} % of the model's bytes."
    if most == vocabulary:
        return f"With all {vocabulary:,} rows it is within {100 * LIMIT:g} % of the model's bytes."
    return f"Up to {most:,} rows it is within {100 * LIMIT:g} % of the model's bytes."


def _memory_table(sizes: Sizes) -> str:
    rows = [(item.name, *_shown(item)) for item in sizes.training_memory()]
    title = "Memory only while a client trains"
    return (
        table(title, ("in float32", "numbers", "bytes"), rows)
        + "\nBeside what it stores; activations and the image features that it keeps come on top."
    )


def _round_table(sizes: Sizes, records: Records) -> str:
    plain, both = sizes.upload_bytes(fisher=False), sizes.upload_bytes(fisher=True)
    rows = [
        ("down: adapters", _bytes(plain), _bytes(records.adapters)),
        ("up: adapters", _bytes(plain), _bytes(records.adapters)),
        ("up: adapters and Fisher", _bytes(both), _bytes(records.with_fisher)),
    ]
    title = f"Round traffic of a client, rank {sizes.setting.rank}, float32"
    return (
        table(title, ("", "state", "as Flower's record"), rows)
        + "\nA client that is scored gets the adapters once more."
    )


def _step_table(asked: Asked, sizes: Sizes) -> str:
    setting, pictures = sizes.setting, sizes.parts.picture_tokens
    plain, low = sizes.embeddings_step(), sizes.lowrank_step()
    rows = [
        (name, human_bytes(each.up), human_bytes(each.down), human_bytes(each.up + each.down), once)
        for name, each, once in (
            ("embeddings", plain, "–"),
            ("lowrank (planned)", low, human_bytes(low.once) if low.once else "its features"),
        )
    ]
    if asked.tokens is not None:
        consists = f"T = {setting.tokens} tokens a sample."
    elif pictures is None:
        consists = (
            f"T = {setting.tokens} tokens a sample: LLaVA-1.5's {PICTURE_TOKENS} for a picture, as "
            "this family's depend\non the picture, "
            f"and {TEXT_TOKENS} of text. Give your own with --tokens."
        )
    else:
        consists = (
            f"T = {setting.tokens} tokens a sample: {pictures} of a picture and {TEXT_TOKENS} of "
            "text (--tokens changes it)."
        )
    columns = ("exchange", "up", "down", "both", "once a picture")
    return "\n".join(
        [
            table(f"Step traffic a sample, rank {setting.rank}, {asked.dtype}", columns, rows),
            consists,
            "lowrank cannot be chosen yet; here the "
            f"{_counted(setting.batch_size, 'sample')} of a step share B and dB.",
        ]
    )


def _as_json(
    asked: Asked, found: SizeConfig, sizes: Sizes, records: Records, download: int | None
) -> dict[str, Any]:
    parts, setting = sizes.parts, sizes.setting
    return {
        "model": asked.model,
        "family": found.config.model_type,
        "config": found.origin,
        "dtype": asked.dtype,
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
        "record_bytes": {"adapters": records.adapters, "with_fisher": records.with_fisher},
        "step_bytes": {
            "embeddings": asdict(sizes.embeddings_step()),
            "lowrank": {**asdict(sizes.lowrank_step()), "available": False},
        },
    }


def _records(hidden_size: int, rank: int) -> Records:
    """Weigh the records of real adapters of this size."""
    import torch

    from fednano_flwr.config import SITES, Adapter
    from fednano_flwr.edge.adapters import adapter_state, build_adapters
    from fednano_flwr.records import to_arrays

    adapter = Adapter(rank, 2.0 * rank, 0.0, ",".join(SITES))
    theta = adapter_state(build_adapters(hidden_size, adapter, seed=0))
    fisher = {key: torch.zeros_like(value) for key, value in theta.items()}
    return Records(to_arrays(theta).count_bytes(), to_arrays(theta, fisher).count_bytes())


def _file_bytes(found: SizeConfig) -> int:
    """Config, processor and tokenizer, as a bundle holds them."""
    from fednano_flwr.models.split import small_files

    if found.folder is None:
        return 0
    return sum((found.folder / file).stat().st_size for file in small_files(found.folder))


def _download_without_bundle(found: SizeConfig) -> int | None:
    """Bytes of the checkpoint's files that hold a tensor of the client; None without weights."""
    from fednano_flwr.models.bundle import MANIFEST
    from fednano_flwr.models.checkpoint import INDEX, SINGLE, Checkpoint
    from fednano_flwr.models.split import edge_tensors

    folder = found.folder
    if folder is None or (folder / MANIFEST).exists():
        return None
    if not any((folder / name).exists() for name in (INDEX, SINGLE)):
        return None
    checkpoint = Checkpoint(str(folder))
    names = [*edge_tensors(checkpoint)[0], checkpoint.token_embeddings]
    files = {folder / checkpoint.files[name][0] for name in names}
    if not all(file.exists() for file in files):
        return None
    return sum(file.stat().st_size for file in files) + _file_bytes(found)


def _named(name: str, sizes: Sizes) -> str:
    details = {
        "ids of the kept rows": " (int64)",
        "NanoAdapters": f", rank {sizes.setting.rank} (float32)",
    }
    return name + details.get(name, "")


def _shown(item: Item) -> tuple[str, str]:
    return (f"{item.parameters:,}" if item.parameters else "", _bytes(item.bytes))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _bytes(count: int) -> str:
    return human_bytes(count) if count else "–"


def _percent(share: float) -> str:
    return f"{100 * share:.{2 if share >= 0.001 else 4}f} %"
