"""The Flower ServerApp: hosts the LLM half and runs the strategy, round by round."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.base.console import ALL_DONE, say
from fednano_flwr.base.reasons import by_reason, first_few
from fednano_flwr.base.seeds import Purpose
from fednano_flwr.config import Adapter, ConfigError, Dataset, RunConfig
from fednano_flwr.config.lineage import to_config
from fednano_flwr.config.proxies import spare_this_machine
from fednano_flwr.data.registry import commit_of
from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.exchange.protocol import LLMInfo
from fednano_flwr.exchange.wire.activity import Activity
from fednano_flwr.exchange.wire.limits import NodeLimits
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.exchange.wire.tls import read_identity
from fednano_flwr.exchange.wire.tokens import Tokens, owner
from fednano_flwr.llm.hosting import open_host
from fednano_flwr.llm.watching import watching
from fednano_flwr.preflight import validate_clients, validate_server
from fednano_flwr.privacy.private import Private
from fednano_flwr.rounds.federation import Answers, Federation, LostClientsError, NodeView
from fednano_flwr.rounds.metrics import round_record
from fednano_flwr.rounds.progress import EVALUATION, TRAINING, Progress
from fednano_flwr.rounds.records import from_arrays, metric, to_arrays, with_tokens
from fednano_flwr.rounds.replies import check_evaluation, check_merge, receive_update
from fednano_flwr.rounds.snapshot import VARIABLE
from fednano_flwr.rounds.timeouts import Patience
from fednano_flwr.rounds.workers import replace_dead_workers, worker_died
from fednano_flwr.runs.checkpoint import Checkpoint
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.runs.summary import (
    closing_table,
    kinds_table,
    lost_lines,
    round_line,
    traffic_line,
)
from fednano_flwr.strategies.base import local_work_of, trains_one
from fednano_flwr.strategies.memory import remember, restore
from fednano_flwr.strategies.registry import check_replies, described, make_strategy
from fednano_flwr.trackers.registry import open_trackers


class MergeError(RuntimeError):
    """What the strategy made of a round's replies cannot be used."""


