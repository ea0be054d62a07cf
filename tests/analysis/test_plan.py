"""Which runs a command line asks for, and what it may not ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.analysis.experiments.plan import (
    CompareOptions,
    Plan,
    make_plan,
    parse_seeds,
    parse_vary,
)
from fednano_flwr.config import ConfigError
from tests.conftest import REPOSITORY

FILES = {
    "fedavg": '[strategy]\nname = "fedavg"',
    "usual": "# as pyproject.toml has it",
    "again": 'strategy.name = "fedavg"\nedge.feature-dir = "f"',
    "own": "batch-size = 1\nlearning-rate = 0.1\nlocal-epochs = 1",
    "bad": "bach-size = 4",
    "wrong": "adapter.rank = 0",
    "seeded": "seed = 3",
}


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    for name, text in FILES.items():
        (tmp_path / f"{name}.toml").write_text(text)

    def make(*names: str, app: Path = REPOSITORY, **options: Any) -> Plan:
        asked = {"seeds": "0..1", "vary": [], "overrides": [], "clients": 5, "baseline": None}
        files = [Path(f"{name}.toml") for name in names or ("fedavg", "usual")]
        asked |= {"files": files, "out": Path("out"), "name": "table", **options}
        return make_plan(app, CompareOptions(**asked), tmp_path)

    return make


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0..3", [0, 1, 2, 3]), ("7", [7]), ("4, 0..1,1", [4, 0, 1]), ("2..2", [2])],
)
def test_seeds_are_ranges_and_numbers_joined_by_commas(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3..1", "0...2", "1,,2", "-1", "0..1000"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


def test_a_value_with_a_comma_goes_in_quotes(tmp_path: Path) -> None:
    varied = parse_vary('adapter.sites=image,"image,text"', tmp_path)
    assert varied == ("adapter.sites", ["image", "image,text"])
    assert parse_vary("dataset.alpha=1,0.10,1.0", tmp_path)[1] == [1.0, 0.1]


def test_every_setting_has_every_seed_of_every_experiment(plan: Callable[..., Plan]) -> None:
    found = plan(vary=["dataset.alpha=0.1,1", "adapter.rank=4,8"])
    assert [setting.label for setting in found.settings] == [
        f"alpha={alpha},rank={rank}" for alpha in ("0.1", "1") for rank in (4, 8)
    ]
    assert len(found.runs) == len({run.folder for run in found.runs}) == 4 * 2 * 2
    first = [(run.seed, run.experiment) for run in found.runs[:4]]
    assert first == [(0, "fedavg"), (0, "usual"), (1, "fedavg"), (1, "usual")]
    last = found.runs[-1]
    assert (last.config.dataset.alpha, last.config.adapter.rank, last.config.seed) == (1.0, 8, 1)
    assert str(last) == "usual  alpha=1 rank=8 seed 1"
    assert found.baseline == "fedavg"
    assert found.default == dict.fromkeys(found.settings, "usual")


def test_settings_that_differ_in_a_late_digit_have_labels_of_their_own(
    plan: Callable[..., Plan],
) -> None:
    found = plan(vary=["dataset.alpha=0.1234567,0.1234568"])
    assert [setting.label for setting in found.settings] == ["alpha=0.1234567", "alpha=0.1234568"]


def test_an_app_with_other_code_than_is_imported_is_refused(
    plan: Callable[..., Plan], tmp_path: Path
) -> None:
    app = tmp_path / "checkout"
    (app / "fednano_flwr").mkdir(parents=True)
    (app / "pyproject.toml").write_text((REPOSITORY / "pyproject.toml").read_text())
    with pytest.raises(ConfigError, match=f"pip install -e {app}"):
        plan(app=app)
    (app / "fednano_flwr").rmdir()
    assert plan(app=app).runs


def test_vary_wins_over_overrides_and_these_over_the_files(plan: Callable[..., Plan]) -> None:
    overrides = ["learning-rate=0.2", "local-epochs=2"]
    config = plan("own", overrides=overrides, vary=["local-epochs=3"]).runs[0].config
    assert (config.batch_size, config.learning_rate, config.local_epochs) == (1, 0.2, 3)


def test_experiments_with_the_same_config_share_their_runs_and_others_do_not(
    plan: Callable[..., Plan],
) -> None:
    found = plan("fedavg", "usual", "again")
    assert len(found.runs) == 6 and len(found.distinct) == 4
    assert [run.experiment for run in found.distinct] == ["fedavg", "usual"] * 2
    more = {run.folder for run in plan(clients=6).runs}
    assert not more & {run.folder for run in found.runs}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"files": [Path("bad.toml")]}, "bad.toml: unknown key bach-size. Did you mean batch-size"),
        ({"files": [Path("wrong.toml")]}, "wrong.toml: adapter.rank = 0"),
        ({"files": [Path("seeded.toml")]}, "seeded.toml: seed is set by the comparison"),
        ({"files": [Path("none.toml")]}, "none.toml: No such file"),
        ({"files": [Path("strategy.name=fedavg")]}, ".toml"),
        ({"files": [Path("usual.toml"), Path("sub/usual.toml")]}, "two experiments of that name"),
        ({"files": [Path("default.toml")]}, "default.toml: "),
        ({"overrides": ["run.name=x"]}, "-c run.name=x: run.name is set by the comparison"),
        ({"overrides": ["llm.port=5000"]}, "fedavg.toml: llm.port = 5000"),
        ({"overrides": ["llm.address=h:1"]}, "llm.address = 'h:1'"),
        ({"overrides": ["llm.replicas=2"]}, "fedavg.toml: llm.replicas = 2"),
        ({"overrides": ["min-replies=6"]}, "fedavg.toml: min-replies = 6"),
        ({"vary": ["seed=1,2"]}, "--vary seed=1,2: seed is set by the comparison; give --seeds"),
        ({"vary": ["dataset.alpha"]}, "--vary dataset.alpha: "),
        ({"vary": ["dataset.alpha=1,,2"]}, "--vary dataset.alpha=1,,2: "),
        ({"vary": ["dataset.alpha=1,-1"]}, "fedavg.toml with alpha=-1: dataset.alpha = -1.0"),
        ({"vary": ["seed.x=1"]}, "unknown key seed.x"),
        ({"vary": ["adapter.rank=1", "adapter.rank=2"]}, "--vary adapter.rank: is given twice"),
        ({"baseline": "fednano"}, "there are fedavg, usual"),
        ({"name": "runs"}, "--name 'runs'"),
        ({"name": "../x"}, "--name '../x'"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_file_or_option(
    plan: Callable[..., Plan], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan(**options)
    assert says in str(refused.value)
    assert str(refused.value).count(".toml: ") <= 1
