"""What a shard's folder holds, written down so that a damaged copy is noticed.

manifest.json           settings, counts, and size and SHA-256 of every other file
data/train.arrow, data/test.arrow
images/<SHA-256>.<type>
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fednano_flwr.base.files import describe_file, inside
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import read_json_object

FORMAT = 1
KIND = "fednano-shard"
MANIFEST = "manifest.json"
TRAIN_FILE, TEST_FILE = "data/train.arrow", "data/test.arrow"
AGAIN = "Copy the shard again from where `fednano partition` wrote it, or write it anew."


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    manifest = {"kind": KIND, "format": FORMAT, **content}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """
    Raises:
        DataError: there is none, or it is not one of a shard that can be read.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise DataError(
            f"{folder} is not a shard: it has no {MANIFEST}. Give the folder of one client, such "
            "as client-0 in what `fednano partition` wrote."
        )
    manifest = read_json_object(file)
    if manifest.get("kind") != KIND:
        raise DataError(f"{file} is not the manifest of a shard. {AGAIN}")
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{file} has format {manifest.get('format')!r}, and this version of fednano reads "
            f"format {FORMAT}. Write the shard anew with `fednano partition`."
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not {TRAIN_FILE, TEST_FILE} <= files.keys():
        raise DataError(f"{file} does not list the shard's files. {AGAIN}")
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare every file with the manifest.

    Raises:
        DataError: one is missing, cannot be read, has another size or content, or lies elsewhere.
    """
    for name, expected in manifest["files"].items():
        try:
            file = inside(folder, name)
        except ValueError as error:
            raise DataError(f"{folder / MANIFEST}: {error}. {AGAIN}") from None
        if not isinstance(expected, dict):
            raise DataError(f"{folder / MANIFEST} says nothing of {name}. {AGAIN}")
        try:
            found = describe_file(file)
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}. {AGAIN}") from error
        for what in ("bytes", "sha256"):
            if found[what] != expected.get(what):
                raise DataError(
                    f"{file} is damaged: {what} {found[what]}, and the manifest has "
                    f"{expected.get(what)}. {AGAIN}"
                )
