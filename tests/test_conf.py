"""Every file of conf/ as the command line reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fednano_flwr.cli import app as cli
from fednano_flwr.config import RunConfig
from fednano_flwr.config.overrides import parse_override
from fednano_flwr.data.partition import check_partitioner
from fednano_flwr.preflight import run_config
from fednano_flwr.strategies.registry import check_ranks, make_strategy

ROOT = Path(__file__).parents[1]
FILES = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "conf").rglob("*.toml"))


def load(*overrides: str) -> RunConfig:
    return run_config(ROOT, overrides, clients=5, cwd=ROOT)


@pytest.mark.parametrize("file", FILES)
def test_a_conf_file_can_be_used(file: str) -> None:
    config = load(file)
    make_strategy(config.strategy)
    check_ranks(config)
    check_partitioner(config.dataset)


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("conf/demo/")])
def test_a_variant_of_the_demo_changes_all_that_it_names(file: str) -> None:
    defaults = load().flat()
    for key, value in parse_override(file, ROOT).items():
        assert value != defaults[key], key


@pytest.mark.parametrize("file", FILES)
def test_conf_files_that_a_conf_file_names_are_there(file: str) -> None:
    named = re.findall(r"conf/[\w./-]+\.toml", (ROOT / file).read_text())
    assert set(named) <= set(FILES)


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("conf/paper/")])
def test_what_nobody_has_run_says_so(file: str) -> None:
    text = (ROOT / file).read_text()
    assert "Not run here" in text and "starting points" in text


def test_the_demos_variants_change_what_their_names_say() -> None:
    plain = load()
    for name in ("rank-4", "rank-32"):
        adapter = load(f"conf/demo/{name}.toml").adapter
        assert f"rank-{adapter.rank}" == name
        assert adapter.alpha / adapter.rank == plain.adapter.alpha / plain.adapter.rank
    passes = plain.local_epochs * plain.num_server_rounds
    for name in ("epochs-1x10", "epochs-5x2"):
        config = load(f"conf/demo/{name}.toml")
        assert f"epochs-{config.local_epochs}x{config.num_server_rounds}" == name
        assert config.local_epochs * config.num_server_rounds == passes
    for site in ("image", "text"):
        assert load(f"conf/demo/{site}-only.toml").adapter.sites == site


def test_clients_with_different_tasks_share_no_skill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    arguments = ["partition", "--map-only", "-c", "conf/demo/tasks.toml", "--clients", "5"]
    result = CliRunner().invoke(cli.cli, [*arguments, "--out", str(tmp_path / "map")])
    assert result.exit_code == 0, result.output
    clients = json.loads((tmp_path / "map" / "partition.json").read_text())["clients"]
    skills = [set(client["train_groups"]) for client in clients]
    assert [len(own) for own in skills] == [3] * 5
    assert len(set.union(*skills)) == 15
    for client, own in zip(clients, skills, strict=True):
        assert set(client["test_groups"]) == own
