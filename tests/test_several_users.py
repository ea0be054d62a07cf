"""A machine of several users: who may read what is written, and what of others is in the way."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.base.lock import LOCK, FolderLock
from fednano_flwr.base.output import new_folder
from fednano_flwr.base.resources import ResourceError, cache_folder, resolve
from fednano_flwr.cli.partition import partition_to_folder
from fednano_flwr.config import RunConfig
from fednano_flwr.data.load import load_questions
from fednano_flwr.exchange.wire.auth import make_token, read_token
from fednano_flwr.export.command import export
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.split import write_bundle
from tests.export.made_up import write_run

Config = Callable[..., dict[str, Any]]
NOBODY = 65534


@pytest.fixture(params=[0o077, 0o027, 0o022, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def open_to_more(folder: Path, umask: int) -> list[Path]:
    """What others may do more, or less, with than the umask says."""
    return [
        path
        for path in (folder, *folder.rglob("*"))
        if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~umask
    ]


def test_folders_that_are_written_are_for_whom_the_umask_says(tmp_path: Path, umask: int) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("")
    assert open_to_more(tmp_path / "out", umask) == []


def test_so_are_shards_bundles_and_exports(
    run_config: Config, tmp_path: Path, tiny_model: Path, umask: int
) -> None:
    config = RunConfig.parse(run_config())
    partition_to_folder(config, 2, tmp_path / "shards", False)
    write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "bundle")
    run, _ = write_run(run_config(run__name="exported", adapter__rank=4), 0.5, 0.75)
    for form in ("peft", "merged"):
        export(run, form, "best", tmp_path / form, "", None)
    for name in ("shards", "bundle", "peft", "merged"):
        assert open_to_more(tmp_path / name, umask) == [], name


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A data set that a module writes."""
    (tmp_path / "written.py").write_text(
        "def write_dataset(folder):\n    (folder / 'file').write_text('')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "module:written"


def test_a_written_data_set_is_for_whom_the_umask_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, umask: int, written: str
) -> None:
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "cache"))
    assert open_to_more(resolve("dataset.path", written), umask) == []


def test_a_token_is_its_users_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    assert make_token(tmp_path / "token") and len(read_token(tmp_path / "token")) > 16


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for name in ("FEDNANO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ResourceError, match="FEDNANO_CACHE"):
        cache_folder()


def test_a_home_that_cannot_be_written_to_is_named_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("FEDNANO_CACHE", "/dev/null/cache")
    with pytest.raises(ResourceError, match=r"/dev/null/cache.*FEDNANO_CACHE"):
        resolve("dataset.path", written)


def test_tables_in_a_shared_cache_are_for_whom_the_umask_says(
    run_config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "cache"))
    before = os.umask(0o022)
    try:
        load_questions(RunConfig.parse(run_config()).dataset)
    finally:
        os.umask(before)
    assert open_to_more(tmp_path / "cache" / "questions", 0o022) == []


def as_nobody(work: Callable[[], object]) -> str:
    """What goes wrong when another user does it; "" where it goes well."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            work()
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.wait()
    os.close(writing)
    with os.fdopen(reading) as said:
        return said.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_reads_the_tables_of_a_shared_cache(
    run_config: Config, tiny_questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        shutil.copytree(tiny_questions, folder / "data")
        (folder / "data").chmod(0o755)
        monkeypatch.setenv("FEDNANO_CACHE", str(folder / "cache"))
        dataset = RunConfig.parse(run_config(dataset__path=str(folder / "data"))).dataset
        load_questions(dataset)
        tables = sorted((folder / "cache" / "questions").iterdir())
        assert as_nobody(lambda: [*load_questions(dataset).train]) == ""
        (folder / "data" / "problems.json").touch()
        assert "FEDNANO_CACHE" in as_nobody(lambda: load_questions(dataset))
        assert sorted((folder / "cache" / "questions").iterdir()) == tables
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_lock_that_another_user_left_behind_is_in_nobodys_way() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o777)
        (folder / LOCK).write_text("{}")
        assert as_nobody(lambda: FolderLock(folder, lambda line: None).release()) == ""
    finally:
        shutil.rmtree(folder)
