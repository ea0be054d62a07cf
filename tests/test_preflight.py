from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, MessageType, RecordDict
from typer.testing import CliRunner

from fednano_flwr import client_app, preflight, server_app
from fednano_flwr.base import output
from fednano_flwr.cli.app import cli
from fednano_flwr.config import ConfigError, RunConfig, machine
from fednano_flwr.in_process import run_in_process
from fednano_flwr.models.bundle import HALVES
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.split import write_bundle
from tests.certificates import authority, certificate
from tests.local_grid import LocalGrid
from tests.tiny import write_checkpoint

ROOT = Path(__file__).parents[1]


def refuse(*_: Any) -> None:
    raise ConfigError("there is no such thing")


@pytest.fixture
def names(monkeypatch):
    """What the registries would say, without reading a model."""
    monkeypatch.setattr("fednano_flwr.strategies.registry.make_strategy", lambda *_: None)
    monkeypatch.setattr("fednano_flwr.models.bundle.check_half", lambda *_: "")


def config(tmp_path: Path, *changes: str):
    """A run config with a data set that has no questions: nothing may read them yet."""
    (tmp_path / "problems.json").write_text("{}")
    (tmp_path / "pid_splits.json").write_text('{"train": [], "test": []}')
    changes = (f"dataset.path={tmp_path}", *changes)
    return preflight.run_config(ROOT, changes, clients=5, cwd=tmp_path)


def test_where_nothing_is_wrong_nothing_is_left_or_downloaded(names, tmp_path, monkeypatch):
    preflight.validate(config(tmp_path, "run.dir=a/b", "edge.state-dir=c"))
    assert {path.name for path in tmp_path.rglob("*")} == {"problems.json", "pid_splits.json"}
    monkeypatch.setattr("fednano_flwr.data.hub.download", refuse)
    preflight.validate(config(tmp_path, "dataset.path=derek-thomas/ScienceQA"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("dataset.name=iconqe", "iconqa, .*scienceqa"),
        ("dataset.path=nowhere", "no .*nowhere"),
        ("dataset.path=module:no_such_module/x", "no_such_module"),
        ("dataset.test-split=minitest", "minitest"),
        ("dataset.tasks=choose_img", r"dataset\.tasks"),
        ("dataset.partitioner=Dirichlet", "dirichlet, iid"),
    ],
)
def test_data_settings_that_do_not_fit_the_data_are_refused(names, tmp_path, change, says):
    with pytest.raises(ConfigError, match=says):
        preflight.validate(config(tmp_path, change))


def test_a_name_that_an_earlier_run_has_is_refused(names, tmp_path):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    preflight.validate(config(tmp_path, "run.name=first"))
    (tmp_path / "runs" / "first" / "config.json").touch()
    with pytest.raises(ConfigError, match=r"run\.name = 'first'"):
        preflight.validate(config(tmp_path, "run.name=first"))


@pytest.mark.parametrize("seam", ["strategies.registry.make_strategy", "models.bundle.check_half"])
def test_an_unknown_strategy_or_model_is_refused(names, tmp_path, monkeypatch, seam):
    monkeypatch.setattr(f"fednano_flwr.{seam}", refuse)
    with pytest.raises(ConfigError, match="no such thing"):
        preflight.validate(config(tmp_path))


def test_certificates_are_looked_for_from_the_current_folder_and_checked(names, tmp_path):
    ca = authority()
    ca.write(tmp_path / "ca")
    certificate(ca).write(tmp_path / "own")
    own = ["llm.tls-cert=own/cert.pem", "llm.tls-key=own/key.pem", "exchange.ca-cert=ca/cert.pem"]
    made = config(tmp_path, *own)
    assert made.llm.tls_key == str(tmp_path / "own" / "key.pem")
    preflight.validate(made)
    for change, says in (("llm.tls-key=ca/key.pem", "tls-cert"), ("exchange.ca-cert=x", "read")):
        with pytest.raises(ConfigError, match=f"{change.partition('=')[0]} = .*{says}"):
            preflight.validate(config(tmp_path, *own, change))


