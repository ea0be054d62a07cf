"""Picking findings apart."""

from __future__ import annotations

from collections.abc import Sequence

from fednano_flwr.doctor.finding import Finding


def levels(findings: Sequence[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def only(findings: Sequence[Finding], level: str) -> Finding:
    """The one finding of a level, which is to say what to do."""
    (found,) = [finding for finding in findings if finding.level == level]
    assert level == "ok" or found.do
    return found


def well(findings: Sequence[Finding]) -> bool:
    return bool(findings) and set(levels(findings)) == {"ok"}
