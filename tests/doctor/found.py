"""Picking findings apart."""

from __future__ import annotations

from collections.abc import Sequence

from fednano_flwr.doctor.finding import Finding


def only(findings: Sequence[Finding], level: str) -> Finding:
    """The one finding of a level, which has to say what to do."""
    (found,) = [finding for finding in findings if finding.level == level]
    assert level == "ok" or found.do
    return found


def well(findings: Sequence[Finding]) -> bool:
    """Whether nothing is wrong: there may be no finding."""
    return all(finding.level == "ok" for finding in findings)
