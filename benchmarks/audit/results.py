"""What the host could read of a run, in shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.audit.attack import (
    candidates,
    in_every,
    most_frequent,
    nearest,
    shares,
)
from benchmarks.audit.playing import Played, play
from benchmarks.audit.recording import joined
from fednano_flwr.adapters.product import Factors, adapters_of
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.edge.client import Client
from fednano_flwr.models.edge_half import TokenTable, load_edge_half
from fednano_flwr.strategies.base import local_work_of
from fednano_flwr.strategies.registry import make_strategy

PASSES = {"pass": 1, "pass-model": 2, "pass-samples": 1}
"""How often a Fisher estimate sends each question, beside training."""


@dataclass(frozen=True)
class Subject:
    """What is audited.

    Attributes:
        name: as the table calls it.
        theta: the server's adapters.
        after_round: of which round they are.
        accuracy, frozen_accuracy: the run's own, after that round and before the first, in [0, 1];
            None where nothing has run.
    """

    name: str
    config: RunConfig
    theta: dict[str, Tensor]
    clients: int
    after_round: int
    accuracy: float | None
    frozen_accuracy: float | None


@dataclass(frozen=True)
class AuditOptions:
    """How much is played; `observations` 0: as often as the run sends each question."""

    questions: int
    seed: int
    observations: int


@dataclass
class _Read:
    """Guesses of all clients' tokens and answers, and what they are."""

    tokens: list[Tensor] = field(default_factory=list)
    once: list[Tensor] = field(default_factory=list)
    often: list[Tensor] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)
    answers_read: list[Tensor] = field(default_factory=list)
    image_rows: int = 0
    times: list[int] = field(default_factory=list)


def times_sent(config: RunConfig) -> int:
    """How often a run sends each training question to the host, if its client trains every round.

    Raises:
        ConfigError: the strategy's clients train adapters that the server never sees.
    """
    work = local_work_of(make_strategy(config.strategy))
    if work.adapters != "global":
        raise ConfigError(
            f"strategy.name = {config.strategy.name!r}: its clients keep adapters of their own, "
            "which are not in a run's folder and which the host does not know; only strategies "
            "whose clients train the server's adapters can be audited"
        )
    return max(1, config.num_server_rounds) * (config.local_epochs + PASSES.get(work.fisher, 0))


def audit_one(subject: Subject, asked: AuditOptions) -> dict[str, Any]:
    """One row of results; see docs/audit.md for what its numbers are.

    Raises:
        ConfigError, ResourceError, DataError: the run cannot be played here.
    """
    config = subject.config
    times = asked.observations or times_sent(config)
    read = _Read()
    for played in play(config, subject.theta, subject.clients, asked.questions, asked.seed, times):
        _attack(played, read)
    if not read.tokens:
        raise ConfigError(f"{subject.name}: no client has a training question to play")
    tokens, template = joined(read.tokens), in_every(read.tokens)
    answers = joined(read.answers)
    return {
        "name": subject.name,
        "strategy": config.strategy.name,
        "seed": config.seed,
        "rounds": subject.after_round,
        "exchange": config.exchange.kind,
        "dtype": config.exchange.dtype,
        "labels_at": config.exchange.labels_at,
        "questions": len(read.tokens),
        "text_tokens": len(tokens),
        "template": len(template),
        "image_rows_left_out": read.image_rows,
        "observations": [min(read.times), max(read.times)],
        "read_once": asdict(shares(joined(read.once), tokens, template)),
        "read_often": asdict(shares(joined(read.often), tokens, template)),
        "most_frequent": asdict(most_frequent(tokens, template)),
        "answers": shares(joined(read.answers_read), answers, set()).all,
        "most_frequent_answer": most_frequent(answers, set()).all,
        "accuracy": subject.accuracy,
        "frozen_accuracy": subject.frozen_accuracy,
    }


def _attack(played: Played, read: _Read) -> None:
    """Add what the host reads of one client."""
    prompts = played.prompts
    sizes = [len(prompt.tokens) for prompt in prompts]
    once = torch.cat([prompt.received for prompt in prompts])
    often = torch.cat([prompt.mean for prompt in prompts])
    guesses = torch.cat([once, often])
    if once.is_floating_point():  # token ids are read as they are
        guesses = nearest(guesses, _candidates(played, _table(played.client)))
    read.tokens += [prompt.tokens for prompt in prompts]
    read.once += guesses[: len(once)].split(sizes)
    read.often += guesses[len(once) :].split(sizes)
    read.answers += [prompt.answers for prompt in prompts]
    read.answers_read += [prompt.read_answers for prompt in prompts]
    read.image_rows += sum(prompt.image_rows for prompt in prompts)
    read.times += [prompt.count for prompt in prompts]


def _candidates(played: Played, table: TokenTable) -> Iterator[Tensor]:
    """What each token of the vocabulary looks like when it arrives."""
    adapter = played.client.config.adapter
    return candidates(
        lambda ids: table(ids.to(table.weight.device)).cpu(),
        len(table.weight),
        text_factors(played.theta),
        adapter.alpha / adapter.rank,
    )


def text_factors(theta: Mapping[str, Tensor]) -> Factors | None:
    """A and B of the text adapter; None where a run has none."""
    found = [one for name, one in adapters_of(theta).items() if name.endswith("text_adapter")]
    return found[0] if found else None


def _table(client: Client) -> TokenTable:
    """Every token's embedding, as the host has it; a client may hold fewer."""
    if client.edge.tokens.ids is None:
        return client.edge.tokens
    model = client.config.model
    if client.source == model:
        return client.half.token_table()
    half = load_edge_half(model.name, revision=model.revision, family=model.family)
    return half.token_table()
