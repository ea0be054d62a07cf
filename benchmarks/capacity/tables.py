"""Tables as docs/scale.md has them, printed; what they show is returned for the JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.capacity import model as paper
from benchmarks.report import table

REPLICAS = (1, 8, 100)
FEDERATIONS: dict[int, tuple[int, ...]] = {  # clients: how many are sampled a round
    100: (100, 10),
    10_000: (10_000, 1_000, 100),
    1_000_000: (1_000_000, 10_000, 100),
}


def with_replicas(setup: paper.Setup, replicas: int) -> paper.Setup:
    return replace(setup, host=replace(setup.host, replicas=replicas))


def show_carried(made: paper.Setup) -> list[dict[str, Any]]:
    """How many clients the host carries, by exchange and replicas."""
    rows: list[dict[str, Any]] = []
    lines = []
    for exchange in ("embeddings", "lowrank"):
        for replicas in REPLICAS:
            with_exchange = replace(with_replicas(made, replicas), exchange=exchange)
            found = paper.carried(with_exchange)
            rows.append({"exchange": exchange, "replicas": replicas, **vars(found)})
            counts = f"{found.at_once:,.0f}", f"{found.an_hour:,.0f}"
            lines.append((exchange, replicas, *counts, found.limit))
    headings = ["exchange", "replicas", "clients at once", "client rounds an hour", "limit"]
    print(f"\n{table(headings, lines)}")
    return rows


def show_rounds(made: paper.Setup, memory: float, store: float) -> list[dict[str, Any]]:
    """What a round costs, by clients, how many of them are sampled, and replicas.

    Pictures were encoded in an earlier round; where the store of the host does not hold all
    clients' features, they are sent again.

    Args:
        memory: bytes of the server that merges.
        store: bytes of features that the host keeps.
    """
    made = replace(made, client=replace(made.client, encode_seconds=0.0))
    rows: list[dict[str, Any]] = []
    lines = []
    for clients, samplings in FEDERATIONS.items():
        kept = clients * paper.feature_bytes(made) <= store
        features = "kept" if kept else "sent again"
        for sampled in samplings:
            costs = {
                n: paper.round_cost(with_replicas(made, n), sampled, sampled, not kept, not kept)
                for n in REPLICAS
            }
            everyone = paper.round_cost(
                with_replicas(made, 8), sampled, clients, not kept, not kept
            )
            cost = costs[REPLICAS[0]]
            shown = (*costs.values(), everyone)
            too_much = " (more than there is)" if cost.merge_bytes > memory else ""
            lines.append(
                (
                    f"{clients:,}",
                    f"{sampled:,}",
                    features,
                    *(f"{duration(c.seconds)}: {c.longest.bottleneck}" for c in shown),
                    f"{size(cost.step.both)}, {size(cost.round.both)}",
                    f"{size(cost.merge_bytes)}{too_much}",
                )
            )
            rows.append(
                {
                    "clients": clients,
                    "sampled": sampled,
                    "features": features,
                    "replicas": {n: as_dict(c) for n, c in costs.items()},
                    "all_evaluated_8_replicas": as_dict(everyone),
                }
            )
    headings = ["clients", "sampled", "features"]
    headings += [f"{n} replica{'s' * (n > 1)}" for n in REPLICAS]
    headings += ["all evaluated, 8 replicas", "step, round bytes at the server", "merging memory"]
    print(f"\n{table(headings, lines)}")
    idle = ", ".join(f"{n:,}: {paper.idle_requests(n):,.0f}" for n in FEDERATIONS)
    print(f"\nRequests a second of SuperNodes that wait for work, {idle}.")
    return rows


def show_client(made: paper.Setup, store: float) -> dict[str, Any]:
    """One client's bytes and seconds in a round: its first, one with features sent again, later.

    Args:
        store: bytes of features that the host keeps.
    """
    known = replace(made, client=replace(made.client, encode_seconds=0.0))
    rows = {}
    lines = []
    cases = (("first", made, True), ("features sent again", known, True), ("later", known, False))
    for name, setup, sent in cases:
        cost = paper.round_cost(setup, 1, 1, sent, sent)
        rows[name] = {"up": cost.a_client.up, "down": cost.a_client.down, "seconds": cost.seconds}
        sent_and_got = size(cost.a_client.up), size(cost.a_client.down)
        lines.append((name, *sent_and_got, duration(cost.seconds)))
    headings = ["one client, alone at the host", "sends", "gets", "its training and evaluation"]
    print(f"\n{table(headings, lines)}")
    if each := paper.feature_bytes(made):
        held = int(store / each)
        print(
            f"\nFeatures of a client: {size(each)}; {size(store)} hold those of {held:,} clients."
        )
    return rows


def as_dict(cost: paper.RoundCost) -> dict[str, Any]:
    return {
        "seconds": cost.seconds,
        "bottleneck": cost.longest.bottleneck,
        "phases": {phase.name: dict(phase.parts) for phase in cost.phases},
        "step_bytes": vars(cost.step),
        "round_bytes": vars(cost.round),
        "merge_bytes": cost.merge_bytes,
    }


def duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def size(number: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= length:
            return f"{number / length:.3g} {unit}"
    return f"{number:.0f} B"


def show_measured(measured: Mapping[str, Any]) -> None:
    """This machine's host, and how far the formulas of bytes are from what was counted."""
    rows = [
        (
            f"batches of {row['batch']}",
            f"{row['train_tokens_per_second']:,.0f}",
            f"{row['score_tokens_per_second']:,.0f}",
        )
        for row in measured["host"]
    ]
    headings = ["this machine's host (the demo's model)", "tokens a second, training", "scoring"]
    print(table(headings, rows))
    worst = max(measured["bytes"], key=lambda row: abs(row["error"]))
    print(
        f"\nFormulas of bytes against {len(measured['bytes'])} counted steps: off by at most "
        f"{100 * abs(worst['error']):.2f} % ({worst['exchange']}, d = {worst['hidden_size']}).\n"
    )


