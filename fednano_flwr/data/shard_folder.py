"""One client's shard in a folder of its own, which holds nothing of the others'.

manifest.json           settings, counts, and size and SHA-256 of every other file
data/train.arrow, data/test.arrow
images/<SHA-256>.<type>, audio/<SHA-256>.<type>
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fednano_flwr.base.files import describe_file, inside
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.media import FOLDERS, with_copied_files
from fednano_flwr.data.reading import read_json_object
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.shard import Shard
from fednano_flwr.data.table import Questions, read_table, write_table

FORMAT = 5
KIND = "fednano-shard"
MANIFEST = "manifest.json"
TRAIN_FILE, TEST_FILE = "data/train.arrow", "data/test.arrow"
AGAIN = "Copy the shard again from where `fednano partition` wrote it, or write it anew."


def write_shard(
    folder: Path,
    shard: Shard,
    facts: Mapping[str, Any],
    each: Callable[[], object] = lambda: None,
) -> dict[str, int]:
    """Write a shard's tables, pictures, sounds and manifest into `folder`.

    Args:
        folder: an empty folder, or none yet.
        facts: added to the manifest.
        each: called after each question.

    Returns:
        Numbers of `train` and `test` questions, of different `pictures` and `sounds`, and of
        `bytes` in all.

    Raises:
        DataError: a picture or a sound is gone.
    """

    def copied(questions: Questions) -> Iterator[Sample]:
        for sample in questions:
            yield with_copied_files(sample, folder)
            each()

    for name in ("data", *FOLDERS.values()):
        (folder / name).mkdir(parents=True, exist_ok=True)
    train = write_table(folder / TRAIN_FILE, copied(shard.train))
    test = write_table(folder / TEST_FILE, copied(shard.test))
    pictures, sounds = (
        {  # called by their SHA-256
            f"{name}/{file.name}": {"bytes": file.stat().st_size, "sha256": file.stem}
            for file in sorted((folder / name).glob("*"))
        }
        for name in FOLDERS.values()
    )
    tables = {name: describe_file(folder / name) for name in (TRAIN_FILE, TEST_FILE)}
    counts = {"train": train, "test": test, "pictures": len(pictures), "sounds": len(sounds)}
    files = pictures | sounds | tables
    manifest = {"kind": KIND, "format": FORMAT, **facts, "counts": counts, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return counts | {"bytes": sum(file["bytes"] for file in files.values())}


def load_shard(folder: Path) -> Shard:
    """The shard in a folder; each file is compared with the manifest.

    Raises:
        DataError: the folder is not a shard, is incomplete or is damaged.
    """
    folder = folder.expanduser().absolute()
    check_files(folder, read_manifest(folder))
    return Shard(read_table(folder / TRAIN_FILE, folder), read_table(folder / TEST_FILE, folder))


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
            found = describe_file(inside(folder, name))
        except ValueError as error:
            raise DataError(f"{folder / MANIFEST}: {error}. {AGAIN}") from None
        except OSError as error:
            raise DataError(f"{folder / name} cannot be read: {error.strerror}. {AGAIN}") from error
        if found != expected:
            raise DataError(
                f"{folder / name} is damaged: it has {found}, and the manifest {expected}. {AGAIN}"
            )
