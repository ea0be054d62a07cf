"""Folders that are downloaded, copied or handed over, with one file damaged."""

from __future__ import annotations

from tests.fuzz import files
from tests.fuzz.running import Tally, no_leak


def test_a_damaged_file_ends_in_a_documented_error(folders: dict[str, files.Folder]) -> None:
    tally = Tally()
    with no_leak():
        files.attack(tally, folders, 10, None)
    for kind, ends in tally.ends.items():
        assert ends.total() - ends["read"] > 0, kind