REFUSED = [
    ("strategy.name=FedTrimmedAvg strategy.args=beta=0.7", r"strategy\.args.*beta"),
    ("strategy.name=Krum strategy.args=num_malicious_nodes=5", "13 clients.*are 3"),
    ("dataset.metric=bleu", r"dataset\.metric = .bleu.*exact, contains, vqa"),
    ("llm.address=localhost", r"llm\.address.*HOST:PORT"),
    ("llm.device=x", r"llm\.device = 'x'"),
    ("llm.device=mps", r"llm\.device = 'mps'"),
    ("edge.device=meta", r"edge\.device = 'meta'"),
    ("edge.device=cuda:63", r"edge\.device = 'cuda:63'"),
    ("run.dir=file/runs", r"run\.dir.*file.*cannot be written"),
    ("edge.state-dir=file/state", r"edge\.state-dir.*cannot be written"),
    ("edge.feature-dir=/proc/features", r"edge\.feature-dir.*cannot be written"),
    ("run.trackers=mlflow", "mlflow"),
    ("llm.metrics=127.0.0.1:0", "prometheus"),
]
COMPARE_SETS = ("run.dir", "llm.address", "edge.state-dir")


@pytest.fixture
def tiny(run_config, tmp_path, monkeypatch) -> list[str]:
    """`-c` of a run on tiny inputs, in a folder of its own that also has a file."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # not installed
    monkeypatch.setattr("fednano_flwr.llm.metrics.prometheus", None)
    monkeypatch.setattr("fednano_flwr.models.llm_half.load_llm_half", refuse)
    flat = run_config()
    return [f"{key}={flat[key]}" for key in ("model.name", "dataset.path", "dataset.alpha")]


@pytest.mark.parametrize(("asked", "says"), REFUSED)
def test_what_can_be_known_is_refused_before_anything_is_started(
    asked, says, tiny, tmp_path, monkeypatch
):
    """By the command, a comparison, in one process and by the app of the side that it is of."""
    changes = asked.split()
    given = [part for text in (*tiny, *changes) for part in ("-c", text)]
    monkeypatch.setattr("fednano_flwr.cli.app.launch", refuse)
    result = CliRunner().invoke(cli, ["run", "--clients", "3", "--app", str(ROOT), *given])
    assert result.exit_code == 2 and re.search(says, result.stderr), result.output
    if not changes[0].startswith(COMPARE_SETS):
        (tmp_path / "own.toml").write_text("")
        command = ["compare", "own.toml", "--seeds", "0", "--clients", "3", "--app", str(ROOT)]
        result = CliRunner().invoke(cli, [*command, *given])
        assert result.exit_code == 2 and re.search(says, result.stderr), result.output
    assert not (tmp_path / "runs" / "compare").exists()
    try:
        parsed = preflight.run_config(ROOT, [*tiny, *changes], clients=3, cwd=tmp_path)
    except ConfigError:
        return
    with pytest.raises(ConfigError, match=says):
        run_in_process(parsed, 3)
    grid = LocalGrid(client_app.app, parsed.flat(), 3)
    if changes[0].startswith("edge."):
        (reply,) = grid.answer(Message(RecordDict(), next(iter(grid.nodes)), MessageType.EVALUATE))
        assert re.search(says, reply.error.reason), reply.error
    elif "num_malicious" not in changes[-1]:  # how many clients there are is known later
        with pytest.raises(ConfigError, match=says):
            server_app.federate(grid, 1, parsed)


@pytest.mark.parametrize(
    ("strategy", "args", "says"),
    [
        ("FedAdam", "eta=nan", r"strategy\.args.*eta"),
        ("FedAvgM", "server_momentum=inf", "server_mom"),
        ("Krum", "num_malicious_nodes=0.5", "0.5.*whole"),
        ("MultiKrum", "num_nodes_to_select=0", "1 or more"),
        ("Bulyan", "num_malicious_nodes=1", "7 clients.*are 3"),
        ("Bulyan", "", "3 clients.*are 2"),
    ],
)
def test_arguments_that_a_strategy_cannot_have_are_refused(tmp_path, strategy, args, says):
    given = [f"strategy.name={strategy}", *([f"strategy.args={args}"] if args else [])]
    with pytest.raises(ConfigError, match=says):
        made = preflight.run_config(ROOT, given, 3 if args else 2, tmp_path)
        preflight.check_all(preflight.server_checks(made))


def test_a_strategy_that_stands_so_many_wrong_clients_passes(tmp_path):
    for strategy, wrong, clients in (("Krum", 1, 5), ("MultiKrum", 0, 2), ("Bulyan", 1, 7)):
        args = [f"strategy.name={strategy}", f"strategy.args=num_malicious_nodes={wrong}"]
        preflight.run_config(ROOT, args, clients, tmp_path)


def test_seeds_beyond_64_bits_are_refused_by_the_key(tiny, tmp_path):
    given = [part for text in tiny for part in ("-c", text)]
    seed = "99999999999999999999"
    run = ["run", "--app", str(ROOT), *given, "-c", f"seed={seed}"]
    (tmp_path / "own.toml").write_text("")
    compared = ["compare", "own.toml", "--app", str(ROOT), *given, "--seeds", seed]
    for command in (run, compared):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 2 and re.search("seeds?.*2\\^63", result.stderr), result.output


@pytest.mark.parametrize(
    "address",
    [
        *("localhost", "localhost:", ":8000", "::1:8000", "[::1]", "[::1:8000", "::1]:8000"),
        *("h:0", "h:65536", "h:-1", "h:８０", "http://h:80", "a b:80", "[h]:80", "h:80/x", " "),
    ],
)
def test_an_address_that_nobody_can_dial_is_refused(names, tmp_path, address):
    asked = config(tmp_path, f'llm.address="{address}"')
    with pytest.raises(ConfigError, match=r"llm\.address = .*(HOST:PORT|brackets)"):
        preflight.check_all(preflight.server_checks(asked))


@pytest.mark.parametrize("address", ["localhost:1", "192.0.2.7:9093", "[::1]:80", "a-b.c:65535"])
def test_an_address_with_a_port_is_taken(names, tmp_path, address):
    asked = config(tmp_path, f'llm.address="{address}"')
    preflight.check_all(preflight.server_checks(asked))


def test_a_model_that_lacks_a_file_is_refused_before_the_llm_is_loaded(
    tiny_model, run_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("fednano_flwr.models.llm_half.load_llm_half", refuse)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    whole = ModelCheckpoint(str(model))
    llm, edge = ({whole.files[name][0] for name in whole.tensors(half)} for half in HALVES)
    lost = min(llm - edge)
    (model / lost).unlink()
    parsed = RunConfig.parse(run_config(model__name=str(model)))
    with pytest.raises(ConfigError, match=lost):
        preflight.validate(parsed)
    with pytest.raises(ConfigError, match=lost):
        server_app.federate(LocalGrid(None, {}, 1), 1, parsed)


def test_the_server_of_a_simulation_reads_the_data_before_it_loads_the_llm(
    run_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(server_app, "is_simulation", lambda grid: True)
    empty = config(tmp_path).dataset.path
    parsed = RunConfig.parse(run_config(dataset__path=empty))
    with pytest.raises(ConfigError, match="no training question"):
        server_app.federate(LocalGrid(None, {}, 1), 1, parsed)


def test_a_bundle_of_another_model_is_refused_before_the_run(tiny_model, run_config, tmp_path):
    def validate(bundle: Path) -> None:
        preflight.validate(RunConfig.parse(run_config(edge__bundle=str(bundle))))

    write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "own")
    validate(tmp_path / "own")
    write_bundle(
        ModelCheckpoint(str(write_checkpoint(tmp_path / "other", seed=1))), tmp_path / "bundle"
    )
    with pytest.raises(ConfigError, match=r"edge\.bundle = .*model\.name"):
        validate(tmp_path / "bundle")
    with pytest.raises(ConfigError, match=r"edge\.bundle = .*edge_bundle\.json"):
        validate(tiny_model)


@pytest.mark.parametrize(
    ("clients", "cpus", "gpus", "says"),
    [
        (2, 5, 0, "--client-cpus 5: this machine has 4"),
        (2, 1, 1.5, "--client-gpus 1.5"),
        (2, 1, float("nan"), "--client-gpus nan"),
        (2, 1, float("inf"), "--client-gpus inf"),
        (2, 1, 3, "PyTorch sees 2 GPUs"),
        (0, 1, 0, "--clients 0"),
    ],
)
def test_what_ray_could_never_schedule_is_refused(monkeypatch, clients, cpus, gpus, says):
    monkeypatch.setattr(machine, "cpus", lambda: 4)
    monkeypatch.setattr(machine, "gpus", lambda: 2)
    with pytest.raises(ConfigError, match=says):
        preflight.validate_machine(clients, cpus, gpus)


def test_a_full_folder_for_temporary_files_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(output.OutputError, match=f"TMPDIR = {tmp_path}"):
        preflight.validate_machine(1, 1, 0.0)


def test_a_round_is_trained_by_as_many_as_have_to_reply(tmp_path):
    few = ["fraction-train=0.2", "min-replies=5", "strategy.name=Krum"]
    preflight.run_config(ROOT, [*few, "strategy.args=num_malicious_nodes=1"], 5, tmp_path)
    with pytest.raises(ConfigError, match="min-replies = 5"):
        preflight.run_config(ROOT, few, 4, tmp_path)
