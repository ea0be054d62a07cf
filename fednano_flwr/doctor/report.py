"""Findings as lines for people, or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fednano_flwr.doctor.finding import Level, Section

MARKS: dict[Level, tuple[str, str, str]] = {
    "ok": ("✓", "+", "green"),
    "warning": ("!", "!", "yellow"),
    "problem": ("✗", "x", "bold red"),
}
"""Of each level a mark, one for a screen whose encoding lacks it, and a style."""


def counts(sections: Sequence[Section]) -> Counter[Level]:
    """How many findings there are of each level."""
    return Counter(finding.level for section in sections for finding in section.findings)


def show(role: str, sections: Sequence[Section], console: Console) -> None:
    """A block a theme, a line a finding with what to do below it, then how many there are."""
    plain = not console.encoding.startswith("utf")
    for section in sections:
        if not section.findings:
            continue
        console.print(Text(section.theme, style="bold"))
        lines = Table.grid(padding=(0, 1))
        for _ in range(3):
            lines.add_column(overflow="fold")
        for finding in section.findings:
            *marks, style = MARKS[finding.level]
            mark = Text(f"  {marks[plain]}", style=style)
            lines.add_row(mark, Text(finding.level, style=style), Text(finding.what))
            if finding.do:
                lines.add_row("", "", Text(f"{'>' if plain else '→'} {finding.do}"))
        console.print(lines)
    console.print(Text(summary(role, sections), style="bold"))


def summary(role: str, sections: Sequence[Section]) -> str:
    """How many findings there are, in a line."""
    found = counts(sections)
    words = [
        f"{found[level]} {level}{'' if found[level] == 1 or level == 'ok' else 's'}"
        for level in reversed(MARKS)
        if found[level]
    ]
    return f"{role}: {', '.join(words)}"


def as_json(role: str, sections: Sequence[Section]) -> str:
    """The same for programs."""
    found = counts(sections)
    findings = [
        {"theme": section.theme, **dataclasses.asdict(finding)}
        for section in sections
        for finding in section.findings
    ]
    totals = {level: found[level] for level in MARKS}
    return json.dumps({"role": role, **totals, "findings": findings}, indent=2)
