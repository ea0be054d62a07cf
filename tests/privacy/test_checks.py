"""Settings whose privacy statement would not hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.preflight import run_config as from_command_line
from fednano_flwr.privacy.checks import check_privacy
from fednano_flwr.strategies.registry import (
    FLOWER,
    MEAN_ONLY,
    OWN,
    check_node_rank,
    check_ranks,
)

ROOT = Path(__file__).parents[2]
UNIFORM = ("fedavg", "fedprox", "feddpa-f", "ffa-lora", "fedsvd", "rolora")
Config = Callable[..., dict[str, Any]]
GOOD = {
    "privacy.dp": "client-fixed",
    "strategy.name": "fedavg",
    "strategy.weight-by": "equal",
}


def check(defaults: dict[str, Any], **changed: Any) -> None:
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in changed.items()}
    check_privacy(RunConfig.parse({**defaults, **GOOD, **keys}))


@pytest.mark.parametrize("name", [*UNIFORM, *MEAN_ONLY])
def test_strategies_of_a_plain_mean_are_accepted(defaults: dict[str, Any], name: str) -> None:
    check(defaults, strategy__name=name)


@pytest.mark.parametrize("name", sorted({*OWN, *FLOWER} - {*UNIFORM, *MEAN_ONLY}))
def test_all_other_strategies_are_refused(defaults: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"privacy\.dp.*strategy\.name = '{name}'.*use one of"):
        check(defaults, strategy__name=name)


def test_weighing_by_the_number_of_questions_is_refused(defaults: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.dp.*weight-by = 'samples'.*\"equal\""):
        check(defaults, strategy__weight_by="samples")


def test_rounding_after_a_client_has_clipped_is_refused(defaults: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.dp.*upload\.adapters.*'server-fixed'"):
        check(defaults, upload__adapters="int8")
    check(defaults, upload__adapters="int8", privacy__dp="server-fixed")


def test_scaling_updates_down_is_refused_with_lower_ranks(defaults: dict[str, Any]) -> None:
    config = RunConfig.parse({**defaults, "bounds.clip-update-norm": 1.0})
    with pytest.raises(ConfigError, match=r"adapter-rank = 4, bounds\.clip-update-norm"):
        check_node_rank(4, config)
    ranked = RunConfig.parse({**config.flat(), "adapter.ranks": "4,16"})
    with pytest.raises(ConfigError, match=r"adapter\.ranks.*bounds\.clip-update-norm"):
        check_ranks(ranked)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["privacy.noise-multiplier=2"], "noise-multiplier = 2.0: privacy.dp = 'none'"),
        (["privacy.dp=server-fixed", "privacy.clip-rate=1"], "'server-adaptive' does"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(given: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        from_command_line(ROOT, given, clients=2, cwd=ROOT)


def test_noise_that_the_count_alone_would_use_up_is_refused(defaults: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.noise-multiplier.*count-noise"):
        check(defaults, privacy__dp="server-adaptive", privacy__count_noise=0.5)
