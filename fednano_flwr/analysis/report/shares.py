"""How many training questions of each group a run's clients were dealt, worked out again.

A run keeps no such counts. They follow from its config and the data set; where the data set is not
on this machine or the clients had shards of their own, they cannot be had, and are not guessed.
"""

from __future__ import annotations

from collections import Counter

from fednano_flwr.analysis.report import facts
from fednano_flwr.runs.results import Run

Shares = dict[str, list[int]]


def read_shares(run: Run) -> Shares | str:
    """Group to a count a client, or why they are not known.

    Only from data on this machine: nothing is downloaded.
    """
    from fednano_flwr.base.resources import ResourceError, resolve
    from fednano_flwr.data.errors import DataError
    from fednano_flwr.data.shard import read_shards

    dataset, clients = run.config.dataset, facts.clients(run)
    if clients != [str(k) for k in range(len(clients))]:
        return "it is not known how many clients the data set was dealt to"
    try:
        if not resolve("dataset.path", dataset.path, write=False).is_dir():
            return f"the data set {dataset.path} is not on this machine as a folder"
        dealt = read_shards(dataset, run.config.seed, len(clients))
        trained = [Counter(shard.train.groups) for shard in dealt]
        tested = [len(shard.test) for shard in dealt]
    except (DataError, ResourceError, OSError, ImportError, ValueError) as error:
        return f"the data set cannot be read here: {str(error).splitlines()[0]}"
    counted = {kind: facts.questions(run, kind) for kind in ("train", "test")}
    for k in range(len(clients)):
        there = {"train": trained[k].total(), "test": tested[k]}
        for kind in counted:
            if counted[kind].get(str(k), there[kind]) != there[kind]:
                return (
                    f"client {k} counted {counted[kind][str(k)]} {kind} questions, and the data "
                    f"set of this machine would give it {there[kind]}: it is another one, or the "
                    "clients had shards of their own"
                )
    groups = sorted({group for counts in trained for group in counts})
    return {group: [counts[group] for counts in trained] for group in groups}
