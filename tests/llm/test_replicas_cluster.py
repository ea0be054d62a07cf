"""Replicas on several machines: a Ray cluster, of which a node is lost in the middle of a round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray._private.state import actors
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from fednano_flwr.config import RunConfig
from fednano_flwr.in_process import run_in_process
from fednano_flwr.llm.replicas import Replicas
from fednano_flwr.runs.folder import RunFolder
from tests.ray_start import second_chance


def adapters(folder: RunFolder) -> dict[str, torch.Tensor]:
    files = sorted((folder.path / "checkpoints").rglob("*.safetensors"))
    return {f"{path}/{k}": v for path in files for k, v in load_file(path).items()}


@pytest.mark.slow
def test_a_node_lost_in_the_middle_of_a_round_changes_no_bit(
    run_config: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run_in_process(RunConfig.parse(run_config(exchange__kind="lowrank")), 2)

    head = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False}
    cluster = second_chance(lambda: Cluster(initialize_head=True, head_node_args=head))
    lost = cluster.add_node(num_cpus=1, num_gpus=1)
    cluster.wait_for_nodes()
    steps: list[int] = []
    places: set[str] = set()
    call = Replicas._call

    def losing(self: Replicas, name: str, owner: bytes, *arguments: Any) -> Any:
        if name == "step":
            steps.append(self._replica_of(owner).number)
            if len(steps) > 2 and len(set(steps)) == 2 and lost in cluster.worker_nodes:
                places.update(one["Address"]["NodeID"] for one in actors().values())
                cluster.remove_node(lost, allow_graceful=False)
        return call(self, name, owner, *arguments)

    monkeypatch.setattr(Replicas, "_call", losing)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    overrides = {"exchange__kind": "lowrank", "llm__replicas": 2, "run__name": "replicas"}
    overrides["llm__replica_gpus"] = 1.0  # in Ray's books alone: so that each node gets a replica
    try:
        spread = run_in_process(RunConfig.parse(run_config(**overrides)), 2)
    finally:
        cluster.shutdown()
    assert lost not in cluster.worker_nodes
    assert len(places) == 2  # so that a replica was lost with the node
    found, expected = adapters(spread), adapters(alone)
    paths = [{key.split("checkpoints")[1] for key in one} for one in (found, expected)]
    assert paths[0] == paths[1]
    for (_, ours), (_, theirs) in zip(sorted(found.items()), sorted(expected.items()), strict=True):
        assert torch.equal(ours, theirs)
