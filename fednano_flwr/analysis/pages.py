"""The pages of one run and of several: what the templates show, escaped but for the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fednano_flwr.analysis import facts, groups
from fednano_flwr.analysis.groups import Group
from fednano_flwr.analysis.picture import Picture
from fednano_flwr.analysis.statistics import spread
from fednano_flwr.base.console import human_bytes
from fednano_flwr.base.reasons import by_reason, first_few
from fednano_flwr.data.metrics import metric_label
from fednano_flwr.runs import comparable as rounds
from fednano_flwr.runs.comparable import Record
from fednano_flwr.runs.results import Run
from fednano_flwr.runs.summary import (
    before_and_after,
    change_in_loss,
    lost_lines,
    nats,
    percent,
    titled,
)

MOST_FAILURES = 200
MOST_LETTERS = 600
"""Of a failure's reason."""


def compared_columns(label: str) -> list[str]:
    """Columns of the comparison's table; `label` is the metric's."""
    return [
        *("group", "seeds (n)", "clients", "round", "round 0, %", f"{label}, %", "change, points"),
        *("test loss", "round traffic a round", "step traffic a round", "seconds a round"),
    ]


def run_page(
    run: Run, sections: Mapping[str, Sequence[Picture]], defaults: Mapping[str, Any]
) -> str:
    """A run's report as HTML.

    Args:
        sections: its figures.
        defaults: those of the run config.
    """
    failed, config = _failed(run), run.config.flat()
    frozen, last, best = facts.frozen(run), facts.comparable(run)[-1], rounds.best(run.rounds)
    return _render(
        "run.html.j2",
        run=run,
        label=metric_label(run.config),
        notes=_notes(run),
        model=(run.environment.get("model") or {}).get("name") or run.config.model.name,
        dataset=dataset_of(run),
        frozen=frozen["accuracy"] if frozen else None,
        last=last,
        best=best,
        by_client=_by_client(run, frozen, last, best),
        sections=sections,
        failed=failed[:MOST_FAILURES],
        failed_more=len(failed[MOST_FAILURES:]),
        config=config,
        changed=[
            (key, _shown(value), _shown(defaults.get(key)))
            for key, value in config.items()
            if value != defaults.get(key)
        ],
        defaults=defaults,
        environment=_environment(run.environment),
    )


def comparison_page(
    compared: Sequence[Group],
    repeated: Sequence[Run],
    figures: Sequence[Picture],
    hrefs: Mapping[Path, str],
) -> str:
    """The comparison of several runs as HTML.

    Args:
        repeated: runs that are in no group, since others have their config and seed.
        hrefs: where each run's own report is, by the run's folder.
    """
    differing = groups.differing([one.runs[0] for one in compared])
    return _render(
        "comparison.html.j2",
        notes=groups.notes(compared, repeated),
        label=compared[0].metric,
        columns=compared_columns(compared[0].metric),
        rows=[compared_row(one) for one in compared],
        figures=figures,
        differing=[(key, *map(str, values)) for key, values in differing.items()],
        labels=[one.label for one in compared],
        number=sum(len(one.runs) for one in compared),
        groups=compared,
        hrefs=hrefs,
    )


