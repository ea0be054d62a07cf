"""The GPU kit on a CPU: all rows run, and it needs only what a GPU machine is asked to have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu import rows, script

ROOT = Path(__file__).parents[1]
NEEDED = "torch transformers peft accelerate grpcio protobuf safetensors numpy pillow".split()
UNUSED = {"psutil", "typer"}
"""Packages that those ask for and do not import for this."""


def with_their_own(names: list[str]) -> set[str]:
    """Distributions, and those that they require."""
    found: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name in found | UNUSED:
            continue
        found.add(name)
        for text in metadata.requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                names.append(wanted.name)
    return found


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the needed packages and to nothing else that is installed."""
    folder = tmp_path_factory.mktemp("packages")
    for name in with_their_own(list(NEEDED)):
        one = metadata.distribution(name)
        for top in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(one.locate_file(top))))
    return folder


def small(folder: Path, packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The kit's small form, in a Python that has those packages alone."""
    command = [sys.executable, "-S", "-m", "benchmarks.gpu", "--small", "--json"]
    return subprocess.run(
        [*command, str(folder / "gpu.json"), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)])},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_all_rows_are_measured_with_the_needed_packages_alone(
    tmp_path: Path, packages: Path
) -> None:
    for name in ("flwr", "ray", "datasets", "rich", "typer", "pyarrow", "psutil", "bitsandbytes"):
        assert not (packages / name).exists()
    ran = small(tmp_path, packages)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    record = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert record["environment"]["packages"]["flwr"] is None
    assert record["not_run"] == [] and record["device"] == "cpu"
    found: dict[str, Any] = record["rows"]
    left_out = {name for name, row in found.items() if "left_out" in row}
    assert left_out == {"eight_bit", "four_bit"}
    assert found["host_flops"]["ratio"] > 0
    assert set(found["overhead"]["ratios"]) == {
        "whole model",
        "split, in-process, lowrank",
        "split, gRPC on loopback, lowrank",
        "split, gRPC on loopback, embeddings",
        "5 clients at once, split, gRPC on loopback, lowrank",
    }
    assert found["overhead"]["without"] == "Flower"
    assert found["many_clients"]["preset"]["image_tokens"] > 0
    assert found["many_clients_text"]["preset"]["image_tokens"] == 0
    assert all(found[name]["ratio"]["median"] > 0 for name in ("many_clients", "many_clients_text"))
    # A checkpointed layer is computed again, and gives the same.
    assert found["checkpointing"]["gradient_error"] == 0
    errors = found["bf16_gradients"]["relative_error"]
    assert 0 < errors["whole model"] < 0.1 and max(errors.values()) < 3 * errors["whole model"]
    kept = found["feature_store"]["bytes_in_memory_and_on_disk"]
    one_picture = 9 * 64 * 2
    assert kept["on the device"] == kept["sent again"] == [2 * one_picture, 0]
    assert kept["on disk"] == [0, 2 * one_picture]
    assert found["device_memory"]["step_bytes"] == {"1": None, "2": None}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run with --small"):
        script.main(["--json", str(tmp_path / "gpu.json")])


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_a_quantized_host_has_fewer_bytes_and_nearly_the_same_gradients(kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    line, figures = rows.quantized(rows.Kit(rows.SMALL, "cpu"), kind)
    assert "gradients' cosine" in line
    assert figures["weights_bytes"]["other"] < figures["weights_bytes"]["plain"]
    least = {"8bit": 0.99, "4bit": 0.9}[kind]
    assert least < figures["gradient_cosine"] < 1


def test_a_row_that_fails_says_why_and_the_next_is_measured() -> None:
    written: list[tuple[list[str], list[str]]] = []

    def fails() -> Any:
        raise torch.OutOfMemoryError("no room")

    def left_out() -> Any:
        raise script.LeftOutError("not here")

    found = script.measure(
        {"a": fails, "b": left_out, "c": lambda: ("good", {"ratio": 1.0})},
        budget=60,
        write=lambda rows, not_run: written.append((list(rows), list(not_run))),
    )
    assert found["a"]["error"] == "OutOfMemoryError: no room"
    assert found["b"]["left_out"] == "not here"
    assert found["c"]["ratio"] == 1.0 and found["c"]["line"] == "good"
    assert written == [
        ([], ["a", "b", "c"]),
        (["a"], ["b", "c"]),
        (["a", "b"], ["c"]),
        (["a", "b", "c"], []),
    ]


def test_no_row_begins_once_the_budget_is_spent(capsys: pytest.CaptureFixture[str]) -> None:
    found = script.measure({"a": lambda: ("good", {})}, budget=0, write=lambda *_: None)
    assert found == {}
    assert "not run, as 0 s were over: a" in capsys.readouterr().out
