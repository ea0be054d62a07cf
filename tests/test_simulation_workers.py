"""Flower's own pool of Ray workers, one of which is killed as the kernel kills for memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
from flwr.supercore.task_identity import TaskIdentity

from fednano_flwr.rounds.compat import replace_dead_workers
from tests.ray_start import second_chance


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayBackend]:
    monkeypatch.setenv("RAY_ADDRESS", "local")  # as the launcher does: never one that is up
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"num_cpus": 2, "logging_level": "ERROR", "log_to_driver": False}
    config = {"init_args": quiet, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    made = second_chance(lambda: RayBackend(config))
    yield made
    made.terminate()


@pytest.mark.slow
def test_a_dead_worker_is_replaced_and_answers_the_next_message(
    backend: RayBackend, tmp_path: Path
) -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    once = tmp_path / "killed"

    def answer(message: Message, context: Context) -> Message:
        if not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Message(RecordDict(), reply_to=message)

    def app() -> ClientApp:
        made = ClientApp()
        made.train()(answer)
        return made

    replace_dead_workers()
    replace_dead_workers()  # in a process that has run one already
    backend.build(app)
    assert backend.num_workers == 2

    def ask() -> Message:
        message = Message(RecordDict(), 1, MessageType.TRAIN)
        context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
        return backend.process_message(message, context)[0]

    with pytest.raises(ray.exceptions.RayActorError):
        ask()
    for _ in range(3):
        assert ask().has_content()
    assert backend.pool is not None and len(backend.pool.pool) == 2
