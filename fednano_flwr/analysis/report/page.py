"""A run's page: what the templates show, all of it escaped but for the figures themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fednano_flwr.analysis.report import facts
from fednano_flwr.analysis.report.canvas import Missing, Picture
from fednano_flwr.base.reasons import by_reason, first_few
from fednano_flwr.runs.results import Run
from fednano_flwr.runs.summary import lost_lines

MOST_FAILURES = 200
MOST_LETTERS = 600
"""Of a failure's reason."""
Shown = list[Picture | Missing]


def render(template: str, **values: Any) -> str:
    """A page; a name that the template asks for and does not get is an error."""
    pages = Environment(
        loader=PackageLoader("fednano_flwr", "analysis/report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    pages.filters["shown"] = _shown
    return pages.get_template(template).render(version=_version(), **values) + "\n"


def run_page(
    run: Run, sections: Mapping[str, Shown], svgs: Mapping[str, str], usual: Mapping[str, Any]
) -> str:
    """A run's report as HTML.

    Args:
        sections: its figures.
        svgs: those that are drawn, by name, as `svg.inline` gives them.
        usual: the run config's defaults.
    """
    config = facts.settings(run, usual)
    failed = _failed(run)
    last = facts.whole(run)[-1]
    top = facts.best(run)
    return render(
        "run.html.j2",
        name=run.path.resolve().name,
        tiles=_tiles(run),
        notes=_notes(run),
        headline=_headline(run),
        sections={section: for_page(shown, svgs) for section, shown in sections.items()},
        by_client=_by_client(run),
        last_round=f"round {last['round']}",
        best_round=f"best mean (round {top['round']})",
        failed=failed[:MOST_FAILURES],
        failed_more=len(failed[MOST_FAILURES:]),
        config=config,
        changed=[(s.key, _shown(s.value), _shown(s.usual)) for s in config if s.changed],
        environment=_environment(run.environment),
    )


def for_page(shown: Shown, svgs: Mapping[str, str]) -> list[dict[str, Any]]:
    """Figures as the templates take them."""
    return [
        {"name": one.name, "title": one.title, "svg": "", "reason": one.reason}
        if isinstance(one, Missing)
        else {
            "name": one.name,
            "title": one.title,
            "words": one.words,
            "note": one.note,
            "svg": Markup(svgs[one.name]),  # matplotlib has escaped its text
        }
        for one in shown
    ]


def _tiles(run: Run) -> list[tuple[str, str]]:
    """The three numbers that a reader looks for first."""
    first, last, top = facts.frozen(run), facts.whole(run)[-1], facts.best(run)
    by = "the most" if facts.never_whole(run) else "all"
    return [
        ("round 0 (frozen model)", facts.percent(first["accuracy"] if first else None)),
        (f"last scored by {by} (round {last['round']})", facts.percent(last["accuracy"])),
        (f"best (round {top['round']})", facts.percent(top["accuracy"])),
    ]


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
    partial = len(run.rounds) - len(facts.whole(run))
    if partial:
        notes.append(
            f"Not all clients scored {partial} of the rounds; their means are of other questions "
            "and are left out of mean, last and best."
        )
    if facts.frozen(run) is None:
        notes.append(
            "Round 0 is one of these rounds: there is no mean of the frozen model to compare with. "
            "Changes of single clients are in Accuracy by client."
        )
    if lacking := facts.never_whole(run):
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


def _headline(run: Run) -> list[tuple[str, str]]:
    config, model = run.config, run.environment.get("model") or {}
    clients = len(facts.clients(run))
    done, asked = facts.rounds_done(run), config.num_server_rounds
    commit = run.environment.get("dataset_revision")
    place = f"{config.dataset.path}, revision {commit[:12]}" if commit else config.dataset.path
    dataset = f"{config.dataset.name} ({place}), {config.dataset.partitioner}"
    if config.dataset.partitioner == "dirichlet":
        dataset += f" α = {config.dataset.alpha:g}"
    return [
        ("model", str(model.get("name") or config.model.name)),
        ("data set", dataset),
        ("strategy", config.strategy.name),
        ("clients", str(clients)),
        ("rounds", f"{done} of {asked}" + ("" if facts.complete(run) else ", not complete")),
        ("seed", str(config.seed)),
        ("began", str(run.environment.get("started", "not known"))),
        ("failures", str(len(facts.failures(run)) or "none")),
    ]


def _by_client(run: Run) -> list[tuple[str, ...]]:
    """A row a client, and the mean."""
    first, last, top = run.rounds[0], facts.whole(run)[-1], facts.best(run)
    frozen = facts.frozen(run)
    asked = facts.questions(run, "test")
    rows = [
        (
            f"client {client}",
            str(asked.get(client, "–")),
            *_from_to(*(one["accuracy_per_client"].get(client) for one in (first, last))),
            facts.percent(top["accuracy_per_client"].get(client)),
        )
        for client in facts.clients(run)
    ]
    mean = _from_to(frozen["accuracy"] if frozen else None, last["accuracy"])
    return [*rows, ("mean", str(sum(asked.values())), *mean, facts.percent(top["accuracy"]))]


def _from_to(before: float | None, after: float | None) -> tuple[str, str, str]:
    change = "–" if before is None or after is None else f"{100 * (after - before):+.1f}"
    return facts.percent(before), facts.percent(after), change


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
