"""Folders that are too small or open to others, and what a client's files lack."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fednano_flwr.cli.split import split
from fednano_flwr.config import ConfigError, Model, RunConfig
from fednano_flwr.doctor import files
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.split import write_bundle
from tests.doctor.found import only, well

Configured = Callable[..., RunConfig]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives all disks so many free bytes."""

    def give(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    return give


def test_a_disk_that_is_too_small_is_a_problem(tmp_path: Path) -> None:
    found = only(files.check_room("run.dir", tmp_path / "a" / "b", 10**18), "problem")
    assert "1000000000.0 GB" in found.what and "run.dir" in found.do
    assert well(files.check_room("run.dir", tmp_path / "a" / "b", 1))


def test_a_full_folder_for_temporary_files_is_named_and_so_is_one_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: Callable[[int], None]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert str(tmp_path) in only(files.check_temporary(), "ok").what
    monkeypatch.setenv("TMPDIR", "/nowhere")
    found = only(files.check_temporary(), "warning")
    assert "/nowhere" in found.what and str(tmp_path) in found.what
    free(1000)
    assert f"TMPDIR = {tmp_path}: 1.0 kB" in only(files.check_temporary(), "problem").what


def test_runs_need_room_for_their_checkpoints(config: Configured, tiny_model: Path) -> None:
    parts = files.parts_of(Model(str(tiny_model)))
    assert parts is not None and files.parts_of(Model("/no/such/folder")) is None
    adapters = 2 * 2 * 4 * parts.hidden_size * 4  # two sites, A and B, rank 4, float32
    assert files.run_bytes(config(run__keep_checkpoints=1), parts) == adapters * (3 + 4 * 2)
    more = files.run_bytes(config(run__keep_checkpoints=5), parts)
    assert more - files.run_bytes(config(run__keep_checkpoints=4), parts) == 4 * adapters
    assert well(files.check_run_room(config()))


def test_a_clients_folders_are_its_users_alone(config: Configured) -> None:
    asked = config()
    assert well(files.check_client_folders(asked))
    for key, path in (("state", asked.edge.state_dir), ("feature", asked.edge.feature_dir)):
        Path(path).mkdir(parents=True)
        Path(path).chmod(0o750)
        found = only(files.check_client_folders(asked), "warning")
        assert f"edge.{key}-dir" in found.what and "mode 0750" in found.what
        assert found.do == f"chmod 700 {path}"
        Path(path).chmod(0o700)
    own = files.check_client_folders(config(edge__state_dir="", edge__feature_dir=""))
    assert [finding.level for finding in own] == ["ok", "ok"]


def test_features_may_need_more_than_the_disk_has(
    config: Configured, free: Callable[[int], None]
) -> None:
    free(100 * 2**20)
    asked = config(edge__feature_disk_mb=110)
    assert "edge.feature-disk-mb = 110" in only(files.check_client_folders(asked), "warning").what
    Path(asked.edge.feature_dir).mkdir(mode=0o700)
    (Path(asked.edge.feature_dir) / "features").write_bytes(bytes(11 * 2**20))  # are in the bound
    assert well(files.check_client_folders(asked))
    assert well(files.check_client_folders(config(edge__feature_disk_mb=0)))


def test_a_picture_that_came_broken_is_a_warning(shard_folder: Path) -> None:
    assert files.check_pictures(str(shard_folder), None) == []
    manifest = json.loads((shard_folder / "manifest.json").read_text())
    file = next((shard_folder / "images").iterdir())
    file.write_bytes(b"no picture")
    digest = hashlib.sha256(b"no picture").hexdigest()
    manifest["files"][f"images/{file.name}"] = {"bytes": 10, "sha256": digest}
    (shard_folder / "manifest.json").write_text(json.dumps(manifest))
    found = only(files.check_pictures(str(shard_folder), None), "warning")
    assert "of 1 of" in found.what and "dataset.max-skipped" in found.do


def test_a_machine_that_cannot_read_its_sounds_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Configured
) -> None:
    (tmp_path / "a.wav").write_bytes(b"no sound")
    row = {"audio": "a.wav", "question": "w20", "answer": "w21"}
    (tmp_path / "own.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    asked = (str(tmp_path / "own.jsonl"), config(dataset__name="table", dataset__test_fraction=0.5))
    assert "sounds of 2 of 2" in only(files.check_pictures(*asked), "warning").what
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ConfigError, match=r"fednano-flwr\[audio\]"):
        files.check_pictures(*asked)


def test_a_bundle_has_the_tokens_of_its_own_shard(
    tiny_model: Path, tmp_path: Path, shard_folder: Path, bundle: Path
) -> None:
    def tokens(folder: Path) -> str:
        return only(
            files.check_tokens("edge.bundle", str(folder), str(shard_folder), None), "ok"
        ).what

    assert "all tokens" in tokens(bundle) and files.rows_of(str(bundle)) == 64
    split(str(tiny_model), tmp_path / "own", shard_folder, dtype=None)
    kept = files.rows_of(str(tmp_path / "own"))
    assert kept is not None and kept < 64 and f"{kept} tokens" in tokens(tmp_path / "own")
    write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "few", ids=[0, 1, 2, 3])
    with pytest.raises(ConfigError, match="lacks the embeddings"):
        tokens(tmp_path / "few")
    assert files.rows_of("/nowhere") is None
