"""examples/fednano_in_a_page.py against the package."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fednano_flwr as fednano
from fednano_flwr.models.device import threads

PAGE = Path(__file__).parents[1] / "examples" / "fednano_in_a_page.py"


def test_it_is_a_page() -> None:
    assert len(PAGE.read_text("utf-8").splitlines()) <= 120


@pytest.mark.parametrize(
    "exchange", [pytest.param("embeddings", marks=pytest.mark.slow), "lowrank"]
)
def test_the_page_gives_the_packages_adapters(
    run_config: Callable[..., dict[str, Any]], exchange: str
) -> None:
    """To the last bit over the exchange that sends embeddings, as the page does."""
    changes = {"strategy__name": "fednano", "exchange__kind": exchange, "num_server_rounds": 2}
    config = fednano.RunConfig.parse(run_config(**changes))
    with threads(1):
        theta = runpy.run_path(str(PAGE))["federate"](config, clients=3)
    folder = fednano.run_in_process(config, clients=3)
    adapters = fednano.load_run(folder.path).adapters("last")
    assert len(theta) == len(adapters) == 4
    for mine, (name, own) in zip(theta, sorted(adapters.items()), strict=True):
        close = torch.allclose(mine, own, atol=1e-6)
        assert torch.equal(mine, own) if exchange == "embeddings" else close, name
