"""A run's results as text: a line for each round, and the tables at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fednano_flwr.base.console import human_bytes, table
from fednano_flwr.base.reasons import by_reason, first_few
from fednano_flwr.runs.comparable import Record, lost_clients, scorers

TEST_LOSS = "test loss, round 0 → last"


def lost_lines(rounds: Sequence[Record]) -> list[str]:
    """A line for each reason for which clients took no part in a run; none where all did."""
    return [
        f"{first_few(who)} took no part in {what}: {reason}"
        for what, failures in lost_clients(rounds).items()
        for who, reason in by_reason(failures.items())
    ]


def round_line(record: Record, label: str) -> str:
    """One line a round, from a line of metrics.jsonl.

    Args:
        label: of the run's metric, here and below (`metric_label`).
    """
    return (
        f"round {record['round']:>2}  loss {nats(record['train_loss']):>7}  "
        f"test loss {nats(record.get('test_loss')):>7}  "
        f"{label} {percent(record['accuracy'])} {_spread(record['accuracy_per_client'])}  "
        f"round ↑{human_bytes(record['round_bytes_up'])} "
        f"↓{human_bytes(record['round_bytes_down'])}  "
        f"step ↑{human_bytes(record['step_bytes_up'])} "
        f"↓{human_bytes(record['step_bytes_down'])}  {record['seconds']:.1f} s"
        f"{_spent(record.get('merge', {}))}"
    )


def _spent(notes: Mapping[str, float]) -> str:
    """The privacy budget that all rounds so far have spent; nothing without such a budget."""
    return f"  ε {notes['epsilon']:.2f}" if "epsilon" in notes else ""


def traffic_line(records: Sequence[Record]) -> str:
    """What all rounds together sent, the two kinds of traffic apart."""

    def both(kind: str) -> str:
        up, down = (
            sum(record[f"{kind}_bytes_{way}"] for record in records) for way in ("up", "down")
        )
        return f"↑{human_bytes(up)} ↓{human_bytes(down)}"

    return f"traffic of all rounds: round (adapters) {both('round')}, step (LLM) {both('step')}"


def closing_table(first: Record, last: Record, best: Record, label: str) -> str:
    """Score and loss of each client and on average: round 0, the last round, the best round."""
    asked, key, losses = (
        last["test_questions_per_client"],
        "accuracy_per_client",
        [record.get("test_loss_per_client", {}) for record in (first, last)],
    )
    rows = [
        (
            f"client {client}",
            str(asked[client]),
            *before_and_after(first[key].get(client), accuracy),
            percent(best[key].get(client)),
            change_in_loss(*(of.get(client) for of in losses)),
        )
        for client, accuracy in last[key].items()
    ]
    alike = scorers(first) == scorers(last)
    mean = before_and_after(first["accuracy"], last["accuracy"], alike)
    mean_loss = change_in_loss(first.get("test_loss"), last.get("test_loss"))
    rows.append(("mean", str(sum(asked.values())), *mean, percent(best["accuracy"]), mean_loss))
    columns = _columns(f"{label} on its own test questions", last, best)
    return table(f"{titled(label)} against the frozen model", [*columns, TEST_LOSS], rows)


def kinds_table(first: Record, last: Record, best: Record, label: str) -> str:
    """Score with and without pictures and by subject: round 0, the last round, the best one."""
    rows = []
    alike = scorers(first) == scorers(last)
    for kind, now in last["accuracy_by"].items():
        before, top = (record["accuracy_by"].get(kind, {}) for record in (first, best))
        both = before_and_after(before.get("accuracy"), now["accuracy"], alike)
        rows.append((kind, str(now["questions"]), *both, percent(top.get("accuracy"))))
    columns = _columns(f"{label} on all clients' test questions", last, best)
    return table(f"{titled(label)} by kind of question", columns, rows)


def titled(label: str) -> str:
    """A metric's label as a title begins: `VQA accuracy`, `Token F1`."""
    return label[:1].upper() + label[1:]


def nats(loss: float | None) -> str:
    """`0.4231` → `0.423`; a dash for None."""
    return "–" if loss is None else f"{loss:.3f}"


def change_in_loss(before: float | None, after: float | None) -> str:
    """`1.204 → 0.423`."""
    return f"{nats(before)} → {nats(after)}"


def _columns(title: str, last: Record, best: Record) -> tuple[str, ...]:
    rounds = f"round {last['round']}", "change", f"best (round {best['round']})"
    return title, "questions", "round 0 (frozen)", *rounds


def before_and_after(
    before: float | None, after: float | None, alike: bool = True
) -> tuple[str, str, str]:
    """Both in percent, and the difference in points where they are of the same questions."""
    change = "–"
    if alike and before is not None and after is not None:
        change = f"{100 * (after - before):+.1f}"
    return percent(before), percent(after), change


def percent(share: float | None) -> str:
    """`0.423` → `42.3 %`; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"


def _spread(per_client: Mapping[str, float | None]) -> str:
    values = [value for value in per_client.values() if value is not None]
    return f"({100 * min(values):.0f}–{100 * max(values):.0f})" if values else ""
