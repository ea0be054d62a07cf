"""The same app in Ray's simulation and on real SuperNodes: the same adapters, to the last bit.

One SuperNode has the whole data set and the checkpoint and takes its part; the other was given its
own shard and an edge bundle, as `fednano partition` and `fednano split` write them. The LLM service
of the SuperNodes speaks TLS; one has its CA from the run config, the other from its node config.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from fednano_flwr.command.superlink import CONNECTION, superlink
from tests.certificates import authority, certificate
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.e2e
Config = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(run_config: Config, tmp_path: Path) -> Config:
    """Two rounds of the tiny model on two clients."""

    def make(name: str) -> dict[str, Any]:
        return run_config(run__name=name, num_server_rounds=2, batch_size=8, seed=3)

    return make


def adapters(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    folder = Path(config["run.dir"]) / config["run.name"] / "adapters" / "last"
    return load_file(folder / "adapter_model.safetensors")


def fednano(*arguments: str) -> None:
    command = [sys.executable, "-m", "fednano_flwr.cli", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=180)
    assert result.returncode == 0, result.stdout + result.stderr


def simulate(config: dict[str, Any], folder: Path) -> None:
    file = folder / f"{config['run.name']}.toml"
    file.write_text(tomli_w.dumps(config))
    fednano("run", "--clients", "2", "-c", str(file))


def deploy(config: dict[str, Any], folder: Path) -> str:
    """Run on a SuperLink and two SuperNodes, each message in a process of its own, over TLS."""
    ca = authority()
    trusted, _ = ca.write(folder / "ca")
    cert, key = certificate(ca).write(folder / "certificate")
    names = ("llm.tls-cert", "llm.tls-key", "exchange.ca-cert")
    config = {**config, **dict(zip(names, (cert, key, trusted), strict=True))}
    file = folder / "deployed.toml"
    file.write_text(tomli_w.dumps(config))
    state = folder / "deployment"
    state.mkdir()
    shards, bundle = folder / "shards", folder / "bundle"
    fednano("partition", "--clients", "2", "-c", str(file), "--out", str(shards))
    shard = str(shards / "client-1")
    fednano("split", config["model.name"], "--out", str(bundle), "--shard", shard)
    nodes = (
        "partition-id=0 num-partitions=2",
        f'data-path="{shard}" bundle-path="{bundle}" ca-cert="{trusted}"',
    )
    with superlink(state, simulation=False) as link:
        for partition, node_config in enumerate(nodes):
            log = (state / f"supernode-{partition}.log").open("wb")
            link.start(
                "flower-supernode",
                *("--insecure", "--superlink", link.address, "--port", str(free_port())),
                *("--node-config", node_config),
                stdout=log,
                stderr=log,
            )
        output = link.flwr(
            "run", str(REPOSITORY), CONNECTION, "--stream", "--run-config", str(file), timeout=240
        )
        found = re.search(r"started run (\d+)", output)
        assert found is not None, output
        for _ in range(20):
            status, _ = link.status(int(found[1]))
            if status.startswith("finished"):
                break
            time.sleep(0.5)
    assert status == "finished:completed", output
    return output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_simulation_repeats_itself_with_replicas_and_deployment_equals_it(
    settings: Config, tmp_path: Path
) -> None:
    first, deployed = settings("first"), settings("deployed")
    second = {**settings("second"), "llm.replicas": 2}
    simulate(first, tmp_path)
    simulate(second, tmp_path)
    output = deploy(deployed, tmp_path)

    expected = adapters(first)
    assert any(value.abs().max() > 0 for key, value in expected.items() if "lora_B" in key)
    repeated, distributed = adapters(second), adapters(deployed)
    assert all(torch.equal(repeated[key], expected[key]) for key in expected)
    assert all(torch.equal(distributed[key], expected[key]) for key in expected)

    metrics = (Path(deployed["run.dir"]) / "deployed" / "metrics.jsonl").read_text().splitlines()
    rounds = [json.loads(line) for line in metrics]
    assert [sorted(record["accuracy_per_client"]) for record in rounds] == [["0", "1"]] * 3
    assert not any(record["failures"]["train"] for record in rounds)
    assert "fednano | written to" in output
