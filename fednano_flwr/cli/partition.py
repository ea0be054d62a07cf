"""`fednano partition`: deal a data set to clients, each into a folder of its own.

OUT/client-0 … client-(N-1)     shards; a SuperNode gets one as data-path in its node config
OUT/partition.png               heat map, clients by groups
OUT/partition.json              settings, the data set's fingerprint, counts a client and group
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednano_flwr.base.console import human_bytes, table
from fednano_flwr.base.output import new_folder, require_free, require_space
from fednano_flwr.cli.options import App, Config, NewFolder, writing
from fednano_flwr.config import RunConfig
from fednano_flwr.config.project import find_app
from fednano_flwr.preflight import run_config

if TYPE_CHECKING:
    from fednano_flwr.data.sample import Sample
    from fednano_flwr.data.shard import Shard, Shards

command = typer.Typer()
MAP, SUMMARY = "partition.png", "partition.json"
ROOM_A_QUESTION = 4096
"""Bytes of disk reckoned for a question beside its pictures and sounds."""


@command.command(
    epilog="Example: fednano partition -c dataset.path=/data/scienceqa -c dataset.alpha=0.1 "
    "--clients 10 --out shards"
)
def partition(
    out: NewFolder,
    clients: Annotated[int, typer.Option(min=1, help="How many shards to make.")] = 5,
    config: Config = None,
    map_only: Annotated[
        bool, typer.Option("--map-only", help="Write the map and the counts, and no shards.")
    ] = False,
    app: App = None,
) -> None:
    """Deal the data set to clients, each into a folder of its own, with a map of who has what.

    DIR/client-0, … hold a client's questions, pictures and sounds and nothing of the others'; give
    one to a SuperNode with --node-config 'data-path="…/client-0"'. DIR/partition.png is the map.

    Exits with 0 if DIR is written, 1 if writing failed, 2 if settings or data cannot be used and
    130 if it was interrupted; where it is not 0, nothing is left behind.
    """
    with writing(out):
        cwd = Path.cwd()
        parsed = run_config(find_app(app, cwd), config or [], clients, cwd)
        typer.echo(partition_to_folder(parsed, clients, cwd / out.expanduser(), map_only))


def partition_to_folder(config: RunConfig, clients: int, out: Path, map_only: bool) -> str:
    """Deal the data set of the run config and write it to `out`; the table to show is returned.

    Everything is written beside `out` and put in its place at the end: whatever goes wrong, `out`
    is whole or not there.

    Raises:
        ConfigError, ResourceError, DataError: the settings or the data set cannot be used.
        OutputError: `out` is there already, or the disk is too small.
        OSError: writing failed.
    """
    # Imported here: they bring NumPy, which `fednano --help` must not wait for.
    from fednano_flwr.data.defects import describe_skipped
    from fednano_flwr.data.load import check_dataset, load_questions
    from fednano_flwr.data.shard import all_shards

    out = out.absolute()
    require_free(out)
    check_dataset(config.dataset)
    shards = all_shards(load_questions(config.dataset), config.dataset, config.seed, clients)
    if not map_only:
        needed = sum(ROOM_A_QUESTION + _media_bytes(s) for part in shards for s in _all(part))
        require_space(out, needed, "writing the shards")
    with new_folder(out) as partial:
        rows = _write(partial, config, shards, map_only)
    columns = ["", "train", "test", "groups"] + ([] if map_only else ["files", "size"])
    lines = [table(f"{config.dataset.name} for {clients} clients", columns, rows)]
    questions = shards.questions
    dealt = sum(len(shard.train) + len(shard.test) for shard in shards)
    if unused := len(questions.train) + len(questions.test) - dealt:
        lines.append(f"dealt to no client: {unused} questions")
    if questions.skipped:
        lines.append(f"left out as unreadable: {describe_skipped(questions.skipped)}")
    return "\n".join([*lines, f"written to {out}"])


def _write(
    folder: Path, config: RunConfig, shards: Shards, map_only: bool
) -> list[tuple[str, ...]]:
    """Write everything into `folder`; a row a client for the table is returned."""
    from tqdm import tqdm

    from fednano_flwr.data import shard_folder
    from fednano_flwr.data.heatmap import draw_heatmap

    facts = {
        "dataset": dataclasses.asdict(config.dataset),
        "seed": config.seed,
        "num_partitions": len(shards),
        "fingerprint": _fingerprint(shards),
        "dataset_revision": shards.questions.revision,
        "skipped": dict(shards.questions.skipped),
    }
    counts = [_counts(shard) for shard in shards]
    groups = sorted({group for client in counts for group in client["train_groups"]})
    drawn = {group: [client["train_groups"].get(group, 0) for client in counts] for group in groups}
    draw_heatmap(drawn, folder / MAP, _title(config))
    summary = json.dumps({**facts, "clients": counts}, indent=1)
    (folder / SUMMARY).write_text(summary + "\n", encoding="utf-8")
    rows = []
    with tqdm(
        desc="writing shards",
        total=sum(client["train"] + client["test"] for client in counts),
        unit=" questions",
        disable=map_only or None,  # None: shown on a terminal alone
        file=sys.stderr,
    ) as bar:
        for k, (shard, client) in enumerate(zip(shards, counts, strict=True)):
            row = (f"client {k}", *map(str, (len(shard.train), len(shard.test))))
            row += (str(len(client["train_groups"])),)
            if not map_only:
                written = shard_folder.write_shard(
                    folder / f"client-{k}", shard, {**facts, "partition_id": k}, bar.update
                )
                row += (str(written["pictures"] + written["sounds"]), human_bytes(written["bytes"]))
            rows.append(row)
    return rows


def _all(shard: Shard) -> Iterator[Sample]:
    yield from shard.train
    yield from shard.test


def _media_bytes(sample: Sample) -> int:
    """Bytes of a sample's pictures and sounds; of one that is gone 0, which writing reports."""
    files = [file.path for files in sample.media.values() for file in files if file.path]
    return sum(file.stat().st_size for file in files if file.exists())


def _fingerprint(shards: Shards) -> str:
    """SHA-256 of all questions' words: the same wherever the data set lies."""
    digest = hashlib.sha256()
    for part in (shards.questions.train, shards.questions.test):
        for s in part:
            fields = (s.uid, s.question, s.group, s.subject, s.choices, ())
            words: tuple[Any, ...] = (*fields, s.answer, s.free_answer, None, s.context)
            if s.turns or s.references:
                words += (s.turns, s.references)
            words += (len(s.sounds),) if s.sounds else ()
            digest.update(repr((words, len(s.pictures))).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _counts(shard: Shard) -> dict[str, Any]:
    return {
        "train": len(shard.train),
        "test": len(shard.test),
        "train_groups": dict(sorted(Counter(shard.train.groups).items())),
        "test_groups": dict(sorted(Counter(shard.test.groups).items())),
    }


def _title(config: RunConfig) -> str:
    dataset = config.dataset
    how = dataset.partitioner
    if how == "dirichlet":
        how += f", alpha {dataset.alpha:g}"
    if dataset.partitioner_args:
        how += f", {dataset.partitioner_args}"
    return f"{dataset.name}: training questions a client and group ({how}, seed {config.seed})"
