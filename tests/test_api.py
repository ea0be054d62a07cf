"""The names for notebooks and scripts, as their page has them."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fednano_flwr
from fednano_flwr import in_process
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.data.errors import DataError
from fednano_flwr.runs.results import read_rounds
from tests.conftest import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "two_clients.py"
PAGE = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", fednano_flwr.__all__)
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(fednano_flwr, name).__doc__


def test_the_page_lists_all_names() -> None:
    listed = re.findall(r"^\| `(\w+)", PAGE, flags=re.MULTILINE)
    assert sorted(listed) == sorted(fednano_flwr.__all__)


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import fednano_flwr, sys; print('torch' in sys.modules, 'flwr' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.split() == ["False", "False"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nano_edge"):
        fednano_flwr.nano_edge  # noqa: B018


def test_the_example_is_short_and_on_the_page_and_trains(
    run_config: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = EXAMPLE.read_text(encoding="utf-8")
    assert len(code.splitlines()) < 40
    assert code[code.index("import ") :] in PAGE
    flat = run_config(learning_rate=0.01)
    monkeypatch.setattr(
        "fednano_flwr.config.project.default_config",
        lambda changes: RunConfig.parse(flat | {**changes, "local-epochs": 3}),
    )
    example = runpy.run_path(str(EXAMPLE))
    example["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["round 0", "round 1", "round 2"]
    assert lines[2] != lines[0].replace("round 0", "round 2")  # what was trained is what scores


def test_a_run_is_read_with_its_adapters(
    run_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    config = RunConfig.parse(run_config(num_server_rounds=1))
    made = fednano_flwr.run_in_process(config, 2)
    run = fednano_flwr.load_run(made.path)
    assert run.config == config and [r["round"] for r in run.rounds] == [0, 1]
    assert any(value.abs().max() > 0 for value in run.adapters().values())
    assert set(run.adapters("best")) == set(run.adapters("last"))
    with pytest.raises(ValueError, match="first"):
        run.adapters("first")
    file = made.path / "adapters" / "last" / "adapter_model.safetensors"
    save_file({name: value / 0 for name, value in run.adapters().items()}, file)
    with pytest.raises(ConfigError, match="not finite"):
        run.adapters()


def test_questions_that_cannot_be_dealt_are_refused_before_the_llm_is_loaded(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fednano_flwr.rounds.service.open_host", lambda *_: pytest.fail("loaded"))
    config = RunConfig.parse(run_config(dataset__min_partition_size=50))
    with pytest.raises(DataError, match=r"dataset\.min-partition-size = 50"):
        fednano_flwr.run_in_process(config, 5)


def test_pytorch_has_as_many_threads_after_the_api_as_before(
    run_config: Callable[..., dict[str, Any]],
) -> None:
    torch.set_num_threads(2)
    config = RunConfig.parse(run_config(num_server_rounds=1, local_epochs=1))
    fednano_flwr.run_in_process(config, 2)
    assert torch.get_num_threads() == 2
    client = fednano_flwr.Client(config, fednano_flwr.ClientSpec(0, 2))
    theta = fednano_flwr.adapter_state(client.edge.adapters)
    with fednano_flwr.load_host(config.model.name, config.llm) as host:
        assert torch.get_num_threads() == config.llm.threads == 1
        client.evaluate(theta, host, 0, fednano_flwr.LocalWork())
    assert torch.get_num_threads() == 2
    with pytest.raises(ConfigError):
        fednano_flwr.load_host("nowhere/at/all", config.llm)
    assert torch.get_num_threads() == 2


def test_a_second_run_in_a_process_is_refused_until_the_first_has_ended(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.parse(run_config(num_server_rounds=0))
    healthy, refused = in_process.server_app.federate, []

    def federate(*args: Any) -> Any:
        with ThreadPoolExecutor() as pool:
            refused.append(pool.submit(fednano_flwr.run_in_process, config, 2).exception())
        return healthy(*args)

    monkeypatch.setattr(in_process.server_app, "federate", federate)
    assert len(fednano_flwr.run_in_process(config, 2).rounds) == 1
    assert isinstance(refused[0], RuntimeError) and "under way" in str(refused[0])
    again = RunConfig.parse(run_config(num_server_rounds=0, run__name="again"))
    assert len(fednano_flwr.run_in_process(again, 2).rounds) == 1


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run's folder: .*config.json is missing"):
        fednano_flwr.load_run(tmp_path)
    for name in ("config.json", "environment.json"):
        (tmp_path / name).write_text(json.dumps({}))
    (tmp_path / "metrics.jsonl").write_text('{"round": 0}\n{"rou')  # a run that was killed
    assert [record["round"] for record in read_rounds(tmp_path)] == [0]
    (tmp_path / "metrics.jsonl").write_text("{broken\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        fednano_flwr.load_run(tmp_path)


def test_a_default_config_takes_changes_and_refuses_unknown_keys() -> None:
    config = fednano_flwr.default_config({"dataset.alpha": 0.25})
    assert config.dataset.alpha == 0.25 and config.seed == 0
    with pytest.raises(ConfigError, match="alfa"):
        fednano_flwr.default_config({"dataset.alfa": 0.25})
