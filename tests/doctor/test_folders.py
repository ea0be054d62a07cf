"""Folders that cannot be written to, are too small, or are open to others."""

from __future__ import annotations

import tempfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from fednano_flwr.base import output
from fednano_flwr.config import RunConfig
from fednano_flwr.doctor import folders
from fednano_flwr.doctor.folders import (
    check_client_folders,
    check_folder,
    check_run_dir,
    check_temporary,
    run_bytes,
)
from fednano_flwr.doctor.model import parts_of
from tests.doctor.found import only, well

Configured = Callable[..., RunConfig]
Usage = namedtuple("Usage", "total used free")


def test_a_folder_that_is_not_there_yet_is_well_and_is_not_made(tmp_path: Path) -> None:
    assert well(check_folder("run.dir", tmp_path / "a" / "b", 1))
    assert well(check_folder("run.dir", tmp_path, 1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot")
def test_a_folder_that_cannot_be_written_to_is_a_problem() -> None:
    found = only(check_folder("run.dir", Path("/proc/runs"), 1), "problem")
    assert "run.dir = '/proc/runs': /proc cannot be written to" in found.what


def test_a_file_in_the_place_of_a_folder_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    assert "is a file" in only(check_folder("run.dir", tmp_path / "runs", 1), "problem").what
    assert "is a file" in only(check_folder("run.dir", tmp_path / "runs" / "x", 1), "problem").what


def test_a_disk_that_is_too_small_is_a_problem(tmp_path: Path) -> None:
    found = only(check_folder("run.dir", tmp_path, 10**18), "problem")
    assert "1000000000.0 GB" in found.what and "make room" in found.do


def test_a_full_folder_for_temporary_files_is_named_and_so_is_one_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert str(tmp_path) in only(check_temporary(), "ok").what
    monkeypatch.setenv("TMPDIR", "/nowhere")
    found = only(check_temporary(), "warning")
    assert "/nowhere" in found.what and str(tmp_path) in found.what
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: Usage(10**6, 10**6, 1000))
    found = only(check_temporary(), "problem")
    assert f"TMPDIR = {tmp_path}: 1.0 kB" in found.what and "set TMPDIR" in found.do


def test_runs_need_room_for_their_checkpoints(config: Configured, tiny_model: Path) -> None:
    parts = parts_of(str(tiny_model))
    assert parts is not None
    adapters = 2 * 2 * 4 * parts.hidden_size * 4  # two sites, A and B, rank 4, float32
    assert run_bytes(config(run__keep_checkpoints=1), parts) == adapters * (3 + 4 * 2)
    more = run_bytes(config(run__keep_checkpoints=5), parts)
    assert more - run_bytes(config(run__keep_checkpoints=4), parts) == 4 * adapters
    assert well(check_run_dir(config(), parts)) and well(check_run_dir(config(), None))


def test_a_clients_folders_are_its_users_alone(config: Configured) -> None:
    asked = config()
    assert well(check_client_folders(asked))
    for key, path in (("state", asked.edge.state_dir), ("feature", asked.edge.feature_dir)):
        Path(path).mkdir(parents=True, mode=0o700)
        Path(path).chmod(0o750)
        found = only(check_client_folders(asked), "warning")
        assert f"edge.{key}-dir" in found.what and "mode 0750" in found.what
        assert found.do == f"chmod 700 {path}"
        Path(path).chmod(0o700)


def test_features_may_need_more_than_the_disk_has(
    config: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 100 * 2**20
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: Usage(10 * free, 9 * free, free))
    asked = config(edge__feature_disk_mb=110)
    assert "edge.feature-disk-mb = 110" in only(check_client_folders(asked), "warning").what
    Path(asked.edge.feature_dir).mkdir(mode=0o700)
    (Path(asked.edge.feature_dir) / "features").write_bytes(bytes(11 * 2**20))  # are in the bound
    assert well(check_client_folders(asked))
    assert well(check_client_folders(config(edge__feature_disk_mb=0)))
