"""The command as a user gives it: on the demo, on real samples, and where a run cannot go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent import futures
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch

from fednano_flwr.config import RunConfig
from fednano_flwr.in_process import run_in_process
from fednano_flwr.runs.folder import RunFolder
from tests import families
from tests.outcome import adapters, assert_same

pytestmark = pytest.mark.e2e


def fednano(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fednano_flwr.cli", "run", *arguments]
    environment = {**os.environ, "FEDNANO_TEST_MARK": str(cwd)}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=600
    )


def marked(folder: Path) -> list[str]:
    """Names of processes that were started with a variable naming `folder`."""
    names = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("FEDNANO_TEST_MARK") == str(folder):
                names.append(process.name())
    return names


def rounds(folder: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def in_one_process(config: dict[str, Any], clients: int, folder: Path) -> RunFolder:
    """The same run without Flower's simulation, beside it."""
    same = {**config, "run.name": "here", "edge.state-dir": str(folder / "clients")}
    return run_in_process(RunConfig.parse(same), clients=clients)


def test_the_demo_gains_accuracy_and_writes_its_run_and_one_process_does_the_same(
    tmp_path: Path,
) -> None:
    changes = ("num-server-rounds=1", "dataset.test-split=val", "run.name=demo")
    result = fednano(*(part for change in changes for part in ("-c", change)), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / "runs" / "demo"
    records = rounds(folder)
    assert [record["round"] for record in records] == [0, 1]
    assert 0.4 < records[0]["accuracy"] < 0.75
    assert records[-1]["accuracy"] >= records[0]["accuracy"] + 0.05
    assert records[-1]["test_loss"] < records[0]["test_loss"]
    for key in ("round_bytes_up", "round_bytes_down", "step_bytes_up", "step_bytes_down"):
        assert records[1][key] > 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapters",
        "checkpoints",
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "state.json",
    ]
    for which in ("last", "best"):
        assert (folder / "adapters" / which / "adapter_config.json").exists()
    config = json.loads((folder / "config.json").read_text())
    assert config["num-server-rounds"] == 1 and config["strategy.name"] == "fedavg-exact"
    for said in ("server   LLM half", "clients  NanoEdge", "round  1", "Accuracy against", "mean"):
        assert said in result.stdout
    assert str(folder) in result.stdout
    assert marked(tmp_path) == []
    here = in_one_process(config, 5, tmp_path)
    theirs, ours = adapters(folder), adapters(here.path)
    assert ours.keys() == theirs.keys() and max(v.abs().max() for v in ours.values()) > 0
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for one, other in zip(here.rounds, records, strict=True):
        assert one["accuracy_per_client"] == other["accuracy_per_client"]
        assert one["round_bytes_up"] == pytest.approx(other["round_bytes_up"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("sites", ["all", "all,llm"])
def test_a_worker_that_is_killed_is_replaced_and_its_client_asked_again(
    tmp_path: Path, sites: str
) -> None:
    """Also where the client's session at the host is left behind."""
    changes = ["num-server-rounds=2", "local-epochs=1", "run.name=killed", f"adapter.sites={sites}"]
    command = [sys.executable, "-m", "fednano_flwr.cli", "run", "--clients", "3"]
    command += [part for change in changes for part in ("-c", change)]
    environment = {**os.environ, "FEDNANO_TEST_MARK": str(tmp_path)}
    said = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            said.append(line)
            if line.startswith("round  1"):
                kill_a_worker(tmp_path)
    assert run.returncode == 0, "".join(said)
    assert "the client is asked again" in "".join(said)
    folder = tmp_path / "runs" / "killed"
    last = rounds(folder)[-1]
    assert len(last["accuracy_per_client"]) == len(last["train_loss_per_client"]) == 3
    assert last["failures"] == {"train": {}, "evaluate": {}}
    config = json.loads((folder / "config.json").read_text())
    assert_same(adapters(folder), adapters(in_one_process(config, 3, tmp_path).path))
    inside = (folder / "adapters" / "last" / "llm" / "adapter_model.safetensors").exists()
    assert inside == ("llm" in sites)


def kill_a_worker(folder: Path) -> None:
    """SIGKILL one of the processes that simulated clients run in, as the kernel does for memory."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("FEDNANO_TEST_MARK") == str(folder) and any(
                "ray::ClientAppActor" in word for word in process.cmdline()
            ):
                process.kill()
                return


@pytest.mark.slow
def test_a_simulation_with_two_replicas_of_the_llm_gives_the_adapters_of_one_process(
    tmp_path: Path,
) -> None:
    changes = ("num-server-rounds=1", "local-epochs=1", "llm.replicas=2", "run.name=two")
    options = [part for change in changes for part in ("-c", change)]
    result = fednano("--clients", "2", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / "runs" / "two"
    config = json.loads((folder / "config.json").read_text()) | {"llm.replicas": 1}
    theirs, ours = adapters(folder), adapters(in_one_process(config, 2, tmp_path).path)
    assert theirs.keys() == ours.keys() and max(v.abs().max() for v in ours.values()) > 0
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dataset"),
    [
        ("instructblip", "iconqa"),
        pytest.param("llava", "scienceqa", marks=pytest.mark.slow),
    ],
)
def test_real_samples_run_to_the_end_and_report_every_kind(
    sample_data: Path, tmp_path: Path, family: str, dataset: str
) -> None:
    model = families.write(family, tmp_path / "model")
    result = fednano(
        *("--clients", "2", "-c", f"dataset.name={dataset}", "-c", f"model.name={model}"),
        *("-c", f'dataset.path="{sample_data / dataset}"', "-c", "dataset.max-skipped=0.5"),
        *("-c", "num-server-rounds=1", "-c", "local-epochs=1", "-c", "run.name=real"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    said = {
        "iconqa": ("choose_img", "choose_txt", "fill_in_blank"),
        "scienceqa": ("521 questions: picture file is missing", "text only", "natural science"),
    }
    for text in ("with picture (IMG)", *said[dataset]):
        assert text in result.stdout
    last = rounds(tmp_path / "runs" / "real")[-1]
    tested = {"iconqa": 27, "scienceqa": 241}[dataset]
    assert sum(last["test_questions_per_client"].values()) == tested
    assert last["accuracy_by"]["all"]["questions"] == tested
    assert last["train_loss"] > 0


@pytest.mark.slow
def test_too_many_unreadable_questions_are_listed_before_anything_starts(
    sample_data: Path, tmp_path: Path
) -> None:
    result = fednano("-c", f"dataset.path={sample_data / 'scienceqa'}", cwd=tmp_path)
    assert result.returncode == 2
    assert "521 of 1282 questions" in result.stderr and "dataset.max-skipped" in result.stderr
    assert "picture file is missing" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_run_without_enough_replies_fails_and_says_why(tmp_path: Path) -> None:
    other = grpc.server(futures.ThreadPoolExecutor(1))  # it answers, and is no LLM host
    address = f"127.0.0.1:{other.add_insecure_port('127.0.0.1:0')}"
    other.start()
    result = fednano("--clients", "2", "-c", f"llm.address={address}", cwd=tmp_path)
    other.stop(0).wait()
    assert result.returncode == 1
    assert "0 of 2 clients replied, min-replies is 1" in result.stdout
    assert f"LLM host {address}" in result.stdout


@pytest.mark.slow
def test_a_typo_is_an_error_that_lists_what_there_is(tmp_path: Path) -> None:
    result = fednano("-c", "strategy.name=fednani", cwd=tmp_path)
    assert result.returncode == 2
    assert "fednano-ef" in result.stderr and "Traceback" not in result.stderr
