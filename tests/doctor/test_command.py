"""`fednano doctor`, as a user calls it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import Result
from huggingface_hub import constants
from rich.console import Console
from typer.testing import CliRunner

from fednano_flwr.cli import app as cli
from fednano_flwr.config import ConfigError, project
from fednano_flwr.doctor.finding import Finding, Section, look, ok, problem, warning
from fednano_flwr.doctor.report import show
from fednano_flwr.launcher.environment import bin_folder
from fednano_flwr.preflight import Check
from tests.certificates import authority, certificate
from tests.conftest import REPOSITORY

Doctor = Callable[..., Result]
VERSIONS = ("Python", "packages are in their ranges", "flower-superexec")
NOWHERE = "nobody/no-such-model"


@pytest.fixture
def doctor(
    run_config: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Doctor:
    """Runs it with the tiny model and data; the run config is a file, as for other commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(bin_folder()), prepend=os.pathsep)
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(run_config()))

    def call(*arguments: str, as_json: bool = True) -> Result:
        given = ["doctor", "--app", str(REPOSITORY), "-c", "tiny.toml", *arguments]
        return CliRunner().invoke(cli.cli, given + ["--json"] * as_json)

    return call


def findings(result: Result, level: str) -> dict[str, list[str]]:
    """What was said at a level, by theme."""
    said: dict[str, list[str]] = {}
    for finding in json.loads(result.stdout)["findings"]:
        if finding["level"] == level:
            said.setdefault(finding["theme"], []).append(finding["what"])
    return said


def assert_all_well(result: Result, role: str, **themes: tuple[str, ...]) -> None:
    """The themes are these, in order; each one's findings have its words, and there is no other."""
    told = json.loads(result.stdout)
    assert (result.exit_code, told["role"], told["problem"]) == (0, role, 0), result.output
    said = findings(result, "ok")
    assert [theme.replace(" ", "_") for theme in said] == list(themes)
    for theme, words in themes.items():
        found = said[theme.replace("_", " ")]
        assert all(word in what for word, what in zip(words, found, strict=True)), found


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_size, file.stat().st_mode) for file in folder.rglob("*")}


def test_a_server_that_has_all_it_needs_is_well_and_left_as_it_was(
    doctor: Doctor, tmp_path: Path
) -> None:
    before = tree(tmp_path)
    assert_all_well(
        doctor("--role", "server"),
        "server",
        versions=VERSIONS,
        run_config=("the run config of", "strategy fedavg-exact"),
        model=("adapters on image and text", "fit together", "hold the language model"),
        folders=("run.dir", "TMPDIR"),
        certificates=("clock", "llm.tls-cert is not set"),
        network=("any port that is free", "only clients on this machine"),
        machine=("llm.device", "llm.threads", "the language model in float32", "open files"),
    )
    assert tree(tmp_path) == before


def test_a_client_that_has_all_it_needs_is_well_and_left_as_it_was(
    doctor: Doctor, shard_folder: Path, bundle: Path, tmp_path: Path
) -> None:
    before = tree(tmp_path)
    node = f'data-path="{shard_folder}" edge-path="{bundle}" device="cpu" adapter-rank=2'
    assert_all_well(
        doctor("--node-config", node),
        "client",
        versions=VERSIONS,
        run_config=("the run config of", "strategy fedavg-exact"),
        node_config=("partition 1 of 3, its adapters have rank 2 of 4",),
        data=("training and",),
        model=("which was split from", "embeddings of all tokens", "fit together"),
        folders=("edge.state-dir", "edge.feature-dir"),
        certificates=("clock", "without TLS"),
        machine=("device = 'cpu'", "edge.threads", "the client's half in float32"),
    )
    assert tree(tmp_path) == before


