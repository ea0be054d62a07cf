"""Rounds with comparable accuracy: the same clients were scored, hence the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

ANSWERS = {"train": "train_loss_per_client", "evaluate": "accuracy_per_client"}
"""By phase: the key of a record that has a value of each client with a good reply."""
PHASES = {"train": "training", "evaluate": "evaluation"}
Record = dict[str, Any]
"""A line of metrics.jsonl."""


def scorers(record: Mapping[str, Any]) -> set[str]:
    """The clients that a round's accuracy is the mean of."""
    return {client for client, value in record["accuracy_per_client"].items() if value is not None}


def clients(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """All partitions that have trained or been scored in any round, in their order."""
    seen = {
        client
        for record in rounds
        for key in ("accuracy_per_client", "train_loss_per_client")
        for client in record.get(key, {})
    }
    return sorted(seen, key=lambda client: (len(client), client))


def lost_clients(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Clients that were asked but never gave a good reply, and why.

    A client that was never sampled is not lost. A node of unknown partition counts only if it
    failed in the last round: before, it may have replied later as a known client.

    Returns:
        "any round", "the training of any round" and "the evaluation of any round" to the clients
        that took no part in it, each with its last reason.
    """
    lost: dict[str, dict[str, str]] = {}
    well = {who for key in ANSWERS.values() for who in _answered(rounds, key)}
    for phase, key in ANSWERS.items():
        failures = [record.get("failures", {}).get(phase, {}) for record in rounds]
        for who, reason in {who: why for of in failures for who, why in of.items()}.items():
            known = who.startswith("client ") or who in failures[-1]
            if known and who not in _answered(rounds, key):
                what = f"the {PHASES[phase]} of any round" if who in well else "any round"
                lost.setdefault(what, {})[who] = reason
    return lost


def _answered(rounds: Sequence[Mapping[str, Any]], key: str) -> set[str]:
    return {f"client {client}" for record in rounds for client in record.get(key, {})}


def comparable(rounds: Sequence[Record]) -> list[Record]:
    """The rounds scored by the largest set of clients; of equally large sets, the first one's.

    These are the rounds that every client scored, if there are any.
    """
    largest = max(map(scorers, rounds), key=len)
    return [record for record in rounds if scorers(record) == largest]


def best(rounds: Sequence[Record]) -> Record:
    """Of the comparable rounds the one with the best mean accuracy.

    Of equally good ones it is the one with the least test loss, and of these the earliest.
    A new round either becomes the best or does not change it, so that it is enough to keep the
    adapters of the best round so far.
    """

    def goodness(record: Record) -> tuple[float, float, int]:
        loss = record.get("test_loss")
        return record["accuracy"] or 0.0, -inf if loss is None else -loss, -record["round"]

    return max(comparable(rounds), key=goodness)
