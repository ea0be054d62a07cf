"""Tables of a page, each between `<!-- NAME: KIND SUBJECT -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping


def with_tables(page: str, name: str, kinds: Mapping[str, Callable[[str], str]]) -> str:
    """The page with the tables of a study made anew.

    Args:
        name: of the study.
        kinds: what makes a table of each kind, from its subject ("" where the mark has none).
    """

    def made(found: re.Match[str]) -> str:
        head = found[0].partition("\n")[0]
        return f"{head}\n{kinds[found[1]](found[2] or '')}\n<!-- end -->"

    return mark(name).sub(made, page)


def mark(name: str) -> re.Pattern[str]:
    """What a table of the study and its marks look like."""
    return re.compile(rf"<!-- {name}: (\w+)(?: (\S+))? -->\n.*?<!-- end -->", re.DOTALL)
