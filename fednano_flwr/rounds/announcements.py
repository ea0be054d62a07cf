"""Lines printed before round 1: the server, the clients, the run, and each client's questions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Message
from torch import Tensor

from fednano_flwr.adapters.llm_part import at_clients, at_llm
from fednano_flwr.adapters.site import sites_in
from fednano_flwr.adapters.update import State
from fednano_flwr.base.console import human_bytes
from fednano_flwr.base.reasons import by_reason, first_few
from fednano_flwr.config import Adapter, Dataset, RunConfig
from fednano_flwr.data.metrics import metric_label
from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.edge.scoring import FREE_ANSWER
from fednano_flwr.exchange.protocol import LLMInfo
from fednano_flwr.llm.sessions import MB, session_bytes
from fednano_flwr.rounds.records import metric
from fednano_flwr.rounds.service import lora_plan


def setup_lines(
    config: RunConfig, info: LLMInfo, theta: Mapping[str, Tensor], address: str, work: LocalWork
) -> list[str]:
    """One line each for the server, the clients and the run."""
    own, inside = at_clients(theta), at_llm(theta)
    trained = sum(value.numel() for value in own.values())
    rank, local = _ranks(config.adapter), work.local_rank or config.adapter.rank
    if work.adapters == "both":
        rank += f" (and of each client's own, rank {local})"
        trained += trained // config.adapter.rank * local
    up_to = "" if set(config.adapter.clients_ranks) == {config.adapter.rank} else "up to "
    adapters = "no NanoAdapters"
    if own:
        sites = " and ".join(sites_in(own))
        adapters = f"NanoAdapters on {sites}, {rank}: {up_to}{trained:,} trained parameters"
    dtype = info.dtype
    if config.llm.quantization != "none":
        dtype = f"linear layers in {config.llm.quantization}, the rest in {dtype}"
    held = " and connector" if config.exchange.connector_at_host else ""
    return [
        f"server   LLM half{held} of {info.model}: {info.parameters:,} frozen parameters, {dtype} "
        f"on {config.llm.device}, at {address} (fingerprint {info.fingerprint})",
        *_host_lora(config, inside, work),
        f"clients  NanoEdge: encoder, connector, token embeddings (frozen) and {adapters}, "
        f"{config.edge.dtype} on {config.edge.device}",
        f"run      {config.dataset.name}, {_split(config.dataset)}; strategy "
        f"{config.strategy.name}, {config.num_server_rounds} round(s), {config.local_epochs} local "
        f"epoch(s), learning rate {_rate(config)}, seed {config.seed}",
    ]


def _host_lora(config: RunConfig, inside: State, work: LocalWork) -> list[str]:
    """A line on the LoRA inside the language model, where there is one."""
    if not inside:
        return []
    each, llm = session_bytes(inside, lora_plan(config, 1, work)), config.llm
    numbers = sum(value.numel() for value in inside.values())
    lines = [
        f"server   LoRA in {len(inside) // 2} linear layers of it, rank {config.adapter.llm_rank}: "
        f"{numbers:,} parameters, trained here for each client; a session takes {human_bytes(each)}"
    ]
    room = llm.session_memory_mb * MB // each * llm.replicas
    clients = round(config.fraction_train * config.min_available_nodes)
    if clients > room and work.data == "own":
        lines.append(
            f"note     llm.session-memory-mb = {llm.session_memory_mb}: there is room for {room} "
            f"sessions; where more of the {clients} clients train at once, the others wait"
        )
    return lines


def _ranks(adapter: Adapter) -> str:
    """The ranks of the clients' adapters, in words."""
    if set(adapter.clients_ranks) == {adapter.rank}:
        return f"rank {adapter.rank}"
    ranks = ", ".join(map(str, adapter.clients_ranks))
    return f"ranks {ranks} in turn, merged at {adapter.rank}"


def _rate(config: RunConfig) -> str:
    """The learning rate over the rounds, in words."""
    words = f"{config.learning_rate:g}"
    if config.warm_up_rounds:
        words += f" after {config.warm_up_rounds} round(s) of warm-up"
    if config.learning_rate_schedule == "constant":
        return words
    end = config.learning_rate * config.learning_rate_end
    return f"{words}, falling to {end:g} ({config.learning_rate_schedule})"


def _split(dataset: Dataset) -> str:
    """The partitioner, in words."""
    if dataset.partitioner == "dirichlet":
        return f"Dirichlet α = {dataset.alpha:g}"
    arguments = f" ({dataset.partitioner_args})" if dataset.partitioner_args else ""
    return f"partitioner {dataset.partitioner}{arguments}"


def unused_metric(config: RunConfig, record: Mapping[str, Any]) -> list[str]:
    """A warning where `dataset.metric` is set and there is no free answer that it could score.

    Args:
        record: of round 0.
    """
    name, scored = config.dataset.metric, record["accuracy_by"]
    if name == "auto" or FREE_ANSWER in scored or not scored:
        return []
    return [
        f"warning  dataset.metric = {name!r} scores free answers, and no test question has one: "
        f'"{metric_label(config)}" is the share of questions whose right option is the likeliest'
    ]


def data_lines(replies: Iterable[Message]) -> list[str]:
    """Each client's number of questions, how many were cut, and those left out, by reason.

    Args:
        replies: to the evaluate messages of round 0.
    """
    sizes, cut = [], 0
    skipped: Counter[str] = Counter()  # of the whole data set: every client says the same
    left_out: list[tuple[str, str]] = []  # of a client's own shard: id and reason
    for reply in replies:
        sizes.append(f"{metric(reply, 'train-examples')}+{metric(reply, 'num-examples')}")
        cut += int(metric(reply, "cut-examples"))
        notes = reply.content.config_records["notes"]
        skipped |= Counter(json.loads(str(notes["skipped"])))
        unreadable = json.loads(str(notes["unreadable"]))
        left_out += [(uid, reason) for reason, ids in unreadable.items() for uid in ids]
    counts = f"{len(sizes)} clients with train+test questions: {', '.join(sizes)}"
    return [
        f"shards   {counts}",
        *([f"cut      the text of {cut} questions, to dataset.max-tokens"] if cut else []),
        *(f"skipped  {count} questions: {reason}" for reason, count in sorted(skipped.items())),
        *(
            f"skipped  {len(ids)} questions: {reason} ({first_few(ids)})"
            for ids, reason in by_reason(left_out)
        ),
    ]
