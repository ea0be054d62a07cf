"""Findings as lines for people, or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fednano_flwr.doctor.finding import Level, Section

MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "warning": ("!", "yellow"),
    "problem": ("✗", "bold red"),
}
PLAIN: dict[Level, str] = {"ok": "+", "warning": "!", "problem": "x"}
"""Where the screen's encoding has none of the marks."""


def counts(sections: Sequence[Section]) -> Counter[Level]:
    """How many findings there are of each level."""
    return Counter(finding.level for section in sections for finding in section.findings)


def show(role: str, sections: Sequence[Section], console: Console) -> None:
    """A block a theme, a line a finding with what to do below it, then how many there are."""
    unicode = console.encoding.startswith("utf")
    for section in sections:
        if not section.findings:
            continue
        console.print(Text(section.theme, style="bold"))
        lines = Table.grid(padding=(0, 1))
        for _ in range(3):
            lines.add_column(overflow="fold")
        for finding in section.findings:
            mark, style = MARKS[finding.level]
            lines.add_row(
                Text(f"  {mark if unicode else PLAIN[finding.level]}", style=style),
                Text(finding.level, style=style),
                Text(finding.what),
            )
            if finding.do:
                lines.add_row("", "", Text(f"→ {finding.do}" if unicode else f"> {finding.do}"))
        console.print(lines)
    console.print(Text(summary(role, sections), style="bold"))


def summary(role: str, sections: Sequence[Section]) -> str:
    """How it stands, in a line."""
    found = counts(sections)
    if not found["problem"] and not found["warning"]:
        return f"{role}: all {found['ok']} checks are well"
    words = [
        f"{found[level]} {level}{'' if found[level] == 1 else 's'}"
        for level in ("problem", "warning")
        if found[level]
    ]
    return f"{role}: {', '.join(words)}, {found['ok']} well"


def as_json(role: str, sections: Sequence[Section]) -> str:
    """The same for programs."""
    found = counts(sections)
    return json.dumps(
        {
            "role": role,
            **{level: found[level] for level in MARKS},
            "findings": [
                {
                    "theme": section.theme,
                    "level": finding.level,
                    "what": finding.what,
                    "do": finding.do,
                }
                for section in sections
                for finding in section.findings
            ],
        },
        indent=2,
    )
