"""What happens when parts of a real deployment are killed, and how long it takes.

One SuperLink with a database and two supervised SuperNodes; every fault is a SIGKILL. The adapters
at the end are those of a run in one process in which the same client missed the same rounds.
`pytest -s` prints the seconds that docs/running.md names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fednano_flwr import client_app
from fednano_flwr.config import RunConfig
from fednano_flwr.config.project import defaults
from fednano_flwr.in_process import InProcessGrid
from fednano_flwr.launcher.processes import Processes
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.server_app import federate
from tests.conftest import REPOSITORY
from tests.e2e.deployed import Deployment, Run, deployment, wait_for
from tests.proxy import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One deployment for all tests; afterwards none of its processes is left."""
    with deployment(tmp_path_factory.mktemp("deployment")) as one:
        mark = one.link.processes.run_id
        yield one
    assert Processes(mark).look() == set()


@pytest.fixture
def settings(tiny_model: Path, tiny_questions: Path, tmp_path: Path) -> Settings:
    """A run of the tiny model with shared and local adapters, whose training takes some seconds."""

    def make(name: str, **keys: Any) -> dict[str, Any]:
        own = {
            "model.name": str(tiny_model),
            "dataset.path": str(tiny_questions),
            "run.dir": str(tmp_path / "runs"),
            "run.name": name,
            "run.keep-checkpoints": 9,
            "edge.state-dir": str(tmp_path / "state" / name),
            "edge.feature-dir": str(tmp_path / "features"),
            "strategy.name": "feddpa-f",
            "strategy.local-rank": 2,
            "adapter.rank": 4,
            "llm.port": free_port(),
            "batch-size": 2,
            "local-epochs": 6,
        }
        return {**defaults(REPOSITORY), **own, **keys}

    return make


def undisturbed(
    flat: dict[str, Any], killed: tuple[int, ...] = (), lost: tuple[int, ...] = ()
) -> RunFolder:
    """The same run in this process.

    Args:
        killed: rounds in whose training client 1 fails at once.
        lost: rounds in which it trains and keeps what is its own, and its reply is lost.
    """
    healthy = client_app.Client.train

    def train(self: client_app.Client, theta: Any, llm: Any, number: int, work: Any) -> Any:
        if self.partition != 1 or number not in killed + lost:
            return healthy(self, theta, llm, number, work)
        if number in lost:
            healthy(self, theta, llm, number, work)
        raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_app.Client, "train", train)
        return federate(InProcessGrid(client_app.app, flat, 2), 1, RunConfig.parse(flat))


def assert_same(one: Path, other: Path) -> None:
    file = Path("adapters", "last", "adapter_model.safetensors")
    first, second = load_file(one / file), load_file(other / file)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def kept(flat: dict[str, Any]) -> dict[int, dict[str, torch.Tensor]]:
    """What client 1 kept as its own, by the round of training."""
    files = Path(flat["edge.state-dir"]).glob("*/client-1/local-adapter.*.safetensors")
    return {int(file.name.split(".")[1]): load_file(file) for file in files}


def training(place: Deployment, run: Run, number: int, port: int) -> Any:
    """Client 1's process once it makes steps of this round's training."""
    run.round_is_over(number - 1)
    process = wait_for(f"training of round {number}", lambda: place.nodes[1].client(port))
    time.sleep(0.3)
    return process


def report(what: str, seconds: float) -> None:
    print(f"measured: {what}: {seconds:.1f} s", flush=True)


def test_clients_and_supernodes_that_are_killed_miss_their_round_and_come_back(
    place: Deployment, settings: Settings
) -> None:
    place.start_nodes()
    flat = settings("shaken", **{"num-server-rounds": 5})
    port = flat["llm.port"]
    run = place.submit(flat)
    failed = "round {}, training: client 1 failed"

    client = training(place, run, 2, port)
    killed = time.monotonic()
    client.kill()
    report("client process killed, until its failure", run.said(failed.format(2)) - killed)

    training(place, run, 3, port)
    node, starts = place.nodes[1], place.nodes[1].starts
    killed = time.monotonic()
    node.kill()
    report("SuperNode killed, until its failure", run.said(failed.format(3)) - killed)
    run.round_is_over(4)
    report(
        f"SuperNode started {node.starts - starts} times; round 4 over", time.monotonic() - killed
    )

    training(place, run, 5, port)
    killed = time.monotonic()
    node.end()
    report("SuperNode gone for good, until its failure", run.said(failed.format(5)) - killed)
    assert place.ended(run) == "finished:completed", run.text()
    report("SuperNode gone for good, until the run's end", time.monotonic() - killed)

    trained = [sorted(r["train_loss_per_client"]) for r in run.rounds()]
    assert trained == [[], ["0", "1"], ["0"], ["0"], ["0", "1"], ["0"]], run.text()
    calm, own = settings("calm", **{"num-server-rounds": 5}), kept(flat)
    # A client process outlives its SuperNode, long enough perhaps to keep what it has trained.
    lost = tuple(number for number in (3, 5) if number in own)
    killed_in = tuple(number for number in (2, 3, 5) if number not in own)
    assert_same(run.folder, undisturbed(calm, killed_in, lost).path)
    expected = kept(calm)
    assert sorted(own) == sorted(expected) and {1, 4} <= set(own) and 2 not in own
    for number, tensors in expected.items():
        assert all(torch.equal(value, own[number][key]) for key, value in tensors.items()), number


def test_a_run_whose_serverapp_and_then_superlink_are_killed_is_resumed_and_ends_the_same(
    place: Deployment, settings: Settings
) -> None:
    place.start_nodes()
    flat = settings("resumed", **{"num-server-rounds": 2, "resume": "auto"})
    port = flat["llm.port"]

    run = place.submit(flat)
    training(place, run, 1, port)
    killed = time.monotonic()
    place.server_app().kill()
    assert place.ended(run) == "finished:failed"
    report("ServerApp killed, until the run counts as failed", time.monotonic() - killed)

    run = place.submit(flat)
    run.said("resumed  after round 0")
    report("ServerApp killed, until the resumed run goes on", time.monotonic() - killed)
    training(place, run, 2, port)
    killed = time.monotonic()
    place.kill_superlink()
    time.sleep(5)
    place.restart_superlink()
    status = wait_for("the SuperLink", lambda: answered(place, run), 60)
    report(f"SuperLink killed, until it says {status}", time.monotonic() - killed)
    assert place.ended(run) == "finished:failed"
    report("SuperLink killed, until the run counts as failed", time.monotonic() - killed)

    run = place.submit(flat)
    run.said("resumed  after round 1")
    report("SuperLink killed, until the resumed run goes on", time.monotonic() - killed)
    assert place.ended(run) == "finished:completed", run.text()
    assert [r["round"] for r in run.rounds()] == [0, 1, 2]
    assert all(sorted(r["accuracy_per_client"]) == ["0", "1"] for r in run.rounds())
    calm = settings("straight", **{"num-server-rounds": 2})
    assert_same(run.folder, undisturbed(calm).path)


def answered(place: Deployment, run: Run) -> str:
    try:
        return place.link.status(run.run_id())[0]
    except Exception:
        return ""
