"""What a run's records say to people: a line a round, and the tables at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fednano_flwr.base.console import human_bytes, table
from fednano_flwr.base.reasons import by_reason, first_few
from fednano_flwr.runs.comparable import lost_clients, scorers


def lost_lines(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each reason for which clients took no part in a run; none where all did."""
    return [
        f"{first_few(who)} took no part in {what}: {reason}"
        for what, failures in lost_clients(rounds).items()
        for who, reason in by_reason(failures.items())
    ]


def round_line(record: Mapping[str, Any]) -> str:
    """One line a round, from a line of metrics.jsonl."""
    loss = "      –" if record["train_loss"] is None else f"{record['train_loss']:7.3f}"
    return (
        f"round {record['round']:>2}  loss {loss}  "
        f"accuracy {_percent(record['accuracy'])} {_spread(record['accuracy_per_client'])}  "
        f"round ↑{human_bytes(record['round_bytes_up'])} "
        f"↓{human_bytes(record['round_bytes_down'])}  "
        f"step ↑{human_bytes(record['step_bytes_up'])} "
        f"↓{human_bytes(record['step_bytes_down'])}  {record['seconds']:.1f} s"
        f"{_spent(record.get('merge', {}))}"
    )


def _spent(notes: Mapping[str, float]) -> str:
    """The privacy budget that all rounds so far have spent; nothing without such a budget."""
    return f"  ε {notes['epsilon']:.2f}" if "epsilon" in notes else ""


def traffic_line(records: Sequence[Mapping[str, Any]]) -> str:
    """What all rounds together sent, the two kinds of traffic apart."""

    def both(kind: str) -> str:
        up, down = (
            sum(record[f"{kind}_bytes_{way}"] for record in records) for way in ("up", "down")
        )
        return f"↑{human_bytes(up)} ↓{human_bytes(down)}"

    return f"traffic of all rounds: round (adapters) {both('round')}, step (LLM) {both('step')}"


def closing_table(
    first: Mapping[str, Any], last: Mapping[str, Any], best: Mapping[str, Any]
) -> str:
    """Accuracy of each client and on average: round 0, the last round, the best round."""
    rows = []
    for partition in last["accuracy_per_client"]:
        before = first["accuracy_per_client"].get(partition)
        after = last["accuracy_per_client"][partition]
        rows.append(
            (
                f"client {partition}",
                str(last["test_questions_per_client"][partition]),
                *_change(before, after),
                _percent(best["accuracy_per_client"].get(partition)),
            )
        )
    rows.append(
        (
            "mean",
            str(sum(last["test_questions_per_client"].values())),
            *_change(first["accuracy"], last["accuracy"], scorers(first) == scorers(last)),
            _percent(best["accuracy"]),
        )
    )
    columns = (
        "accuracy on its own test questions",
        "questions",
        "round 0 (frozen)",
        f"round {last['round']}",
        "change",
        f"best (round {best['round']})",
    )
    return table("Accuracy against the frozen model", columns, rows)


def kinds_table(first: Mapping[str, Any], last: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """Accuracy with and without pictures and by subject: round 0, the last round, the best one."""
    rows = []
    alike = scorers(first) == scorers(last)
    for kind, now in last["accuracy_by"].items():
        before, top = (record["accuracy_by"].get(kind, {}) for record in (first, best))
        rows.append(
            (
                kind,
                str(now["questions"]),
                *_change(before.get("accuracy"), now["accuracy"], alike),
                _percent(top.get("accuracy")),
            )
        )
    columns = (
        "accuracy on all clients' test questions",
        "questions",
        "round 0 (frozen)",
        f"round {last['round']}",
        "change",
        f"best (round {best['round']})",
    )
    return table("Accuracy by kind of question", columns, rows)


def _change(before: float | None, after: float | None, alike: bool = True) -> tuple[str, str, str]:
    """Both in percent, and the difference where they are of the same questions."""
    change = "–"
    if alike and before is not None and after is not None:
        change = f"{100 * (after - before):+.1f}"
    return _percent(before), _percent(after), change


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _spread(per_client: Mapping[str, float | None]) -> str:
    values = [value for value in per_client.values() if value is not None]
    return f"({100 * min(values):.0f}–{100 * max(values):.0f})" if values else ""
