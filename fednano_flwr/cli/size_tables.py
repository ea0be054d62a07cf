"""What `fednano size` prints."""

from __future__ import annotations

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
    llm_rank: int = 16


@dataclass(frozen=True)
class Upload:
    """What a client sends in a round.

    Attributes:
        adapters, fisher: as `upload.adapters` and `upload.fisher`; "" where none is asked for.
        state: bytes of the numbers.
        record: bytes of Flower's record.
    """

    adapters: str
    fisher: str
    state: int
    record: int

    @property
    def name(self) -> str:
        """As "int4+log4"."""
        return "+".join(filter(None, (self.adapters, self.fisher)))


@dataclass(frozen=True)
class Counted:
    """All that the command shows.

    Attributes:
        download: bytes of the checkpoint's files that hold a tensor of the client; None without
            weights.
    """

    options: SizeOptions
    found: SizeConfig
    sizes: Sizes
    uploads: list[Upload]
    download: int | None


def show(counted: Counted) -> str:
    """The tables, one below the other."""
    options, sizes = counted.options, counted.sizes
    heading = (
        f"{options.model}: {sizes.parts.model:,} parameters, {human_bytes(sizes.model_bytes)} in "
        f"{options.dtype} ({counted.found.config.model_type}; {counted.found.origin})"
    )
    tables = (
        _parts(sizes),
        _client(counted),
        _memory(sizes),
        *_session(sizes),
        _round(counted),
        _step(options, sizes),
    )
    return "\n\n".join((heading, *tables))


def _parts(sizes: Sizes) -> str:
    parts = sizes.parts
    head = "head (is the token embeddings)" if parts.tied else "head"
    frozen = (
        (parts.encoder_name, "client", parts.encoder),
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


def _client(counted: Counted) -> str:
    sizes, parts = counted.sizes, counted.sizes.parts
    details = {
        "ids of the kept rows": " (int64)",
        "NanoAdapters": f", rank {sizes.setting.rank} (float32)",
    }
    rows = [
        (full.name + details.get(full.name, ""), *_shown(full), *_shown(cut))
        for full, cut in zip(sizes.client(with_options=False), sizes.client(), strict=True)
        if full.bytes or cut.bytes
    ]
    both = (sizes.client_bytes_without_options, sizes.client_bytes)
    without, with_options = (human_bytes(each) for each in both)
    rows.append(("all of it", "", without, "", with_options))
    without, with_options = (_percent(each / sizes.model_bytes) for each in both)
    rows.append(("of the model's bytes", "", without, "", with_options))
    columns = ("", "parameters", "in full", "parameters", "as a bundle")
    lines = [
        table("What a client stores", columns, rows),
        "A bundle is what fednano split writes; a client that has one needs no other file.",
        f"It has {_rows_kept(counted.options, sizes)}",
        _limit(sizes),
    ]
    if unused := parts.layers_unused:
        layers = f"{unused} encoder layer{'' if unused == 1 else 's'}"
        lines.insert(2, f"It lacks {layers} whose output the model never uses.")
    if counted.download:
        lines.append(
            f"Without a bundle a client downloads {human_bytes(counted.download)}: whole files of "
            "the checkpoint."
        )
    if counted.found.folder is None:
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
    within = f"{100 * LIMIT:g} % of the model's bytes."
    if most is None:
        return f"Even without any token row it would exceed {within}"
    with_rows = f"With all {vocabulary:,}" if most == vocabulary else f"Up to {most:,}"
    return f"{with_rows} rows it is within {within}"


def _memory(sizes: Sizes) -> str:
    rows = [(item.name, *_shown(item)) for item in sizes.training_memory()]
    return (
        table("Memory only while a client trains", ("in float32", "numbers", "bytes"), rows)
        + "\nBeside what it stores; activations and the image features that it keeps come on top."
    )


def _session(sizes: Sizes) -> list[str]:
    items = sizes.session()
    if not items[0].parameters:
        return []
    rows = [(item.name, *_shown(item)) for item in items]
    rows.append(("a client's session", "", human_bytes(sum(item.bytes for item in items))))
    title = f"With the site llm (attention, rank {sizes.setting.llm_rank}): memory at the host"
    return [table(title, ("in float32", "numbers", "bytes"), rows)]


def _round(counted: Counted) -> str:
    rows = [("down: adapters", *_sent(counted.uploads[0], counted.sizes))]
    for upload in counted.uploads:
        name = f"up: adapters {upload.adapters}" + (upload.fisher and f", Fisher {upload.fisher}")
        rows.append((name, *_sent(upload, counted.sizes)))
    columns = ("", "state", "as Flower's record", "of the model's bytes")
    return (
        table(f"Round traffic of a client, rank {counted.options.rank}", columns, rows)
        + "\nA client that is scored gets the adapters once more.\n"
        "upload.adapters and upload.fisher choose how an upload is packed (docs/exchange.md)."
    )


def _sent(upload: Upload, sizes: Sizes) -> tuple[str, str, str]:
    share = _percent(upload.record / sizes.model_bytes)
    return human_bytes(upload.state), human_bytes(upload.record), share


def _step(options: SizeOptions, sizes: Sizes) -> str:
    setting, pictures = sizes.setting, sizes.parts.picture_tokens
    kind = "picture" if "image" in sizes.parts.sites else "sound"
    plain = sizes.embeddings_step()
    exchanges = {
        "embeddings": plain,
        "lowrank": sizes.lowrank_step(),
        "lowrank, least": sizes.alternating_step(),
    }
    rows = [
        (
            name,
            *map(human_bytes, (each.up, each.down, each.up + each.down)),
            "–" if each is plain else human_bytes(each.once) if each.once else "its features",
        )
        for name, each in exchanges.items()
    ]
    consists = f"T = {setting.tokens} tokens a sample"
    if options.tokens is None:
        consists += f": {pictures or PICTURE_TOKENS} of a {kind} and {TEXT_TOKENS} of text"
        consists += " (--tokens changes it)"
        if pictures is None:
            consists += f";\nas many as a picture of LLaVA-1.5 has: here it depends on the {kind}"
    if deep := sizes.parts.deep_layers:
        consists += f".\nA picture's tokens have features for {deep} deeper layers as well"
    columns = ("exchange", "up", "down", "both", f"once a {kind}")
    return (
        table(f"Step traffic a sample, rank {setting.rank}, {options.dtype}", columns, rows)
        + f"\n{consists}.\nWith lowrank, B and dB are counted in shares of a step's batch, "
        f"{setting.batch_size}.\nLeast: rounds that train A and B in turns (strategy.name=rolora), "
        "exchange.connector-at=server."
    )


def _shown(item: Item) -> tuple[str, str]:
    numbers = f"{item.parameters:,}" if item.parameters else ""
    return numbers, human_bytes(item.bytes) if item.bytes else "–"


def _percent(share: float) -> str:
    return f"{100 * share:.{2 if share >= 0.001 else 4}f} %"