PHASES = {MessageType.TRAIN: TRAINING, MessageType.EVALUATE: EVALUATION}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the whole federation; an error ends the run with its reason on one line."""
    spare_this_machine(os.environ)  # for what trackers send
    file = os.environ.get(VARIABLE)
    screen = Path(file) if file else None
    try:
        config = RunConfig.parse(context.run_config)
        check_clients(federate(grid, context.run_id, config, screen))
    except LostClientsError:  # has been said below the closing table
        raise
    except Exception as error:
        say(f"the run ends: {error}")
        raise


def check_clients(folder: RunFolder) -> None:
    """Refuse to call a run well that a client took no part in, with its results all there.

    Raises:
        LostClientsError: who, in what, and why.
    """
    if lost := lost_lines(folder.rounds):
        raise LostClientsError(f"{ALL_DONE}, but {'; '.join(lost)}")


def federate(grid: Grid, run_id: int, config: RunConfig, screen: Path | None = None) -> RunFolder:
    """Host the LLM, evaluate the frozen model, then train, merge and evaluate round by round.

    Args:
        screen: file in which a screen looks up where the run is; without one, lines say it.

    Raises:
        WorkerDiedError: a simulation's worker died twice at one client's message.
        ConfigError: a value of the run config cannot be used.
        DataError: the data set, which clients read on this machine, cannot be downloaded.
        CheckpointError: the run's folder cannot be written, or not be continued.
        LockedError: another run writes to that folder.
        TooFewClientsError: too few clients are there, or replied.
        MergeError: the strategy fails, or makes numbers that are not finite.
    """
    simulated = isinstance(grid, InMemoryGrid)
    validate_server(config)
    if simulated:
        validate_clients(config)
        replace_dead_workers()
    strategy = make_strategy(config.strategy)
    tokens, identity = Tokens(run_id), read_identity(config.llm)
    work, one = local_work_of(strategy), trains_one(strategy)
    private_run = config.privacy.dp != "none"
    merges_ranks = getattr(strategy, "merges_ranks", False) and not private_run
    commit = commit_of(config.dataset, here=not isinstance(grid, HttpGrid))
    folder = RunFolder(config, run_id)
    if folder.finished:
        folder.close()
        say("all rounds of this run are there already")
        _report(folder)
        return folder
    if private_run:
        strategy = private = Private(strategy, config.privacy, folder.path)
        say(private.describe(config.num_server_rounds + 1 - max(1, len(folder.rounds))))
    activity = Activity()
    patience = Patience(
        config.round_timeout,
        config.round_limit,
        lambda node: activity.last_seen(owner(run_id, node)),
        in_turn=simulated,
    )
    progress = Progress(config.num_server_rounds, activity.steps, say, screen)
    for record in folder.rounds:
        progress.finished(record)
    died = worker_died if simulated else None
    federation = Federation(grid, patience, config.min_replies, say, progress, died)
    with (
        folder,
        watching(config.llm.metrics, say) as watch,
        open_host(config.model, config.llm, simulated, say, watch) as host,
        serve(
            host,
            config.llm.bind,
            config.llm.port,
            config.llm.max_clients,
            tokens,
            identity,
            NodeLimits(config.llm.node_requests_per_second),
            activity,
            watch,
        ) as bound,
        open_trackers(
            config.run.trackers, folder.path, config.flat(), len(folder.rounds), say
        ) as trackers,
        closing(progress),
    ):
        info = host.describe()
        folder.set_model(info)
        folder.set_dataset(commit)
        adapters = build_adapters(info.hidden_size, config.adapter, config.seed)
        arrays = to_arrays(adapter_state(adapters))
        address = config.llm.address or bound
        _introduce(config, info, arrays, address, work)
        federation.wait_for_nodes(config.min_available_nodes, "min-available-nodes")
        if folder.resumed is not None:
            arrays = _go_on(folder.resumed, strategy, federation)
        for server_round in range(len(folder.rounds), config.num_server_rounds + 1):
            started = time.perf_counter()
            task = {
                "llm-address": address,
                "llm-tls": identity is not None,
                **work.to_config(),
                **to_config(folder.earlier),
            }
            ask = partial(_ask, federation, tokens, progress, server_round)
            trained = None
            if server_round > 0:
                chosen = _who_trains(federation, config, server_round, one)
                trained = ask(
                    MessageType.TRAIN,
                    strategy.configure_train(
                        server_round, arrays, ConfigRecord(task), cast(Grid, chosen)
                    ),
                    check=partial(
                        receive_update,
                        sent=arrays if work.uploads else ArrayRecord(),
                        fisher=work.fisher,
                        lower_ranks=merges_ranks and not config.bounds.clip_update_norm,
                        bounds=config.bounds,
                        norm_bit=config.privacy.dp == "client-adaptive",
                        clip_norm=private.clip_norm if config.privacy.at_client else 0.0,
                    ),
                    least=1 if one else None,
                )
                arrays = _merge(config, strategy, server_round, trained, arrays, work)
            scorers = _who_scores(federation, config, server_round)
            scored = ask(
                MessageType.EVALUATE,
                strategy.configure_evaluate(
                    server_round, arrays, ConfigRecord(task), cast(Grid, scorers)
                ),
                check=check_evaluation,
                least=min(config.min_replies, len(scorers)),
            )
            if server_round == 0:
                _report_data(scored)
            seconds = time.perf_counter() - started
            notes = getattr(strategy, "notes", {}) if trained else {}
            record = round_record(server_round, trained, scored, seconds, notes)
            folder.append(record, from_arrays(arrays), info.hidden_size, remember(strategy))
            trackers.log(record)
            say(round_line(record))
            progress.finished(record)
    _report(folder)
    return folder


def _go_on(found: Checkpoint, strategy: Strategy, federation: Federation) -> ArrayRecord:
    """Put strategy and federation to where the checkpoint was written; returns its adapters."""
    say(f"resumed  after round {found.round}")
    restore(strategy, found.memory)
    federation.meet()
    return to_arrays(found.theta)


def _report(folder: RunFolder) -> None:
    """What the run has come to."""
    say()
    say(closing_table(folder.rounds[0], folder.rounds[-1], folder.best))
    for line in lost_lines(folder.rounds):
        say(line)
    say()
    say(kinds_table(folder.rounds[0], folder.rounds[-1], folder.best))
    say(traffic_line(folder.rounds))
    say(f"written to {folder.path}")
    say(f"look at it with: {shlex.join(['fednano', 'report', str(folder.path)])}")


def _ask(
    federation: Federation,
    tokens: Tokens,
    progress: Progress,
    server_round: int,
    phase: str,
    messages: Iterable[Message],
    check: Callable[[Message], None],
    least: int | None = None,
) -> Answers:
    """The nodes' answers; each may use the LLM service for this, and until all are in."""
    what = f"round {server_round}, {PHASES[phase]}"
    progress.enter(server_round, PHASES[phase])
    with tokens.open(server_round, phase) as token:
        return federation.ask(with_tokens(messages, token), what, check, least)


