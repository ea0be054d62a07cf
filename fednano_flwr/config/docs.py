"""python -m fednano_flwr.config.docs FILE: write the tables of docs/config.md anew.

A table stands between `<!-- keys: PREFIX ... -->` and `<!-- end -->`; an empty list is of the keys
without a section.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fednano_flwr.config import declared
from fednano_flwr.config.project import PACKAGE, RunConfig, find_app

TABLE = re.compile(r"<!-- keys:(.*?)-->\n.*?<!-- end -->", re.DOTALL)
HEAD = "| key | type | default | meaning |\n|---|---|---|---|\n"


def with_tables(page: str) -> str:
    """The page with each of its tables as the declarations and pyproject.toml say."""
    shown = _literals((find_app(None, PACKAGE.parent) / "pyproject.toml").read_text("utf-8"))

    def table(found: re.Match[str]) -> str:
        rows = []
        for name, kind, key in declared(RunConfig):
            if name.rpartition(".")[0] in (found[1].split() or [""]):
                accepted = str(key.range) if kind is not bool else ""
                accepted = "" if accepted in ("", "at least 0") else f"; {accepted}"
                row = f"| `{name}` | {kind.__name__} | `{shown[name]}` | {key.meaning}{accepted} |"
                rows.append(row)
        return f"<!-- keys:{found[1]}-->\n{HEAD}" + "\n".join(rows) + "\n<!-- end -->"

    return TABLE.sub(table, page)


def _literals(toml: str) -> dict[str, str]:
    """Defaults by key, as the file writes them."""
    section, found = None, {}
    for line in toml.splitlines():
        if line.startswith("["):
            inside = line.startswith("[tool.flwr.app.config")
            section = line.strip("[]").removeprefix("tool.flwr.app.config") if inside else None
        elif section is not None and (match := re.fullmatch(r"([\w-]+) = (.*)", line)):
            found[f"{section}.{match[1]}".lstrip(".")] = match[2]
    return found


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(with_tables(file.read_text("utf-8")), "utf-8")
