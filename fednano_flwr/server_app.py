"""The Flower ServerApp: hosts the LLM half and runs the strategy, round by round."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fednano_flwr.adapters.llm_part import at_clients, at_llm
from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.adapters.update import State
from fednano_flwr.base.console import ALL_DONE, say
from fednano_flwr.base.seeds import Purpose
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.config.lineage import PreviousRun, to_config
from fednano_flwr.config.proxies import spare_this_machine
from fednano_flwr.data.load import commit_of
from fednano_flwr.data.metrics import metric_label
from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.exchange.at_host import AtHost, HostLora, HostMap, LoraPlan
from fednano_flwr.models.bundle import open_whole
from fednano_flwr.models.lora import fresh_lora
from fednano_flwr.models.source import sites_of
from fednano_flwr.preflight import (
    check_all,
    client_checks,
    client_files,
    read_questions,
    server_checks,
)
from fednano_flwr.privacy.private import Private, with_privacy
from fednano_flwr.rounds.announcements import data_lines, setup_lines, unused_metric
from fednano_flwr.rounds.compat import (
    is_deployment,
    is_simulation,
    replace_dead_workers,
    worker_died,
)
from fednano_flwr.rounds.federation import Federation, LostClientsError, NodeView, RoundReplies
from fednano_flwr.rounds.metrics import round_record
from fednano_flwr.rounds.progress import EVALUATION, TRAINING, Progress
from fednano_flwr.rounds.records import from_arrays, to_arrays, with_tokens
from fednano_flwr.rounds.replies import check_evaluation, check_merge, receive_update
from fednano_flwr.rounds.service import (
    RunService,
    host_map,
    lora_plan,
    named_factors,
    open_service,
)
from fednano_flwr.rounds.snapshot import PROGRESS_FILE
from fednano_flwr.rounds.timeouts import ReplyTimeout
from fednano_flwr.runs.checkpoint import Checkpoint
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.runs.summary import (
    closing_table,
    kinds_table,
    lost_lines,
    round_line,
    traffic_line,
)
from fednano_flwr.strategies.base import AdapterStrategy, local_work_of, trains_one
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
    file = os.environ.get(PROGRESS_FILE)
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
    """Refuse to call a run well that a client took no part in, although its results are there.

    Raises:
        LostClientsError: who, in what, and why.
    """
    if lost := lost_lines(folder.rounds):
        raise LostClientsError(f"{ALL_DONE}, but {'; '.join(lost)}")


def federate(grid: Grid, run_id: int, config: RunConfig, screen: Path | None = None) -> RunFolder:
    """Host the LLM, evaluate the frozen model, then train, merge and evaluate round by round.

    Args:
        screen: file that the progress is written to; without one it is said in lines.

    Raises:
        ConfigError: a value of the run config cannot be used.
        DataError: the data set, which clients read on this machine, cannot be downloaded.
        CheckpointError: the run's folder cannot be written, or not be continued.
        LockedError: another run writes to that folder.
        TooFewClientsError: too few clients are there, or replied.
        WorkerDiedError: a simulation's worker died twice at one client's message.
        MergeError: the strategy fails, or makes numbers that are not finite.
    """
    simulated = is_simulation(grid)
    check_all(server_checks(config))
    if simulated:
        check_all([*client_checks(config), *client_files(config)])
        read_questions(config.dataset, config.seed, clients=None)
        replace_dead_workers()
    commit = commit_of(config.dataset, here=not is_deployment(grid))
    with RunFolder(config, run_id) as folder:
        if folder.finished:
            say("all rounds of this run are there already")
        else:
            strategy = make_strategy(config.strategy, config.seed)
            if config.privacy.dp != "none":
                left = config.num_server_rounds + 1 - max(1, len(folder.rounds))
                strategy = with_privacy(strategy, config.privacy, folder.path, left, say)
            with (
                open_service(config, run_id, simulated, say) as service,
                open_trackers(
                    config.run.trackers, folder.path, config.flat(), len(folder.rounds), say
                ) as trackers,
                closing(_progress(service, folder, screen)) as progress,
            ):
                folder.set_model(service.info)
                folder.set_dataset(commit)
                server = Server(grid, folder, strategy, service, progress, simulated)
                for record in server.rounds():
                    trackers.log(record)
                    say(round_line(record, metric_label(config)))
                    progress.round_done(record)
    _report(folder)
    return folder


class Server:
    """The rounds of one run: asks clients, has their replies merged, and keeps each round.

    Args:
        simulated: Flower's simulation runs the clients.
    """

    def __init__(
        self,
        grid: Grid,
        folder: RunFolder,
        strategy: Strategy,
        service: RunService,
        progress: Progress,
        simulated: bool,
    ) -> None:
        self.config = folder.config
        self.folder = folder
        self.strategy = strategy
        self.service = service
        self.progress = progress
        self.work = local_work_of(strategy)
        self.host_map: HostMap | None = None
        timeouts = ReplyTimeout(
            self.config.round_timeout,
            self.config.round_limit,
            service.last_seen,
            in_turn=simulated,
        )
        died = worker_died if simulated else None
        self.federation = Federation(grid, timeouts, self.config.min_replies, say, progress, died)

    def rounds(self) -> Iterable[dict[str, Any]]:
        """Play the rounds that are left; yields each one's record once it is on the disk."""
        arrays = self._start()
        for server_round in range(len(self.folder.rounds), self.config.num_server_rounds + 1):
            started, trained, notes = time.perf_counter(), None, dict[str, float]()
            if server_round > 0:
                trained = self.train(server_round, arrays)
                arrays = self.merge(server_round, trained, arrays)
                notes = getattr(self.strategy, "notes", {})
            scored = self.evaluate(server_round, arrays)
            seconds = time.perf_counter() - started
            record = round_record(server_round, trained, scored, seconds, notes)
            if server_round == 0:
                for line in [*data_lines(scored.replies), *unused_metric(self.config, record)]:
                    say(line)
            hidden_size, memory = self.service.info.hidden_size, remember(self.strategy)
            self.folder.append(record, from_arrays(arrays), hidden_size, memory, self._map)
            yield record

    def train(self, server_round: int, arrays: ArrayRecord) -> RoundReplies:
        """Have clients train from `arrays`; their replies, checked and unpacked."""
        config, work = self.config, local_work_of(self.strategy, server_round)
        one = trains_one(self.strategy)

        def check(reply: Message) -> None:
            receive_update(
                reply,
                sent=arrays if work.uploads else ArrayRecord(),
                fisher=work.fisher,
                lower_ranks=self._merges_ranks and not config.bounds.clip_update_norm,
                bounds=config.bounds,
                norm_bit=config.privacy.dp == "client-adaptive",
                clip_norm=self._clip_norm,
                factor=work.factor,
                result_of=partial(self.service.result_of, reply.metadata.src_node_id)
                if config.adapter.at_llm
                else None,
            )

        chosen = self._trainers(server_round, one)
        task = ConfigRecord(self._task(work))
        messages = self.strategy.configure_train(server_round, arrays, task, cast(Grid, chosen))
        part = self._at_host(arrays, lora_plan(config, server_round, work))
        least = 1 if one else None
        replies = self._ask(server_round, MessageType.TRAIN, messages, check, least, part)
        if part.lora is not None:
            self.service.finished.forget_sessions()
        return replies

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> RoundReplies:
        """Have clients score `arrays` on their own test questions; their replies, checked."""
        scorers = self._scorers(server_round)
        task = ConfigRecord(self._task(self.work))
        least = min(self.config.min_replies, len(scorers))
        messages = self.strategy.configure_evaluate(server_round, arrays, task, cast(Grid, scorers))
        part = self._at_host(arrays)
        return self._ask(
            server_round, MessageType.EVALUATE, messages, check_evaluation, least, part
        )

    def merge(self, server_round: int, trained: RoundReplies, sent: ArrayRecord) -> ArrayRecord:
        """The next adapters: what the strategy merges, or `sent` where it merges none.

        Raises:
            MergeError: the strategy fails, or makes numbers that are not finite.
        """
        config, uploads = self.config, self.work.uploads
        try:
            check_replies(config.strategy, len(trained.replies))
        except ConfigError as error:  # of clients that nobody has counted before, or some failed
            say(f"warning  round {server_round}: {error}")
        try:
            merged, _ = self.strategy.aggregate_train(server_round, trained.replies)
            # Some of Flower's strategies compute in float64 and would send that.
            made = from_arrays(merged or ArrayRecord())
            theta = {name: value.float() for name, value in made.items()} if uploads else {}
            check_merge(theta, from_arrays(sent), remember(self.strategy))
            self.host_map = host_map(self._map, config.adapter.scale)
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise MergeError(
                f"round {server_round}: the merge by {described(config)} cannot be used: "
                f"{kind}{error}. Nothing of it was written or sent: resume goes on from round "
                f"{server_round - 1}, and a new run may have other settings"
            ) from error
        if uploads and not theta:
            say(f"round {server_round}: {config.strategy.name} merged nothing; the adapters stay")
        return to_arrays(theta) if theta else sent

    def _start(self) -> ArrayRecord:
        """Say what runs where, wait for the clients, and go back to a checkpoint if there is one.

        Returns:
            The adapters of the first message.
        """
        config, info = self.config, self.service.info
        sites = sites_of(config.model)
        adapters = build_adapters(info.hidden_size, config.adapter, config.seed, sites=sites)
        theta = adapter_state(adapters)
        if config.adapter.at_llm:
            model = config.model
            whole = open_whole(model.name, model.revision, model.family)
            theta |= fresh_lora(whole, config.adapter, config.seed)
        for line in setup_lines(config, info, theta, self.service.address, self.work):
            say(line)
        self.federation.wait_for_nodes(config.min_available_nodes, "min-available-nodes")
        found: Checkpoint | None = self.folder.resumed
        if found is None:
            return to_arrays(theta)
        say(f"resumed  after round {found.round}")
        restore(self.strategy, found.memory)
        if found.map:
            cast(AdapterStrategy, self.strategy).map = found.map
            self.host_map = host_map(found.map, config.adapter.scale)
        self.federation.ask_partitions()
        return to_arrays(found.theta)

    def _task(self, work: LocalWork) -> dict[str, Any]:
        """What each message says beside the adapters."""
        where = {"llm-address": self.service.address, "llm-tls": self.service.tls}
        previous: list[PreviousRun] = self.folder.earlier
        return {**where, **work.to_config(), **to_config(previous)}

    def _ask(
        self,
        server_round: int,
        phase: str,
        messages: Iterable[Message],
        check: Callable[[Message], None],
        least: int | None,
        part: AtHost,
    ) -> RoundReplies:
        """The clients' replies; each may use the LLM service for this, and until all are in."""
        what = f"round {server_round}, {PHASES[phase]}"
        self.progress.start_phase(server_round, PHASES[phase])
        began = time.monotonic()

        def check_served(reply: Message) -> None:
            seen = self.service.last_seen(reply.metadata.src_node_id)
            if (part.map or part.lora) and (seen is None or seen < began):
                raise ValueError(
                    "the LLM host that served it is not this ServerApp's, and a part of the model "
                    "is there alone: let clients reach it (llm.address)"
                )
            check(reply)

        with self.service.tokens.open(server_round, phase, part) as token:
            return self.federation.ask(with_tokens(messages, token), what, check_served, least)

    def _at_host(self, arrays: ArrayRecord, plan: LoraPlan | None = None) -> AtHost:
        """The parts of a merged model that are at the host.

        Args:
            plan: how sessions train the LoRA inside; None where they do not.
        """
        theta = from_arrays(arrays)
        lora, factors = at_llm(theta), named_factors(at_clients(theta))
        return AtHost(self.host_map, HostLora(lora, plan) if lora else None, factors)

    def _trainers(self, server_round: int, one: bool) -> NodeView:
        """A fraction of the clients, `min-replies` at least, or one on behalf of all."""
        if one:
            return self.federation.first(server_round)
        fraction, least = self.config.fraction_train, self.config.min_replies
        seed = self.config.seed
        return self.federation.sample(fraction, seed, server_round, Purpose.TRAINERS, least)

    def _scorers(self, server_round: int) -> NodeView:
        """A fraction of the clients; all of them in the rounds that the closing tables compare."""
        fraction, last = self.config.fraction_evaluate, self.config.num_server_rounds
        if fraction == 1 or server_round in (0, last):
            return self.federation.all_nodes()
        return self.federation.sample(fraction, self.config.seed, server_round, Purpose.SCORERS)

    @property
    def _map(self) -> State:
        """What the strategy keeps at the host."""
        return getattr(self.strategy, "map", {})

    @property
    def _merges_ranks(self) -> bool:
        return getattr(self.strategy, "merges_ranks", False)

    @property
    def _clip_norm(self) -> float:
        """To which clients have clipped their updates; 0 if they have not."""
        at_client = isinstance(self.strategy, Private) and self.config.privacy.at_client
        return cast(Private, self.strategy).clip_norm if at_client else 0.0


def _progress(service: RunService, folder: RunFolder, screen: Path | None) -> Progress:
    """Of the rounds that are left, knowing how long those before took."""
    steps = service.activity.steps
    label = metric_label(folder.config)
    progress = Progress(folder.config.num_server_rounds, steps, say, screen, label=label)
    for record in folder.rounds:
        progress.round_done(record)
    return progress


def _report(folder: RunFolder) -> None:
    """Say what the run has come to."""
    shown = folder.rounds[0], folder.rounds[-1], folder.best, metric_label(folder.config)
    say()
    say(closing_table(*shown))
    for line in lost_lines(folder.rounds):
        say(line)
    say()
    say(kinds_table(*shown))
    say(traffic_line(folder.rounds))
    say(f"written to {folder.path}")
    say(f"look at it with: {shlex.join(['fednano', 'report', str(folder.path)])}")