def _render(template: str, **values: Any) -> str:
    """A page; a name that the template asks for and does not get is an error."""
    pages = Environment(
        loader=PackageLoader("fednano_flwr", "analysis/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    pages.filters |= {"shown": _shown, "percent": percent, "nats": nats, "titled": titled}
    pages.globals["facts"] = facts
    return pages.get_template(template).render(version=_version(), **values) + "\n"


def _notes(run: Run) -> list[str]:
    """What a reader must not miss."""
    notes = [f"{line[:MOST_LETTERS]}." for line in lost_lines(run.rounds)]
    notes += run.notes
    asked, done = run.config.num_server_rounds, facts.rounds_done(run)
    if not facts.complete(run):
        notes.append(f"The run is not complete: {done} of {asked} rounds are there.")
    if not done:
        notes.append("Only round 0 is there, the frozen model: nothing has been trained.")
    if failed := facts.failures(run):
        rounds = len({failure.round for failure in failed})
        times = "once" if len(failed) == 1 else f"{len(failed)} times"
        notes.append(f"Clients failed {times}, in {rounds} of the rounds: see Failures.")
    if partial := len(run.rounds) - len(facts.comparable(run)):
        notes.append(
            f"Not all clients scored {partial} of the rounds; their means are of other questions "
            "and are left out of mean, last and best."
        )
    if facts.frozen(run) is None:
        notes.append(
            "Round 0 is one of these rounds: there is no mean of the frozen model to compare with. "
            f"Changes of single clients are in {titled(metric_label(run.config))} by client."
        )
    if lacking := facts.uncompared_clients(run):
        notes.append(
            "No round was scored by all clients: means are of the largest set that scored one, "
            f"without client {', '.join(lacking)}."
        )
    return notes


def _failed(run: Run) -> list[tuple[str, ...]]:
    """A row a reason: rounds, phase, clients, reason."""
    rows: list[tuple[str, ...]] = []
    failures = ((failure, f"{failure.phase}: {failure.reason}") for failure in facts.failures(run))
    for alike, _ in by_reason(failures):
        rounds = list(dict.fromkeys(str(failure.round) for failure in alike))
        who = list(dict.fromkeys(failure.who for failure in alike))
        reason = alike[0].reason[:MOST_LETTERS]
        rows.append((first_few(rounds), alike[0].phase, first_few(who), reason))
    return rows


def dataset_of(run: Run) -> str:
    """A run's data set, where it lies and how it is dealt."""
    dataset, commit = run.config.dataset, run.environment.get("dataset_revision")
    place = f"{dataset.path}, revision {commit[:12]}" if commit else dataset.path
    alpha = f" α = {dataset.alpha:g}" if dataset.partitioner == "dirichlet" else ""
    return f"{dataset.name} ({place}), {dataset.partitioner}{alpha}"


def _by_client(
    run: Run, frozen: Record | None, last: Record, best: Record
) -> list[tuple[str, ...]]:
    """A row a client, and the mean."""

    def row(name: str, number: str, losses: str, *shares: float | None) -> tuple[str, ...]:
        before, after, top = shares
        return name, number, *before_and_after(before, after), percent(top), losses

    asked, key, loss = facts.questions(run, "test"), "accuracy_per_client", "test_loss_per_client"
    rows = [
        row(
            f"client {client}",
            str(asked.get(client, "–")),
            change_in_loss(*(one.get(loss, {}).get(client) for one in (run.rounds[0], last))),
            *(record[key].get(client) for record in (run.rounds[0], last, best)),
        )
        for client in facts.clients(run)
    ]
    start = frozen["accuracy"] if frozen else None
    mean_loss = change_in_loss((frozen or {}).get("test_loss"), last.get("test_loss"))
    means = start, last["accuracy"], best["accuracy"]
    return [*rows, row("mean", str(sum(asked.values())), mean_loss, *means)]


def compared_row(one: Group) -> tuple[str, ...]:
    """A group's cells under `compared_columns`."""
    start, end = spread(one.values(0)), spread(one.values(one.last))
    change = "–" if start.mean is None or end.mean is None else f"{end.mean - start.mean:+.1f}"
    traffic = (one.a_round(f"{kind}_bytes_up", f"{kind}_bytes_down") for kind in ("round", "step"))
    seconds = one.a_round("seconds")
    return (
        one.label,
        f"{', '.join(map(str, one.seeds))} ({len(one.runs)})",
        str(len(facts.clients(one.runs[0]))),
        str(one.last),
        str(start),
        str(end),
        change,
        nats(spread(one.losses()).mean),
        *("–" if count is None else human_bytes(count) for count in traffic),
        "–" if seconds is None else f"{seconds:.1f}",
    )


def _environment(found: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as `outer: inner`; of several starts each with its number."""
    rows: list[tuple[str, str]] = []
    for key, value in found.items():
        if isinstance(value, dict):
            rows += _environment(value, f"{prefix}{key}: ")
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            for number, one in enumerate(value, start=1):
                rows += _environment(one, f"{prefix}{key} {number}: ")
        else:
            rows.append((f"{prefix}{key}", _shown(value)))
    return rows


def _shown(value: Any) -> str:
    """As in pyproject.toml, without a text's quotes; what is empty is said to be."""
    if value is None or value == "" or value == []:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _version() -> str:
    try:
        return metadata.version("fednano-flwr")
    except metadata.PackageNotFoundError:
        return "(not installed)"
