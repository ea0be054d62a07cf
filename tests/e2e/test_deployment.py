"""docs/deploy.md, run from its first block to its last: the adapters of one process, bit for bit.

Blocks run as they are on the page, on the machine that each names, with other values for the
page's variables: addresses, ports where machines share a loopback, paths. Copying a client's files
is what the page leaves to people; the test does it. Everything runs on CPUs in float32, where the
same partitions and seed give the same adapters to the last bit, whoever computes them: one process
or the page's machines, although the page stops the run and goes on with it. (`test_simulation.py`
compares simulations with one process.)
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fednano_flwr.config import RunConfig
from fednano_flwr.config.project import flatten, read_toml
from fednano_flwr.in_process import run_in_process
from tests.e2e import page
from tests.e2e.machines import Machine, Place, free_ports, machines

pytestmark = pytest.mark.e2e
CLIENTS = ("client-0", "client-1")
STRANGER = "client-9"
LISTENS = 'until (: <>"/dev/tcp/127.0.0.1/$LINK_PORT") 2>/dev/null; do sleep 0.2; done'
SERVERS_OWN = ("bind", "port", "address", "tls-cert", "tls-key")


def adapters(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapters" / "last" / "adapter_model.safetensors")


def renamed(folder: Path, name: str) -> dict[str, Any]:
    """What the config of a run of its own says of its place."""
    return {"run.name": name, "run.dir": str(folder), "resume": "never"}


def until(what: Callable[[], bool], seconds: float, why: str) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"{why}, after {seconds:.0f} s"
        time.sleep(0.1)


class Deployment:
    """The page's commands on some machines."""

    def __init__(self, place: Place, model: Path, data: Path) -> None:
        self.variables, self.blocks = page.blocks()
        self.server, *self.clients = place.machines
        link, llm, *runtime = free_ports(4)
        for machine in place.machines:
            values: dict[str, object] = {"SERVER": place.address, "FOLDER": machine.folder}
            values |= {"NAME": machine.name, "MODEL": model, "DATA": data}
            values |= {"ROUNDS": 1}
            if not place.apart:
                values |= {"BIND": "127.0.0.1", "LINK_PORT": link, "LLM_PORT": llm}
                if machine is not self.server:
                    values["RUNTIME_PORT"] = runtime.pop()
            machine.variables = page.with_values(self.variables, values)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def on(self, machine: str) -> list[Machine]:
        return [self.server] if machine == page.SERVER else self.clients

    def log(self, name: str) -> Path:
        return self.server.folder.parent / f"{name}.log"

    def carry_out(self, block: page.Block) -> None:
        """Run a block, or start it and see that it lasts."""
        for machine in self.on(block.machine):
            if block.stays:
                name = machine.name
                self.running[name] = machine.start(block.script, self.log(name))
                if machine is self.server:
                    machine.run(LISTENS, timeout=60)
            else:
                with self.log("commands").open("a") as log:
                    print(machine.run(block.script), file=log)

    def hand_over(self) -> None:
        """What the page asks people to copy."""
        for client in self.clients:
            shutil.copy(self.server.folder / f"{client.name}.tar", client.folder)

    def start_stranger(self, block: page.Block) -> None:
        """A SuperNode on the first client with a key that nobody registered."""
        keys = self.server.folder / "keys"
        self.server.run(f'python deploy/make_keys.py add "{keys}" --node {STRANGER}')
        client = self.clients[0]
        shutil.copy(keys / STRANGER, client.folder / "keys")
        (port,) = free_ports(1)
        script = f"NAME={STRANGER}\nRUNTIME_PORT={port}\n{block.script}"
        self.running[STRANGER] = client.start(script, self.log(STRANGER))

    def runs(self) -> list[dict[str, Any]]:
        answer = self.server.run("flwr list fednano --format json")
        return list(json.loads(answer)["runs"])


def follow_the_page(deployment: Deployment) -> None:
    """All blocks in order, and between them what the page leaves to people."""
    for block in deployment.blocks:
        if "tar -C" in block.script and block.machine == page.CLIENTS:
            deployment.hand_over()
        if "flwr stop" in block.script:
            first = deployment.server.folder / "runs" / "first" / "checkpoints" / "round-00000"
            until(first.is_dir, 600, "no checkpoint of the frozen model")
        deployment.carry_out(block)
        if block.stays and block.machine == page.CLIENTS:
            deployment.start_stranger(block)


def test_the_page_leads_to_a_deployment_that_equals_one_process(
    tiny_model: Path,
    tiny_questions: Path,
    defaults: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden = [tiny_model, tiny_questions]
    with machines(tmp_path, ["server", *CLIENTS], hidden) as place:
        with capsys.disabled():
            print(f"\nmachines: {place.words}")
        deployment = Deployment(place, tiny_model, tiny_questions)
        if place.apart:
            nothing = f"ls -A {tiny_model} {tiny_questions} {deployment.server.folder}"
            assert deployment.clients[0].run(nothing).count("safetensors") == 0
        follow_the_page(deployment)

        last, *earlier = sorted(deployment.runs(), key=lambda run: run["pending-at"], reverse=True)
        assert last["status"] == "finished:completed", deployment.log("commands").read_text()
        assert [run["status"] for run in earlier] == ["finished:stopped"]
        assert deployment.running[STRANGER].wait(30) != 0
        assert "305" in deployment.log(STRANGER).read_text(errors="replace")
        assert all(deployment.running[name].poll() is None for name in ("server", *CLIENTS))

    deployed = tmp_path / "server" / "runs" / "first"
    lines = [json.loads(line) for line in (deployed / "metrics.jsonl").read_text().splitlines()]
    assert [sorted(record["accuracy_per_client"]) for record in lines] == [["0", "1"]] * 2
    assert not any(record["failures"]["train"] for record in lines)
    assert len(json.loads((deployed / "environment.json").read_text())["resumed"]) == 1

    config = flatten(read_toml(tmp_path / "server" / "run.toml"))
    config = {k: v for k, v in config.items() if k not in {f"llm.{key}" for key in SERVERS_OWN}}
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "here-cache"))
    whole = {**defaults, **config, **renamed(tmp_path, "here")}
    here = run_in_process(RunConfig.parse(whole), clients=2)
    merged, ours = adapters(deployed), adapters(here.path)
    assert merged.keys() == ours.keys()
    assert any(value.abs().max() > 0 for key, value in ours.items() if "lora_B" in key)
    assert all(torch.equal(merged[key], ours[key]) for key in ours)
