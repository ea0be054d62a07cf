"""`fednano doctor`, as a user calls it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from fednano_flwr.cli import app as cli
from fednano_flwr.config import ConfigError, project
from fednano_flwr.doctor.finding import Section, look, ok, problem, warning
from fednano_flwr.doctor.report import show, summary
from fednano_flwr.launcher.environment import bin_folder
from tests.certificates import authority, certificate

ROOT = Path(__file__).parents[2]
Doctor = Callable[..., Result]


@pytest.fixture
def doctor(
    run_config: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Doctor:
    """Runs it with the tiny model and data; the run config is a file, as for other commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(bin_folder()), prepend=os.pathsep)
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(run_config()))

    def call(*arguments: str) -> Result:
        given = ["doctor", "--app", str(ROOT), "-c", "tiny.toml", *arguments]
        return CliRunner().invoke(cli.cli, given)

    return call


def findings(result: Result, level: str) -> dict[str, list[str]]:
    """What was said at a level, by theme."""
    said: dict[str, list[str]] = {}
    for finding in json.loads(result.stdout)["findings"]:
        if finding["level"] == level:
            said.setdefault(finding["theme"], []).append(finding["what"])
    return said


def assert_said(said: dict[str, list[str]], theme: str, *words: str) -> None:
    """Each finding of a theme has its words, in order, and there is no other."""
    assert [word in what for word, what in zip(words, said[theme], strict=True)] == [True] * len(
        words
    ), said[theme]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_size, file.stat().st_mode) for file in folder.rglob("*")}


