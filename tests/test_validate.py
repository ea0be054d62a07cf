from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.command import overrides, validate
from fednano_flwr.config import ConfigError
from tests.certificates import authority, certificate

ROOT = Path(__file__).parents[1]


def refuse(*_: Any) -> None:
    raise ConfigError("there is no such thing")


@pytest.fixture
def names(monkeypatch):
    """What the registries would say, without reading a model."""
    monkeypatch.setattr("fednano_flwr.strategies.registry.check_strategy", lambda *_: None)
    monkeypatch.setattr("fednano_flwr.models.source.check_model", lambda *_: None)
    monkeypatch.setattr("fednano_flwr.models.bundle.check_weights", lambda *_, **__: None)


def config(tmp_path: Path, *changes: str):
    """A run config with a data set that has no questions: nothing may read them yet."""
    (tmp_path / "problems.json").write_text("{}")
    (tmp_path / "pid_splits.json").write_text('{"train": [], "test": []}')
    changes = (f"dataset.path={tmp_path}", *changes)
    return overrides.run_config(ROOT, changes, clients=5, cwd=tmp_path)


def test_names_and_folders_that_exist_pass(names, tmp_path):
    validate.validate(config(tmp_path))


def test_an_unknown_data_set_lists_those_there_are(names, tmp_path):
    with pytest.raises(ConfigError, match="must be one of iconqa, scienceqa"):
        validate.validate(config(tmp_path, "dataset.name=iconqe"))


def test_a_missing_data_folder_is_named(names, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere"):
        validate.validate(config(tmp_path, "dataset.path=nowhere"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("dataset.test-split=minitest", "should list question ids under 'minitest'"),
        ("dataset.tasks=choose_img", "for scienceqa it must be all"),
        ("dataset.partitioner=Dirichlet", "must be one of dirichlet, iid"),
    ],
)
def test_data_settings_that_do_not_fit_the_data_are_refused(names, tmp_path, change, says):
    with pytest.raises(ConfigError, match=says):
        validate.validate(config(tmp_path, change))


def test_a_hub_id_is_not_downloaded_by_checking_it(names, tmp_path, monkeypatch):
    monkeypatch.setattr("fednano_flwr.data.hub.download", refuse)
    validate.validate(config(tmp_path, "dataset.path=derek-thomas/ScienceQA"))


def test_a_data_module_that_is_not_installed_is_named(names, tmp_path):
    with pytest.raises(ConfigError, match="no_such_module is not installed"):
        validate.validate(config(tmp_path, "dataset.path=module:no_such_module/x"))


def test_a_name_that_an_earlier_run_has_is_refused(names, tmp_path):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    validate.validate(config(tmp_path, "run.name=first"))
    (tmp_path / "runs" / "first" / "config.json").touch()
    with pytest.raises(ConfigError, match="holds an earlier run"):
        validate.validate(config(tmp_path, "run.name=first"))


@pytest.mark.parametrize(
    "seam", ["strategies.registry.check_strategy", "models.source.check_model"]
)
def test_an_unknown_strategy_or_model_is_refused(names, tmp_path, monkeypatch, seam):
    monkeypatch.setattr(f"fednano_flwr.{seam}", refuse)
    with pytest.raises(ConfigError, match="no such thing"):
        validate.validate(config(tmp_path))


def test_certificates_are_looked_for_from_the_current_folder_and_checked(names, tmp_path):
    ca = authority()
    ca.write(tmp_path / "ca")
    certificate(ca).write(tmp_path / "own")
    changes = [
        "llm.tls-cert=own/cert.pem",
        "llm.tls-key=own/key.pem",
        "exchange.ca-cert=ca/cert.pem",
    ]
    made = config(tmp_path, *changes)
    assert made.llm.tls_key == str(tmp_path / "own" / "key.pem")
    validate.validate(made)
    with pytest.raises(ConfigError, match=r"llm\.tls-key = .*is not the key of"):
        validate.validate(config(tmp_path, *changes, "llm.tls-key=ca/key.pem"))
    with pytest.raises(ConfigError, match=r"exchange\.ca-cert = .*cannot be read"):
        validate.validate(config(tmp_path, *changes, "exchange.ca-cert=ca/none.pem"))
