"""docs/strategies.md against the code."""

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.config import RunConfig
from fednano_flwr.in_process import run_in_process
from fednano_flwr.strategies.registry import FLOWER, OWN

PAGE = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_every_strategy_is_on_the_page(defaults: dict[str, Any]) -> None:
    rows = re.findall(r"^\| `([^`]+)`( \(default\))? \|.*\|.*\|.*\|.*\|$", PAGE, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(OWN)
    assert [name for name, marked in rows if marked] == [defaults["strategy.name"]]
    assert all(f"`{name}`" in PAGE for name in FLOWER)


def test_a_strategy_takes_one_file(
    run_config: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (file,) = BLOCK.findall(PAGE)
    assert len(file.splitlines()) < 40
    module = types.ModuleType("trimmed_mean")
    exec(compile(file, "trimmed_mean.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)

    ordered = [torch.tensor([value, -value]) for value in (1.0, 8.0, 2.0, 100.0)]
    assert module.trimmed_mean(ordered).tolist() == [5.0, -5.0]

    config = RunConfig.parse(
        run_config(strategy__name="trimmed_mean:TrimmedMean", num_server_rounds=1)
    )
    folder = run_in_process(config, clients=3)
    assert not folder.rounds[1]["failures"]["train"]
    started = adapter_state(build_adapters(48, config.adapter, config.seed))
    assert set(folder.rounds[1]["train_loss_per_client"]) == {"0", "1", "2"}
    merged = load_file(folder.path / "adapters" / "last" / "adapter_model.safetensors")
    assert all(not torch.equal(merged[key], started[key]) for key in started)
