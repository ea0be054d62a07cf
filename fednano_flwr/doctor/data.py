"""A client's questions and pictures."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fednano_flwr.config import Dataset
from fednano_flwr.doctor.finding import Finding, ok, problem, warning
from fednano_flwr.preflight import validate_dataset

LOOKED_AT = 100
"""Questions, spread over the shard, whose pictures are decoded."""
AGAIN = "copy the shard again from where `fednano partition` wrote it, or write it anew"


def check_shard(folder: Path) -> list[Finding]:
    """Whether a shard is whole: each file by its size and SHA-256, a sample of pictures decoded.

    Raises:
        DataError: the folder is no shard.
    """
    from fednano_flwr.data.shard_folder import TEST_FILE, TRAIN_FILE, read_manifest
    from fednano_flwr.data.table import read_table

    folder = folder.expanduser().absolute()
    manifest = read_manifest(folder)
    findings = check_files(folder, manifest)
    if findings:
        return findings
    train, test = (read_table(folder / file, folder) for file in (TRAIN_FILE, TEST_FILE))
    if not train:
        findings.append(
            problem(f"data-path = {str(folder)!r}: the shard has no training question", AGAIN)
        )
    broken, seen = _undecodable([*_spread(train), *_spread(test)])
    if broken:
        findings.append(
            warning(
                f"data-path = {str(folder)!r}: pictures of {len(broken)} of {seen} questions that "
                f"were tried cannot be decoded ({broken[0]} for one)",
                "the run leaves such questions out, up to the share of dataset.max-skipped; "
                "repair them where the shard was made and write it anew",
            )
        )
    return findings or [
        ok(
            f"data-path = {str(folder)!r}: {len(train)} training and {len(test)} test "
            f"questions, {len(manifest['files'])} files as written"
        )
    ]


def check_files(folder: Path, manifest: Mapping[str, Any]) -> list[Finding]:
    """The files of a shard that are missing or not what was written, counted."""
    from fednano_flwr.base.files import describe_file

    missing, damaged = [], []
    for name, expected in manifest["files"].items():
        try:
            if describe_file(folder / name) != expected:
                damaged.append(name)
        except FileNotFoundError:
            missing.append(name)
        except OSError as error:
            damaged.append(f"{name} ({error.strerror})")
    count = len(manifest["files"])
    return [
        problem(
            f"data-path = {str(folder)!r}: {len(names)} of {count} files {what}, "
            f"{names[0]} for one",
            AGAIN,
        )
        for names, what in ((missing, "are missing"), (damaged, "are not what was written"))
        if names
    ]


def check_dataset(dataset: Dataset) -> list[Finding]:
    """Whether the data set is here, for a client that takes its part of it.

    Raises:
        ConfigError: its settings cannot be used, or it is not here.
    """
    from fednano_flwr.data.registry import check_revision
    from fednano_flwr.data.sources import OWN_QUESTIONS, source_names

    if dataset.name not in source_names():
        known = f"there are {', '.join(source_names())}. {OWN_QUESTIONS}"
        return [problem(f"dataset.name = {dataset.name!r}: no such", known)]
    check_revision(dataset)
    kind, _, rest = dataset.path.partition(":")
    if kind == "module":  # looking further would write it
        module = rest.partition("/")[0]
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            return [
                problem(
                    f"dataset.path = {dataset.path!r}: Python package {module} is not installed "
                    "here",
                    "install it, or set dataset.path to a folder",
                )
            ]
        return [ok(f"dataset.path = {dataset.path!r}: installed; it writes the data set once")]
    validate_dataset(dataset)
    return [ok(f"dataset.path = {dataset.path!r} looks like {dataset.name}")]


def _undecodable(samples: list[Any]) -> tuple[list[str], int]:
    """Ids of the questions with a picture that is none, and how many were tried."""
    from fednano_flwr.data.images import first_defect

    return [sample.uid for sample in samples if first_defect(sample)], len(samples)


def _spread(questions: Any) -> list[Any]:
    """Some questions, evenly spread."""
    step = max(1, -(-len(questions) // LOOKED_AT))
    return [questions[place] for place in range(0, len(questions), step)]