def test_a_simulations_machine_is_looked_at_as_a_servers_and_as_a_clients(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = doctor()
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["role"] == "simulation"
    said = findings(result, "ok")
    assert "node config" not in said and "layout of scienceqa" in said["data"][0]
    assert len(said["model"]) == 4 and "client's half" in said["model"][3]
    assert [what.split()[0] for what in said["folders"]] == [
        *("run.dir", "TMPDIR", "edge.state-dir", "edge.feature-dir")
    ]
    for change in ("dataset.path=/nowhere", "privacy.dp=server-fixed"):
        worse = doctor("-c", change)
        assert worse.exit_code == 1 and json.loads(worse.stdout)["problem"] == 1
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "cache"))
    module = "dataset.path=module:fednano_demo.generate/scienceqa"
    assert "writes the data set once" in findings(doctor("-c", module), "ok")["data"][0]
    assert not (tmp_path / "cache").exists()


def test_a_client_that_reads_the_data_set_and_the_checkpoint_is_well(doctor: Doctor) -> None:
    result = doctor("--node-config", "partition-id=0 num-partitions=2")
    assert result.exit_code == 0, result.output
    said = findings(result, "ok")
    assert "partition 0 of 2" in said["node config"][0] and "scienceqa" in said["data"][0]
    assert "client's half" in said["model"][0] and "edge.device = 'cpu'" in said["machine"][0]


def test_everything_that_is_wrong_with_a_client_is_said_at_once(
    doctor: Doctor, shard_folder: Path, bundle: Path, tmp_path: Path
) -> None:
    next((shard_folder / "images").iterdir()).unlink()
    (bundle / "config.json").write_text((bundle / "config.json").read_text() + " ")
    expired = certificate(authority(), start=-2, end=-1).write(tmp_path / "ca")[0]
    node = (
        f'data-path="{shard_folder}" edge-path="{bundle}" device="cuda:99" ca-cert="{expired}" '
        "adapter-rank=99 bundle=1"
    )
    result = doctor("--node-config", node, "--llm", "127.0.0.1:1")
    assert result.exit_code == 1, result.output
    said = {theme: " ".join(whats) for theme, whats in findings(result, "problem").items()}
    for theme, words in {
        "node config": ("bundle", "adapter-rank = 99"),
        "data": ("images/", "No such file"),
        "model": ("config.json is not the file",),
        "certificates": ("node config's ca-cert", "expired"),
        "machine": ("device = 'cuda:99'",),
    }.items():
        assert all(word in said[theme] for word in words), said[theme]
    assert "not tried" in findings(result, "warning")["network"][0]


def test_a_server_is_told_of_its_bundle_its_certificate_and_its_port(
    doctor: Doctor, tmp_path: Path, tiny_model: Path
) -> None:
    cert, key = certificate(authority()).write(tmp_path / "tls")
    changes = [f"llm.tls-cert={cert}", f"llm.tls-key={key}", f"edge.bundle={tiny_model}"]
    changes += ["llm.bind=192.0.2.77", "llm.device=cuda:99"]
    result = doctor(*(part for change in changes for part in ("-c", change)))
    assert result.exit_code == 1, result.output
    said = findings(result, "problem")
    assert "edge.bundle" in said["model"][0] and "192.0.2.77" in said["network"][0]
    assert "llm.device" in said["machine"][0]
    expires, mode, untried = findings(result, "warning")["certificates"]
    assert "0 days" in expires and "mode 06" in mode and "exchange.ca-cert" in untried


@pytest.mark.parametrize(("downloads", "level"), [(True, "warning"), (False, "problem")])
def test_a_model_that_is_not_in_the_cache_is_downloaded_or_not_to_be_had(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, downloads: bool, level: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not downloads)
    result = doctor("-c", f"model.name={NOWHERE}")
    assert all(NOWHERE in what for what in findings(result, level)["model"]), result.output
    assert result.exit_code == (not downloads) and constants.HF_HUB_OFFLINE is not downloads


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("bach-size=4", "batch-size"),
        ("nowhere.toml", "No such file"),
        ("strategy.name=fedagv", "fedagv"),
        ("adapter.ranks=1,2 -c strategy.name=fedavg", "adapter.ranks"),
        ("resume=/no/such/run", "/no/such/run"),
        ("llm.quantization=8bit -c llm.device=mps", "llm.quantization"),
    ],
)
def test_a_run_config_that_cannot_be_used_is_a_problem_beside_the_others(
    doctor: Doctor, override: str, says: str
) -> None:
    result = doctor("-c", *override.split())
    assert result.exit_code == 1, result.output
    (said,) = findings(result, "problem")["run config"]
    assert says in said
    assert {"versions", "certificates"} <= set(findings(result, "ok"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--role", "observer"], "simulation, server, client"),
        (["--role", "server", "--node-config", "partition-id=0"], "--node-config"),
        (["--llm", "somewhere"], "--llm 'somewhere'"),
        (["--superlink", "::1:8000"], "--superlink '::1:8000'"),
    ],
)
def test_a_command_line_that_cannot_be_used_is_refused(
    doctor: Doctor, arguments: list[str], says: str
) -> None:
    result = doctor(*arguments)
    assert result.exit_code == 2 and says in result.output


