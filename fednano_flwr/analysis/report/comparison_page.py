"""The page of several runs: one table, two figures, what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fednano_flwr.analysis.report import compare, facts
from fednano_flwr.analysis.report.compare import Group
from fednano_flwr.analysis.report.page import Shown, for_page, render
from fednano_flwr.analysis.statistics import Spread
from fednano_flwr.base.console import human_bytes
from fednano_flwr.runs.results import Run

COLUMNS = (
    *("group", "seeds (n)", "clients", "round", "round 0, %", "accuracy, %", "change, points"),
    *("round traffic a round", "step traffic a round", "seconds a round"),
)


def comparison_page(
    groups: Sequence[Group],
    repeated: Sequence[Run],
    shown: Shown,
    svgs: Mapping[str, str],
    hrefs: Mapping[Path, str],
) -> str:
    """The comparison as HTML.

    Args:
        repeated: runs that are in no group, since others have their config and seed.
        shown: the figures.
        svgs: those that are drawn, by name, as `svg.inline` gives them.
        hrefs: where each run's own report is, by the run's folder.
    """
    members = [one.runs for one in groups]
    differing = compare.differing(members)
    one_config = "The runs have one config and differ in the seed alone."
    return render(
        "comparison.html.j2",
        notes=compare.notes(groups, repeated),
        columns=COLUMNS,
        rows=[_row(one) for one in groups],
        figures=for_page(shown, svgs),
        differing=[(key, *map(str, values)) for key, values in differing.items()],
        labels=[one.label for one in groups],
        alike=one_config,
        runs=[_run(run, one.label, hrefs[run.path]) for one in groups for run in one.runs],
    )


def _row(one: Group) -> tuple[str, ...]:
    start, end = one.accuracy(0), one.accuracy(one.last)
    change = "–" if start.mean is None or end.mean is None else f"{end.mean - start.mean:+.1f}"
    ways = ("bytes_up", "bytes_down")
    seconds = one.a_round("seconds")
    return (
        one.label,
        f"{', '.join(map(str, one.seeds))} ({len(one.runs)})",
        str(one.clients),
        str(one.last),
        _spread(start),
        _spread(end),
        change,
        *(_bytes(one.a_round(*(f"{kind}_{way}" for way in ways))) for kind in ("round", "step")),
        "–" if seconds is None else f"{seconds:.1f}",
    )


def _spread(found: Spread) -> str:
    if found.mean is None:
        return "–"
    return f"{found.mean:.1f}" + ("" if found.stdev is None else f" ± {found.stdev:.1f}")


def _bytes(count: float | None) -> str:
    return "–" if count is None else human_bytes(count)


def _run(run: Run, label: str, href: str) -> dict[str, Any]:
    return {
        "name": run.path.resolve().name,
        "group": label,
        "seed": run.config.seed,
        "rounds": f"{facts.rounds_done(run)} of {run.config.num_server_rounds}",
        "accuracy": facts.percent(facts.whole(run)[-1]["accuracy"]),
        "href": href,
    }
