"""Golden values: what eight small runs come to, so that a change of structure changes nothing.

    python -m tests.golden                 print the values as JSON, with a digest of every adapter
    python -m tests.golden --write         write them, without digests, to tests/golden.json
    python -m tests.golden --command       the first run once more, as a real `fednano run`

Two commits on one machine print the same text. Digests do not go into the file: the last bits of
a sum differ between processors. tests/test_golden.py compares numbers with the file within 1e-5.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file

import fednano_flwr as fednano
from tests.tiny import write_checkpoint, write_scienceqa

FILE = Path(__file__).with_name("golden.json")
CLIENTS = 3
RESUMED = "resumed"  # loses its last checkpoint, and makes that round again
COMMON = {"num-server-rounds": 2, "local-epochs": 1, "adapter.rank": 4, "seed": 3}
PACKED = {"upload.adapters": "int4", "upload.fisher": "log4"}
RUNS: dict[str, dict[str, Any]] = {
    "exact-lowrank": {},
    "fisher-embeddings": {"strategy.name": "fednano", "exchange.kind": "embeddings"},
    "labels-at-client": {"strategy.name": "fedprox", "exchange.labels-at": "client"},
    "packed": {"strategy.name": "fednano-ef", **PACKED},
    "ranks": {"strategy.name": "fedavg-exact", "adapter.ranks": "2,3,4"},
    "flower-own": {"strategy.name": "FedAdam", "strategy.args": "eta=0.01"},
    "private": {
        "strategy.name": "fedavg",
        "strategy.weight-by": "equal",
        "privacy.dp": "server-fixed",
    },
    RESUMED: {"strategy.name": "feddpa-f", "strategy.local-rank": 2, "resume": "auto"},
}


def values(folder: Path, digest: bool) -> dict[str, Any]:
    """What a run has come to: its rounds, and four numbers and a digest of each tensor."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    keys = ("accuracy", "accuracy_per_client", "train_loss")
    rounds = [{key: r[key] for key in keys if r[key] is not None} for r in records]
    adapters: dict[str, Any] = {}
    tensors = load_file(folder / "adapters" / "last" / "adapter_model.safetensors")
    for name, tensor in sorted(tensors.items()):
        flat = tensor.double().flatten()
        numbers = (flat.norm(), flat.sum(), flat[0], flat[-1])
        adapters[name] = [round(float(number), 8) for number in numbers]
        if digest:
            adapters[name].append(hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16])
    return {"rounds": rounds, "adapters": adapters}


@contextmanager
def fixed_noise() -> Iterator[None]:
    """Draw the noise of differential privacy from a fixed seed instead of the system's."""
    seed = np.random.seed
    with mock.patch.object(np.random, "seed", lambda *_: seed(5)):
        yield


def configs(root: Path) -> dict[str, dict[str, Any]]:
    """The overrides of each run, with a tiny model and questions in `root`."""
    model, data = write_checkpoint(root / "model"), write_scienceqa(root / "data")
    places = {"model.name": str(model), "dataset.path": str(data), "run.dir": str(root / "runs")}
    places |= {"edge.feature-dir": str(root / "features")}
    return {
        name: {**COMMON, **places, **changes, "run.name": name, "edge.state-dir": str(root / name)}
        for name, changes in RUNS.items()
    }


def compute(digest: bool = True) -> dict[str, Any]:
    """Run all of them here, one after another, on one thread."""
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr), fixed_noise():
        for name, changes in configs(Path(folder)).items():
            config = fednano.default_config(changes)
            run = fednano.run_in_process(config, CLIENTS)
            if name == RESUMED:
                shutil.rmtree(max((run.path / "checkpoints").iterdir()))
                run = fednano.run_in_process(config, CLIENTS)
            found[name] = values(run.path, digest)
    return found


def by_command() -> dict[str, Any]:
    """The first run as a user starts it: Flower, Ray, and the LLM service over gRPC."""
    with tempfile.TemporaryDirectory() as folder:
        name, changes = next(iter(configs(Path(folder)).items()))
        given = [word for key in changes for word in ("-c", f"{key}={changes[key]}")]
        command = [sys.executable, "-m", "fednano_flwr.cli", "run", "--clients", str(CLIENTS)]
        subprocess.run([*command, *given], check=True, stdout=sys.stderr)
        return {name: values(Path(folder) / "runs" / name, digest=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    parser.add_argument("--command", action="store_true", help="a real `fednano run`")
    given = parser.parse_args()
    found = by_command() if given.command else compute(digest=not given.write)
    text = json.dumps(found, indent=1)
    if given.write:
        FILE.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