def test_a_server_that_has_all_it_needs_is_well_and_left_as_it_was(
    doctor: Doctor, tmp_path: Path
) -> None:
    before = tree(tmp_path)
    result = doctor("--role", "server", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["role"] == "server" and told["problem"] == 0
    themes = ["versions", "run config", "model", "folders", "certificates", "network", "machine"]
    said = findings(result, "ok")
    assert list(said) == themes
    for words in (
        ("versions", "Python", "packages are in their ranges", "flower-superexec"),
        ("run config", "the run config of", "strategy fedavg-exact"),
        ("model", "hold the language model", "fit together"),
        ("folders", "run.dir", "TMPDIR"),
        ("certificates", "llm.tls-cert is not set", "clock"),
        ("network", "any port that is free", "only clients on this machine"),
        ("machine", "llm.device", "llm.threads", "the language model in float32", "open files"),
    ):
        assert_said(said, *words)
    assert tree(tmp_path) == before


def test_a_client_that_has_all_it_needs_is_well_and_left_as_it_was(
    doctor: Doctor, shard_folder: Path, bundle: Path, tmp_path: Path
) -> None:
    before = tree(tmp_path)
    node = f'data-path="{shard_folder}" edge-path="{bundle}" device="cpu" adapter-rank=2'
    result = doctor("--node-config", node, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["role"] == "client"
    said = findings(result, "ok")
    for words in (
        ("versions", "Python", "packages are in their ranges", "flower-superexec"),
        ("run config", "the run config of", "strategy fedavg-exact"),
        ("node config", "adapters have rank 2 of 4"),
        ("data", "training and"),
        ("model", "files as written", "fit together", "was split from", "embeddings of all tokens"),
        ("folders", "edge.state-dir", "edge.feature-dir"),
        ("certificates", "without TLS", "clock"),
        ("machine", "device = 'cpu'", "edge.threads", "the client's half in float32"),
    ):
        assert_said(said, *words)
    assert tree(tmp_path) == before


def test_a_simulations_machine_is_looked_at_as_a_servers_and_as_a_clients(doctor: Doctor) -> None:
    result = doctor("--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["role"] == "simulation"
    said = findings(result, "ok")
    assert_said(said, "data", "looks like scienceqa")
    assert_said(said, "model", "hold the language model", "fit together", "hold the client's half")
    assert_said(said, "folders", "run.dir", "TMPDIR", "edge.state-dir", "edge.feature-dir")
    assert "node config" not in said
    for change in ("dataset.path=/nowhere", "privacy.dp=server-fixed"):
        worse = doctor("-c", change, "--json")
        assert worse.exit_code == 1 and json.loads(worse.stdout)["problem"] == 1


def test_a_client_that_reads_the_data_set_and_the_checkpoint_is_well(doctor: Doctor) -> None:
    result = doctor("--node-config", "partition-id=0 num-partitions=2", "--json")
    assert result.exit_code == 0, result.output
    said = findings(result, "ok")
    assert_said(said, "node config", "partition 0 of 2")
    assert_said(said, "data", "looks like scienceqa")
    assert_said(said, "model", "hold the client's half", "fit together")
    assert_said(said, "machine", "edge.device = 'cpu'", "edge.threads", "the client's half")


def test_everything_that_is_wrong_with_a_client_is_said_at_once(
    doctor: Doctor, shard_folder: Path, bundle: Path, tmp_path: Path
) -> None:
    next((shard_folder / "images").iterdir()).unlink()
    (bundle / "config.json").write_text((bundle / "config.json").read_text() + " ")
    expired = certificate(authority(), start=-2, end=-1).write(tmp_path / "ca")[0]
    node = (
        f'data-path="{shard_folder}" edge-path="{bundle}" device="cuda:99" ca-cert="{expired}" '
        "adapter-rank=99 bundle-path=1"
    )
    result = doctor("--node-config", node, "--llm", "127.0.0.1:1", "--json")
    assert result.exit_code == 1, result.output
    said = findings(result, "problem")
    assert "missing" in said["data"][0]
    assert "config.json is not the file" in said["model"][0]
    assert (
        "node config's ca-cert" in said["certificates"][0] and "expired" in said["certificates"][0]
    )
    assert "device = 'cuda:99'" in said["machine"][0]
    assert ["bundle-path: no such key" in what for what in said["node config"]] == [True, False]
    assert "adapter-rank = 99" in said["node config"][1]
    assert "not tried" in findings(result, "warning")["network"][0]


def test_a_server_is_told_of_its_bundle_its_certificate_and_its_port(
    doctor: Doctor, tmp_path: Path, tiny_model: Path
) -> None:
    cert, key = certificate(authority()).write(tmp_path / "tls")
    arguments = [f"llm.tls-cert={cert}", f"llm.tls-key={key}", f"edge.bundle={tiny_model}"]
    arguments += ["llm.bind=192.0.2.77", "llm.device=cuda:99"]
    result = doctor("--json", *(part for each in arguments for part in ("-c", each)))
    assert result.exit_code == 1, result.output
    said = findings(result, "problem")
    assert "edge.bundle" in said["model"][0] and "192.0.2.77" in said["network"][0]
    assert "llm.device" in said["machine"][0]
    warned = findings(result, "warning")["certificates"]
    assert ["expires in 0 days" in warned[0], "mode 06" in warned[1]] == [True, True]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("bach-size=4", "Did you mean batch-size?"),
        ("nowhere.toml", "No such file"),
        ("batch-size=0", "at least 1"),
        ("strategy.name=fedagv", "fedagv"),
        ("adapter.ranks=1,2 -c strategy.name=fedavg", "adapter.ranks"),
        ("resume=/no/such/run", "/no/such/run"),
        ("llm.quantization=8bit -c llm.device=mps", "llm.quantization"),
    ],
)
def test_a_run_config_that_cannot_be_used_is_a_problem_beside_the_others(
    doctor: Doctor, override: str, says: str
) -> None:
    result = doctor("--json", "-c", *override.split())
    assert result.exit_code == 1, result.output
    (said,) = findings(result, "problem")["run config"]
    assert says in said
    assert {"versions", "certificates"} <= set(findings(result, "ok"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--role", "observer"], "must be one of simulation, server, client"),
        (["--role", "server", "--node-config", "partition-id=0"], "leave one out"),
        (["--llm", "somewhere"], "--llm 'somewhere': give HOST:PORT"),
        (["--superlink", "::1:8000"], "--superlink '::1:8000': put an IPv6 address in brackets"),
    ],
)
def test_a_command_line_that_cannot_be_used_is_refused(
    doctor: Doctor, arguments: list[str], says: str
) -> None:
    result = doctor(*arguments)
    assert result.exit_code == 2 and says in result.output


@pytest.mark.parametrize(
    "node",
    ["", "?", 'data-path="~nobody-here/x"', r'edge-path="\u0000"', f'ca-cert="{"x" * 5000}"'],
)
def test_no_node_config_stops_the_other_checks(doctor: Doctor, node: str) -> None:
    result = doctor("--json", "--node-config", node, "--superlink", "127.0.0.1:1")
    assert result.exit_code == 1, result.output
    assert findings(result, "ok")["machine"]
    assert "SuperLink" in findings(result, "problem")["network"][0]


def test_a_client_without_the_app_is_looked_at_all_the_same(
    shard_folder: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(project, "PACKAGE", tmp_path / "site-packages" / "fednano_flwr")
    node = f'data-path="{shard_folder}" edge-path="{bundle}"'
    result = CliRunner().invoke(cli.cli, ["doctor", "--node-config", node, "--json"])
    assert result.exit_code == 0, result.output
    assert "--app" not in findings(result, "warning")["run config"][0]
    assert {"data", "model", "certificates"} <= set(findings(result, "ok"))
    server = CliRunner().invoke(cli.cli, ["doctor", "--json"])
    assert server.exit_code == 1 and "no app to run" in server.output


def test_a_check_that_fails_itself_is_a_finding() -> None:
    def fails() -> list[Any]:
        raise RuntimeError("out of order")

    def lacks() -> list[Any]:
        raise ImportError("No module named 'torch'")

    def refuses() -> list[Any]:
        raise ConfigError("a key: cannot be used")

    assert look("the shard", fails)[0].level == "problem"
    assert (
        "the shard could not be looked at: RuntimeError: out of" in look("the shard", fails)[0].what
    )
    assert "versions" in look("the shard", lacks)[0].do
    assert look("the shard", refuses) == [problem("a key: cannot be used")]


SECTIONS = [
    Section("data", [ok("all [b]there[/b]"), problem("a picture is missing", "copy it")]),
    Section("empty", []),
    Section("machine", [warning("little memory", "buy some")]),
]


def shown(encoding: str) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    show("client", SECTIONS, Console(file=stream, width=60, highlight=False))
    stream.flush()
    return raw.getvalue().decode(encoding)


def test_levels_are_told_by_marks_and_words() -> None:
    lines = [line.split() for line in shown("utf-8").splitlines()]
    assert ["✓", "ok", "all", "[b]there[/b]"] in lines
    assert ["✗", "problem", "a", "picture", "is", "missing"] in lines
    assert ["→", "copy", "it"] in lines and ["!", "warning", "little", "memory"] in lines
    assert "empty" not in shown("utf-8")
    assert lines[-1] == "client: 1 problem, 1 warning, 1 well".split()
    assert "all 1 checks are well" in summary("client", [Section("data", [ok("all")])])


def test_a_screen_without_the_marks_gets_others() -> None:
    assert ["x", "problem", "a", "picture", "is", "missing"] in [
        line.split() for line in shown("ascii").splitlines()
    ]


def test_the_screen_shows_what_json_tells(doctor: Doctor, tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "model-00002-of-00004.safetensors").unlink()
    result = doctor("-c", f"model.name={model}")
    assert result.exit_code == 1
    assert "✗ problem" in result.stdout and "simulation: 1 problem" in result.stdout
    assert "model-00002" in "".join(result.stdout.split())
