"""A folder that a command writes is there as a whole or not at all, wherever it is to be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fednano_flwr.base.output import OutputError, new_folder, require_free


def test_a_new_folder_is_there_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "above" / "out"
    with new_folder(out) as partial:
        (partial / "file").write_text("whole")
        assert not out.exists()
    assert (out / "file").read_text() == "whole"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_current_folder_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path("."), tmp_path, tmp_path / "new" / ".."):
        with pytest.raises(OutputError, match="is the current folder"), new_folder(out):
            raise AssertionError("the work has begun")
    assert not list(tmp_path.iterdir())


def test_a_relative_path_is_beside_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with new_folder(Path("out")) as partial:
        assert partial.parent == tmp_path
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_an_empty_folder_stays_and_its_folder_is_written(
    there: bool, tmp_path: Path
) -> None:
    target, link = tmp_path / "disk" / "target", tmp_path / "link"
    target.parent.mkdir()
    if there:
        target.mkdir()
    link.symlink_to(target)
    with new_folder(link) as partial:
        (partial / "file").write_text("whole")
    assert link.is_symlink() and (target / "file").read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_folder_where_a_disk_is_mounted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path)
    with pytest.raises(OutputError, match=r"where a disk is mounted; give a new folder in it"):
        require_free(tmp_path)
    require_free(tmp_path / "new")


def test_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    for name in ("caf\udce9", "caf\udce9/new"):
        with pytest.raises(OutputError, match="UTF-8"), new_folder(tmp_path / name):
            pass
    with new_folder(tmp_path / "café"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["café"]
