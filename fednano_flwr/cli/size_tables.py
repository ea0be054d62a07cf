"""What `fednano size` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fednano_flwr.base.console import human_bytes, table

if TYPE_CHECKING:
    from fednano_flwr.models.size import Item, SizeConfig, Sizes

SHARD_ROWS = 5_481
"""Token embeddings that 1,653 ScienceQA questions use with LLaMA's tokenizer: docs/models.md."""
TEXT_TOKENS = 128
PICTURE_TOKENS = 576
"""LLaVA-1.5's, for a family whose pictures take a number of tokens that depends on the picture."""
LIMIT = 0.05
UPLOADS = (("int8", None), ("int4", None), ("int4", "log4"))
"""`upload.adapters` and `upload.fisher` that are weighed; None where no Fisher is asked for."""
COMPRESSED = ("int4", "log4")
"""The smallest that keeps a value of every parameter's Fisher diagonal: conf/compressed.toml."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class SizeOptions:
    """What the command line says; None where it leaves the choice to the model."""

    model: str
    rank: int
    rows: int | None
    dtype: str
    tokens: int | None
    batch_size: int
    revision: str = ""


@dataclass(frozen=True)
class Records:
    """Bytes of the records that carry a round's state, as Flower counts them."""

    adapters: int
    with_fisher: int
    packed: Mapping[tuple[str, str | None], PackedRecord]

    @property
    def compressed(self) -> PackedRecord:
        """Adapters with Fisher, packed small."""
        return self.packed[COMPRESSED]


@dataclass(frozen=True)
class PackedRecord:
    """Bytes of a packed update: what its arrays hold, and the record as Flower counts it."""

    state: int
    record: int


def parts_table(sizes: Sizes) -> str:
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


def client_table(
    options: SizeOptions, found: SizeConfig, sizes: Sizes, download: int | None
) -> str:
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
        f"It has {_rows_kept(options, sizes)}",
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


def _rows_kept(options: SizeOptions, sizes: Sizes) -> str:
    rows, vocabulary = sizes.setting.rows, sizes.parts.vocabulary
    if rows == vocabulary:
        return f"all {vocabulary:,} token rows."
    kept = f"{rows:,} of {vocabulary:,} token rows"
    if options.rows is not None:
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


def memory_table(sizes: Sizes) -> str:
    rows = [(item.name, *_shown(item)) for item in sizes.training_memory()]
    title = "Memory only while a client trains"
    return (
        table(title, ("in float32", "numbers", "bytes"), rows)
        + "\nBeside what it stores; activations and the image features that it keeps come on top."
    )


def round_table(sizes: Sizes, records: Records) -> str:
    plain, both = sizes.upload_bytes(fisher=False), sizes.upload_bytes(fisher=True)
    weighed = [
        ("down: adapters", plain, records.adapters),
        ("up: adapters", plain, records.adapters),
        ("up: adapters and Fisher", both, records.with_fisher),
        *((_upload(*key), each.state, each.record) for key, each in records.packed.items()),
    ]
    rows = [
        (name, _bytes(state), _bytes(record), _percent(record / sizes.model_bytes))
        for name, state, record in weighed
    ]
    title = f"Round traffic of a client, rank {sizes.setting.rank}, float32 unless packed"
    return (
        table(title, ("", "state", "as Flower's record", "of the model's bytes"), rows)
        + "\nA client that is scored gets the adapters once more.\n"
        "upload.adapters and upload.fisher choose how an upload is packed (docs/upload.md)."
    )


def _upload(adapters: str, fisher: str | None) -> str:
    return f"up: adapters {adapters}" + (f", Fisher {fisher}" if fisher else "")


def step_table(options: SizeOptions, sizes: Sizes) -> str:
    setting, pictures = sizes.setting, sizes.parts.picture_tokens
    plain, low = sizes.embeddings_step(), sizes.lowrank_step()
    rows = [
        (name, human_bytes(each.up), human_bytes(each.down), human_bytes(each.up + each.down), once)
        for name, each, once in (
            ("embeddings", plain, "–"),
            ("lowrank", low, human_bytes(low.once) if low.once else "its features"),
        )
    ]
    if options.tokens is not None:
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
            table(f"Step traffic a sample, rank {setting.rank}, {options.dtype}", columns, rows),
            consists,
            f"With lowrank the {_counted(setting.batch_size, 'sample')} of a step share B and dB, "
            "which are counted.",
        ]
    )


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
