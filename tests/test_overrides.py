from __future__ import annotations

from pathlib import Path

import pytest

from fednano_flwr import preflight
from fednano_flwr.config import ConfigError, overrides, project

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("strategy.name=fedavg", "fedavg"),
        ('strategy.name="fedavg"', "fedavg"),
        ("strategy.args=eta=0.01,tau=0.001", "eta=0.01,tau=0.001"),
        ("run.name=7", "7"),
        ("run.name=2024-01-01", "2024-01-01"),
        ("llm.address=", ""),
        ("batch-size = 4", 4),
        ("dataset.alpha=1", 1),
        ("learning-rate=1e-3", 1e-3),
    ],
)
def test_a_value_is_toml_and_else_the_text_itself(text, value):
    assert list(overrides.parse_override(text, Path.cwd()).values()) == [value]


def test_a_file_may_have_tables_or_dotted_keys_and_an_equals_sign_in_its_name(tmp_path):
    (tmp_path / "alpha=0.1.toml").write_text('"dataset.alpha" = 0.1\n[adapter]\nrank = 2')
    flat = overrides.parse_override("alpha=0.1.toml", tmp_path)
    assert flat == {"dataset.alpha": 0.1, "adapter.rank": 2}


def test_the_current_folder_is_the_app_only_if_it_is_fednano(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"')
    assert project.find_app(None, tmp_path) == ROOT
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "fednano-flwr"')
    assert project.find_app(None, tmp_path) == tmp_path
    monkeypatch.setattr(project, "PACKAGE", tmp_path / "site-packages" / "fednano_flwr")
    with pytest.raises(ConfigError, match="--app"):
        project.find_app(None, tmp_path / "elsewhere")


def test_an_app_without_a_run_config_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"')
    with pytest.raises(ConfigError, match=r"no table \[tool.flwr.app.config\]"):
        project.defaults(tmp_path)


def test_a_strategys_key_that_it_does_not_use_is_refused() -> None:
    rate = "strategy.server-rate=1.5"
    with pytest.raises(ConfigError, match=r"strategy\.server-rate = 1\.5: fedavg does not use it"):
        preflight.run_config(ROOT, [rate, "strategy.name=fedavg"], 2, ROOT)
    used = preflight.run_config(ROOT, [rate, "strategy.name=fedavg-exact"], 2, ROOT)
    assert used.strategy.server_rate == 1.5
