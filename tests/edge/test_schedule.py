from typing import Any

import pytest

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.edge.schedule import learning_rate


def rates(defaults: dict[str, Any], rounds: int = 5, **keys: Any) -> list[float]:
    """Of each round, at a full rate of 0.8."""
    changed = {key.replace("_", "-"): value for key, value in keys.items()}
    base = {**defaults, "learning-rate": 0.8, "num-server-rounds": rounds}
    config = RunConfig.parse({**base, **changed})
    return [learning_rate(config, k) for k in range(1, rounds + 1)]


def test_by_default_every_round_has_the_full_rate(defaults: dict[str, Any]) -> None:
    assert rates(defaults) == [0.8] * 5


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # shares 1, 0.8, 0.6, 0.4, 0.2 of it
        ("linear", [0.8, 0.64, 0.48, 0.32, 0.16]),
        # 0.2 + 0.8 (1 + cos) / 2, cos = 1, √½, 0, −√½, −1
        ("cosine", [0.8, 0.70627417, 0.48, 0.25372583, 0.16]),
    ],
)
def test_the_first_round_has_the_full_rate_and_the_last_its_share_by_hand(
    defaults: dict[str, Any], schedule: str, expected: list[float]
) -> None:
    got = rates(defaults, learning_rate_schedule=schedule, learning_rate_end=0.2)
    assert got == pytest.approx(expected)


def test_warm_up_rises_in_equal_steps_to_the_full_rate_by_hand(defaults: dict[str, Any]) -> None:
    keys = {"learning_rate_schedule": "linear", "learning_rate_end": 0.5}
    got = rates(defaults, rounds=6, warm_up_rounds=3, **keys)
    assert got == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.6, 0.4])
    assert rates(defaults, rounds=3, warm_up_rounds=1) == pytest.approx([0.4, 0.8, 0.8])


def test_a_run_of_one_round_has_the_full_rate(defaults: dict[str, Any]) -> None:
    assert rates(defaults, rounds=1, learning_rate_schedule="cosine") == [0.8]


def test_a_warm_up_without_end_is_refused(defaults: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"warm-up-rounds = 5.*num-server-rounds \(5\)"):
        rates(defaults, warm_up_rounds=5)
