"""Tables of the capacity calculator, printed; what they show is returned for the JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks import capacity_model as paper

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
    print("\n| exchange | replicas | clients at once | client rounds an hour | limit |")
    print("|---|---|---|---|---|")
    rows = []
    for exchange in ("embeddings", "lowrank"):
        for replicas in REPLICAS:
            with_exchange = replace(with_replicas(made, replicas), exchange=exchange)
            found = paper.carried(with_exchange)
            rows.append({"exchange": exchange, "replicas": replicas, **vars(found)})
            print(
                f"| {exchange} | {replicas} | {found.at_once:,.0f} | {found.an_hour:,.0f} "
                f"| {found.limit} |"
            )
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
    print(
        "\n| clients | sampled | features | "
        + " | ".join(f"{n} replica{'s' * (n > 1)}" for n in REPLICAS)
        + " | all evaluated, 8 replicas | step, round bytes at the server | merging memory |"
    )
    print("|---|---|---|" + "---|" * (len(REPLICAS) + 3))
    rows = []
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
            cells = [f"{duration(c.seconds)}: {c.longest.bottleneck}" for c in costs.values()]
            too_much = " (more than there is)" if cost.merge_bytes > memory else ""
            print(
                f"| {clients:,} | {sampled:,} | {features} | "
                + " | ".join(cells)
                + f" | {duration(everyone.seconds)}: {everyone.longest.bottleneck} "
                f"| {size(cost.step.both)}, {size(cost.round.both)} "
                f"| {size(cost.merge_bytes)}{too_much} |"
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
    idle = ", ".join(f"{n:,}: {paper.idle_requests(n):,.0f}" for n in FEDERATIONS)
    print(f"\nRequests a second of SuperNodes that wait for work, {idle}.")
    return rows


def show_client(made: paper.Setup) -> dict[str, Any]:
    """One client's bytes and seconds in a round: its first, one with features sent again, later."""
    known = replace(made, client=replace(made.client, encode_seconds=0.0))
    print("\n| one client, alone at the host | sends | gets | its training and evaluation |")
    print("|---|---|---|---|")
    rows = {}
    cases = (("first", made, True), ("features sent again", known, True), ("later", known, False))
    for name, setup, sent in cases:
        cost = paper.round_cost(setup, 1, 1, sent, sent)
        rows[name] = {"up": cost.a_client.up, "down": cost.a_client.down, "seconds": cost.seconds}
        print(
            f"| {name} | {size(cost.a_client.up)} | {size(cost.a_client.down)} "
            f"| {duration(cost.seconds)} |"
        )
    print(f"\nThe host keeps {size(paper.feature_bytes(made))} of features for each client.")
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
    print("\n| this machine's host (the demo's model) | tokens a second, training | scoring |")
    print("|---|---|---|")
    for row in measured["host"]:
        print(
            f"| batches of {row['batch']} | {row['train_tokens_per_second']:,.0f} "
            f"| {row['score_tokens_per_second']:,.0f} |"
        )
    worst = max(measured["bytes"], key=lambda row: abs(row["error"]))
    print(
        f"\nFormulas of bytes against {len(measured['bytes'])} counted steps: off by at most "
        f"{100 * abs(worst['error']):.2f} % ({worst['exchange']}, d = {worst['hidden_size']})."
    )


def show_check(result: Mapping[str, Any]) -> None:
    print(
        f"\n{result['clients']} simulated clients, predicted from runs of "
        f"{result['calibrated_on']} before and after ({', '.join(result['changes'])})\n"
    )
    print("| round | | predicted | measured | error |\n|---|---|---|---|---|")
    for row in result["rows"]:
        error = f"{100 * row['error']:+.1f} %"
        if row["what"] == "seconds":
            predicted = f"{duration(row['predicted'])}, {duration(row['predicted_after'])}"
            error += f", {100 * row['error_after']:+.1f} %"
            measured = duration(row["measured"])
        else:
            predicted, measured = size(row["predicted"]), size(row["measured"])
        print(f"| {row['round']} | {row['what']} | {predicted} | {measured} | {error} |")