def _merge(
    config: RunConfig,
    strategy: Strategy,
    server_round: int,
    trained: Answers,
    sent: ArrayRecord,
    work: LocalWork,
) -> ArrayRecord:
    """The adapters of the next message: the strategy's, or those sent where it makes none.

    Raises:
        MergeError: the strategy fails, or makes numbers that are not finite.
    """
    try:
        check_replies(config.strategy, len(trained.replies))
    except ConfigError as error:  # of clients that nobody has counted before, or some failed
        say(f"warning  round {server_round}: {error}")
    try:
        merged, _ = strategy.aggregate_train(server_round, trained.replies)
        # Some of Flower's strategies compute in float64 and would send that.
        made = from_arrays(merged or ArrayRecord())
        theta = {name: value.float() for name, value in made.items()} if work.uploads else {}
        check_merge(theta, from_arrays(sent), remember(strategy))
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise MergeError(
            f"round {server_round}: the merge by {described(config)} cannot be used: {kind}{error}."
            f" Nothing of it was written or sent: resume goes on from round {server_round - 1}, "
            "and a new run may have other settings"
        ) from error
    if work.uploads and not theta:
        say(f"round {server_round}: {config.strategy.name} merged nothing; the adapters stay")
    return to_arrays(theta) if theta else sent


def _who_trains(
    federation: Federation, config: RunConfig, server_round: int, one: bool
) -> NodeView:
    """A fraction of the clients, `min-replies` at least, or one on behalf of all."""
    if one:
        return federation.first(server_round)
    fraction, least = config.fraction_train, config.min_replies
    return federation.sample(fraction, config.seed, server_round, Purpose.TRAINERS, least)


def _who_scores(federation: Federation, config: RunConfig, server_round: int) -> NodeView:
    """A fraction of the clients; all of them in the rounds that the closing tables compare."""
    if config.fraction_evaluate == 1 or server_round in (0, config.num_server_rounds):
        return federation.everyone()
    fraction = config.fraction_evaluate
    return federation.sample(fraction, config.seed, server_round, Purpose.SCORERS)


def _introduce(
    config: RunConfig, info: LLMInfo, arrays: ArrayRecord, address: str, work: LocalWork
) -> None:
    """Say what runs where, before anything takes long."""
    trained = sum(value.numel() for value in from_arrays(arrays).values())
    rank, local = _ranks(config.adapter), work.local_rank or config.adapter.rank
    if work.adapters == "both":
        rank += f" (and of each client's own, rank {local})"
        trained += trained // config.adapter.rank * local
    up_to = "" if set(config.adapter.clients_ranks) == {config.adapter.rank} else "up to "
    kept = info.dtype
    if config.llm.quantization != "none":
        kept = f"linear layers in {config.llm.quantization}, the rest in {kept}"
    say(
        f"server   LLM half of {info.model}: {info.parameters:,} frozen parameters, {kept} on "
        f"{config.llm.device}, at {address} (fingerprint {info.fingerprint})"
    )
    say(
        f"clients  NanoEdge: vision encoder, connector, token embeddings (frozen) and NanoAdapters "
        f"on {' and '.join(config.adapter.site_names)}, {rank}: "
        f"{up_to}{trained:,} trained parameters, {config.edge.dtype} on {config.edge.device}"
    )
    say(
        f"run      {config.dataset.name}, {_split(config.dataset)}; strategy "
        f"{config.strategy.name}, {config.num_server_rounds} round(s), {config.local_epochs} local "
        f"epoch(s), learning rate {_rate(config)}, seed {config.seed}"
    )


def _ranks(adapter: Adapter) -> str:
    """Of which rank the clients' adapters are, in words."""
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
    """How questions are dealt to clients, in words."""
    if dataset.partitioner == "dirichlet":
        return f"Dirichlet α = {dataset.alpha:g}"
    arguments = f" ({dataset.partitioner_args})" if dataset.partitioner_args else ""
    return f"partitioner {dataset.partitioner}{arguments}"


def _report_data(scored: Answers) -> None:
    """Say how many questions each client has, and what was left out for which reason."""
    sizes = []
    skipped: Counter[str] = Counter()  # of the whole data set: every client says the same
    left_out: list[tuple[str, str]] = []  # of a client's own shard: id and reason
    for reply in scored.replies:
        sizes.append(f"{metric(reply, 'train-examples')}+{metric(reply, 'num-examples')}")
        notes = reply.content.config_records["notes"]
        skipped |= Counter(json.loads(str(notes["skipped"])))
        unreadable = json.loads(str(notes["unreadable"]))
        left_out += [(uid, reason) for reason, ids in unreadable.items() for uid in ids]
    say(f"shards   {len(sizes)} clients with train+test questions: {', '.join(sizes)}")
    for reason, count in sorted(skipped.items()):
        say(f"skipped  {count} questions: {reason}")
    for ids, reason in by_reason(left_out):
        say(f"skipped  {len(ids)} questions: {reason} ({first_few(ids)})")
