"""README and pages name files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.test_layers import LAYERS

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FILES = {str(f.relative_to(REPOSITORY)) for f in REPOSITORY.rglob("*.py") if ".venv" not in str(f)}
LINK = re.compile(r"\]\(([\w./-]+)(?:#[\w-]+)?\)")
NAMED = re.compile(r"`([\w/]+\.py)`")


def test_the_readme_is_short() -> None:
    assert PAGES[0].stat().st_size <= 11_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    if page.name not in ("extending.md", "own-data.md"):  # whose files are to be written
        ends = tuple(f"/{name}" for name in NAMED.findall(text))
        missing += [end[1:] for end in ends if not any(f"/{f}".endswith(end) for f in FILES)]
    assert not missing


def test_the_page_of_the_architecture_has_the_floors() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`\w+` )+)\|", page.partition("| floor |")[2], re.MULTILINE)
    floors = [tuple(row.replace("`", "").split()) for row in rows]
    assert [sorted(floor) for floor in reversed(floors)] == [sorted(floor) for floor in LAYERS]