def show_check(result: Mapping[str, Any]) -> None:
    """Predicted and measured, and the figures that docs/scale.md says in words."""
    many, few = result["clients"], result["calibrated_on"]
    print(
        f"{many} simulated clients, predicted from runs of {few} ({', '.join(result['changes'])})\n"
    )
    lines = []
    for row in result["rows"]:
        error = f"{100 * row['error']:+.1f} %"
        if row["what"] == "seconds":
            predicted = f"{duration(row['predicted'])}, {duration(row['predicted_after'])}"
            error += f", {100 * row['error_after']:+.1f} %"
            measured = duration(row["measured"])
        else:
            predicted, measured = size(row["predicted"]), size(row["measured"])
        lines.append((row["round"], row["what"], predicted, measured, error))
    print(table(["round", "", "predicted", "measured", "error"], lines))
    seconds = [row for row in result["rows"] if row["what"] == "seconds"]
    sent = [100 * abs(row["error"]) for row in result["rows"] if row not in seconds]
    off = [100 * row[key] for row in seconds for key in ("error", "error_after")]
    train = {name: f"{one['train']:.2f} s" for name, one in result["client_seconds"].items()}
    link = paper.SuperLink(look_seconds=result["inputs"]["before"]["superlink"]["look_seconds"])
    print(
        f"\nbytes off by at most {max(sent):.1f} %, "
        f"seconds by {min(off):+.0f} to {max(off):+.0f} %\n"
        f"a client trains in {train['many']} among {many}, "
        f"{train['before']} and {train['after']} among {few}\n"
        f"a look takes {1e6 * link.look_seconds:.1f} µs: {100 * link.looking(many):.0f} % of a "
        f"core with {many} clients, {100 * link.looking(few):.1f} % with {few}\n"
    )
