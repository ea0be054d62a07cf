"""Live progress of a run, counted by its ServerApp.

`fednano run` on a terminal names a file (`snapshot.PROGRESS_FILE`), which is written about twice a
second. Without one, a line is printed after each minute without output.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from flwr.app import Message

from fednano_flwr.rounds.records import SCORE, TEST_LOSS, metric
from fednano_flwr.rounds.snapshot import Snapshot, write

WRITE_SECONDS = 0.5
SILENT_SECONDS = 60.0
"""Without a file, a line is printed after so long without output."""
STUCK_SECONDS = 30.0
"""After so long without a step or a reply, the screen names the clients that owe a reply."""
NO_ROUND = "who is there"
TRAINING, EVALUATION = "training", "evaluation"
Given = ParamSpec("Given")


def _never_raises(
    event: Callable[Concatenate[Progress, Given], None],
) -> Callable[Concatenate[Progress, Given], None]:
    """An error in showing progress never ends the run; it is reported once."""

    @functools.wraps(event)
    def guarded(progress: Progress, *args: Given.args, **kwargs: Given.kwargs) -> None:
        if progress.broken:
            return
        try:
            event(progress, *args, **kwargs)
        except Exception as error:
            progress.broken = True
            progress.drop_file()
            with suppress(Exception):  # printing may be what failed
                progress.say(f"progress is no longer shown: {type(error).__name__}: {error}")

    return guarded


class _Mean:
    """A weighted mean; None while the weights sum to 0."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, total: float, weight: float) -> None:
        self._sum += total
        self._weight += weight

    @property
    def value(self) -> float | None:
        return self._sum / self._weight if self._weight else None


def _loss(reply: Message) -> tuple[float, float]:
    questions = metric(reply, "num-examples")
    return metric(reply, "train-loss") * questions, questions


def _sums(keys: tuple[str, str]) -> Callable[[Message], tuple[float, float]]:
    return lambda reply: (metric(reply, keys[0]), metric(reply, keys[1]))


MEANS: Mapping[str, Mapping[str, Callable[[Message], tuple[float, float]]]] = {
    TRAINING: {"train_loss": _loss},
    EVALUATION: {"accuracy": _sums(SCORE), "test_loss": _sums(TEST_LOSS)},
}
"""By phase, what is shown of it, as records call it: a reply's sum, and what it is divided by."""


class Progress:
    """Counts clients and steps of the current phase and shows them; its methods never raise.

    It belongs to the ServerApp's thread; only `steps` may read what other threads write.

    Args:
        rounds: number of the last round.
        steps: calls that the language model has computed so far, in the whole run.
        say: prints one line.
        file: where to write the progress; None prints lines instead.
        clock: seconds, monotonic.
        label: of the run's metric.
    """

    def __init__(
        self,
        rounds: int,
        steps: Callable[[], int],
        say: Callable[[str], None],
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        label: str = "",
    ) -> None:
        self.say = say
        self.broken = False
        self._label = label
        self._rounds, self._steps, self._file, self._clock = rounds, steps, file, clock
        self._round: int | None = None
        self._phase = NO_ROUND
        self._asked = self._done = self._failed = self._steps_before = 0
        self._means = defaultdict[str, _Mean](_Mean)
        self._record: Mapping[str, Any] = {}
        self._seconds: list[float] = []
        self._round_began = self._phase_began = self._said = self._moved = clock()
        self._written = float("-inf")
        self._last_sign = (0, 0)

    @_never_raises
    def round_done(self, record: Mapping[str, Any]) -> None:
        """A round has ended, now or before the run was resumed; `record` is its line of metrics."""
        self._record = record
        if record["round"] > 0:  # round 0 does not train
            self._seconds.append(record["seconds"])

    @_never_raises
    def start_phase(self, server_round: int, phase: str) -> None:
        """A phase of a round begins."""
        if server_round != self._round:
            self._round = server_round
            self._means.clear()
            self._round_began = self._said = self._clock()
        self._phase = phase

    @_never_raises
    def asked(self, clients: int) -> None:
        """Messages to so many clients were sent."""
        self._asked, self._done, self._failed = clients, 0, 0
        self._steps_before = self._steps()
        self._phase_began = self._moved = self._clock()
        self._show()

    @_never_raises
    def replied(self, reply: Message) -> None:
        """A good reply has arrived."""
        self._done += 1
        for name, sums in MEANS.get(self._phase, {}).items():
            self._means[name].add(*sums(reply))

    @_never_raises
    def failed(self) -> None:
        """A client has failed or is lost; the caller has printed why."""
        self._failed += 1
        self._said = self._clock()

    @_never_raises
    def tick(self, describe: Callable[[], str]) -> None:
        """Write the file or print a line if it is time; `describe` names who is waited for."""
        now = self._clock()
        sign = (self._steps(), self._done + self._failed)
        if sign != self._last_sign:
            self._last_sign, self._moved = sign, now
        if self._file is None:
            if now - self._said >= SILENT_SECONDS:
                self._said = now
                self.say(f"{self.snapshot().line}; {describe()}")
        elif now - self._written >= WRITE_SECONDS:
            self._show(describe() if now - self._moved >= STUCK_SECONDS else "")

    @_never_raises
    def refresh(self) -> None:
        """Write the file now: the last reply has arrived."""
        self._show()

    @_never_raises
    def close(self) -> None:
        """The run has ended."""
        self.drop_file()

    def drop_file(self) -> None:
        """Remove the file, so that no screen shows old progress."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def snapshot(self, waiting: str = "") -> Snapshot:
        """The progress now."""
        now = self._clock()
        steps = self._steps() - self._steps_before
        return Snapshot(
            round=self._round,
            rounds=self._rounds,
            phase=self._phase,
            asked=self._asked,
            done=self._done,
            failed=self._failed,
            steps=steps,
            per_second=steps / max(now - self._phase_began, 1e-9) if steps else 0.0,
            accuracy=self._mean("accuracy"),
            label=self._label,
            so_far=self._means["accuracy"].value is not None,
            loss=self._mean("train_loss"),
            test_loss=self._mean("test_loss"),
            left=self._left(now),
            waiting=waiting,
        )

    def _mean(self, name: str) -> float | None:
        """Of this round's replies, else of the last round."""
        so_far = self._means[name].value
        return self._record.get(name) if so_far is None else so_far

    def _left(self, now: float) -> float | None:
        """Seconds until the run's end, if each round takes the mean time of those before."""
        if self._round is None or not self._seconds:
            return None
        each = statistics.fmean(self._seconds)
        of_this = max(0.0, each - (now - self._round_began))
        return of_this + each * (self._rounds - self._round)

    def _show(self, waiting: str = "") -> None:
        if self._file is None:
            return
        self._written = self._clock()
        try:
            write(self._file, self.snapshot(waiting))
        except OSError as error:
            self.drop_file()
            self.say(
                f"progress is printed in lines from now on: its file cannot be written: {error}"
            )
