"""Shards that are whole, and such as were spoilt on the way."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.data.errors import DataError
from fednano_flwr.doctor.data import check_dataset, check_shard
from tests.doctor.found import only, well


def pictures(shard: Path) -> list[Path]:
    return sorted((shard / "images").iterdir())


def test_a_whole_shard_is_counted(shard_folder: Path) -> None:
    found = only(check_shard(shard_folder), "ok")
    counts = json.loads((shard_folder / "manifest.json").read_text())["counts"]
    assert f"{counts['train']} training and {counts['test']} test questions" in found.what


def test_missing_pictures_are_counted(shard_folder: Path) -> None:
    for file in pictures(shard_folder)[:2]:
        file.unlink()
    found = only(check_shard(shard_folder), "problem")
    assert ": 2 of " in found.what and "missing" in found.what and "images/" in found.what


def test_missing_and_damaged_files_are_told_apart(shard_folder: Path) -> None:
    pictures(shard_folder)[0].unlink()
    (shard_folder / "data" / "test.arrow").write_bytes(b"?")
    missing, damaged = (finding.what for finding in check_shard(shard_folder))
    assert "1 of" in missing and "missing" in missing
    assert "1 of" in damaged and "data/test.arrow" in damaged


def test_a_picture_that_came_broken_is_a_warning(shard_folder: Path) -> None:
    manifest = json.loads((shard_folder / "manifest.json").read_text())
    file = pictures(shard_folder)[0]
    file.write_bytes(b"no picture")
    digest = hashlib.sha256(b"no picture").hexdigest()
    manifest["files"][f"images/{file.name}"] = {"bytes": 10, "sha256": digest}
    (shard_folder / "manifest.json").write_text(json.dumps(manifest))
    found = only(check_shard(shard_folder), "warning")
    assert "of 1 of" in found.what and "dataset.max-skipped" in found.do


def test_a_folder_that_is_no_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a shard"):
        check_shard(tmp_path)


def test_the_data_set_of_a_client_without_a_shard_is_looked_for(
    config: Callable[..., RunConfig], tiny_questions: Path, tmp_path: Path
) -> None:
    assert well(check_dataset(config().dataset))
    spoilt = tmp_path / "spoilt"
    shutil.copytree(tiny_questions, spoilt)
    (spoilt / "pid_splits.json").unlink()
    with pytest.raises(ConfigError, match="pid_splits"):
        check_dataset(config(dataset__path=str(spoilt)).dataset)
    unknown = config(dataset__name="vqa").dataset
    assert "iconqa, scienceqa" in only(check_dataset(unknown), "problem").do


def test_parquet_files_are_looked_at_before_anything_reads_them(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    rows = {"question": ["?"], "choices": [["a", "b"]], "answer": [0]}
    for split in ("train", "test"):
        file = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.table(rows), file)
    dataset = config(dataset__path=str(tmp_path)).dataset
    assert well(check_dataset(dataset))
    pyarrow.parquet.write_table(pyarrow.table(rows | {"image": ["a.png"]}), file)
    with pytest.raises(ConfigError, match="column 'image'"):
        check_dataset(dataset)
    file.rename(tmp_path / "data" / "test-00000-of-00002.parquet")
    with pytest.raises(ConfigError, match=r"test-00000-of-00002.*missing: 1"):
        check_dataset(dataset)


def test_a_data_set_that_a_module_writes_is_not_written_by_looking(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "cache"))
    assert well(
        check_dataset(config(dataset__path="module:fednano_demo.generate/scienceqa").dataset)
    )
    assert not (tmp_path / "cache").exists()
    pinned = config(dataset__path="module:fednano_demo.generate/scienceqa", dataset__revision="v1")
    with pytest.raises(DataError, match=r"dataset\.revision"):
        check_dataset(pinned.dataset)
    gone = config(dataset__path="module:no_such_module/x").dataset
    assert "not installed" in only(check_dataset(gone), "problem").what