@pytest.mark.parametrize(
    "node", ["", 'data-path="~nobody-here/x"', rf'edge-path="\u0000" ca-cert="{"x" * 5000}"']
)
def test_no_node_config_stops_the_other_checks(doctor: Doctor, node: str) -> None:
    result = doctor("--node-config", node, "--superlink", "127.0.0.1:1")
    assert result.exit_code == 1, result.output
    assert findings(result, "ok")["machine"]
    assert "SuperLink" in findings(result, "problem")["network"][0]


def test_a_client_without_the_app_is_looked_at_all_the_same(
    shard_folder: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(project, "PACKAGE", tmp_path / "site-packages" / "fednano_flwr")
    node = f'data-path="{shard_folder}" edge-path="{bundle}" device="cpu"'
    result = CliRunner().invoke(cli.cli, ["doctor", "--node-config", node, "--json"])
    assert result.exit_code == 0 and findings(result, "warning")["run config"], result.output
    assert {"data", "model", "certificates", "machine"} <= set(findings(result, "ok"))
    server = CliRunner().invoke(cli.cli, ["doctor", "--json"])
    assert server.exit_code == 1 and "no app to run" in server.output


@pytest.mark.parametrize(
    ("error", "what", "do"),
    [
        (RuntimeError("out of order"), "the shard .*RuntimeError: out of order", "report this"),
        (ImportError("No module named 'torch'"), "the shard .*torch", "versions"),
        (ConfigError("a key: cannot be used; use another"), "a key: cannot be used$", "another"),
    ],
)
def test_a_check_that_fails_itself_is_a_finding(error: Exception, what: str, do: str) -> None:
    def fails() -> list[Finding]:
        raise error

    (found,) = look(Check("data", "the shard", fails))
    assert found.level == "problem" and do in found.do
    assert re.search(what, found.what)


SECTIONS = [
    Section("data", [ok("all [b]there[/b]"), problem("a picture is missing", "copy it")]),
    Section("empty", []),
    Section("machine", [warning("little memory", "buy some")]),
]


@pytest.mark.parametrize(("encoding", "marks"), [("utf-8", "✓✗→"), ("ascii", "+x>")])
def test_levels_are_told_by_marks_and_words(encoding: str, marks: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    show("client", SECTIONS, Console(file=stream, width=60, highlight=False))
    stream.flush()
    lines = [line.split() for line in raw.getvalue().decode(encoding).splitlines()]
    assert [marks[0], "ok", "all", "[b]there[/b]"] in lines
    assert [marks[1], "problem", "a", "picture", "is", "missing"] in lines
    assert [marks[2], "copy", "it"] in lines and ["!", "warning", "little", "memory"] in lines
    assert ["empty"] not in lines
    assert lines[-1] == "client: 1 problem, 1 warning, 1 ok".split()


def test_the_screen_shows_what_json_tells(doctor: Doctor, tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "model-00002-of-00004.safetensors").unlink()
    result = doctor("-c", f"model.name={model}", as_json=False)
    assert result.exit_code == 1
    assert "✗ problem" in result.stdout and "simulation: 1 problem" in result.stdout
    assert "model-00002" in "".join(result.stdout.split())
