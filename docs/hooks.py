"""Makes a site of the pages: the README is its first one, and links to code become its name.

mkdocs build --strict
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the README as the first page."""
    text = _without_front_matter((ROOT / "README.md").read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=_moved(text)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point what a page says of the README to the first page; name files that are no pages."""
    return LINK.sub(_within_the_site, markdown.replace("](../README.md", "](index.md"))


def _without_front_matter(text: str) -> str:
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)


def _moved(readme: str) -> str:
    """The README's links as seen from within docs/; what lies beside docs/ is reached by ../."""

    def move(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        if not re.match(r"[a-z]+:|#", target):
            inside = target.startswith("docs/")
            target = target.removeprefix("docs/") if inside else f"../{target}"
        return f"{image}[{text}]({target})"

    return LINK.sub(move, readme)


def _within_the_site(link: re.Match[str]) -> str:
    _, text, target = link.groups()
    if not target.startswith("../"):
        return link[0]
    path = target.removeprefix("../")
    return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"
