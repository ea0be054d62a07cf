"""A model on the hub at one of its commits: which is loaded, recorded and compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fednano_flwr.ask.opening import open_asker
from fednano_flwr.cli.app import cli
from fednano_flwr.config import ConfigError, Model, RunConfig
from fednano_flwr.exchange.errors import HostRefusedError
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.export.command import export
from fednano_flwr.in_process import run_in_process
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.bundle import EdgeBundle, check_bundle, check_half
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.models.split import write_bundle
from tests.export.made_up import write_run
from tests.files import hub_cache

HUB_ID = "org/tiny"
OLD, NEW = "a" * 40, "b" * 40
Config = Callable[..., dict[str, Any]]


@pytest.fixture
def cached(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with two commits that differ in one number, which no fingerprint sees."""
    newer = Path(shutil.copytree(tiny_model, tmp_path / "newer"))
    for file in newer.glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors:
            if "lm_head" in name:
                tensors[name].view(-1)[100] += 1
        save_file(tensors, file, metadata={"format": "pt"})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commits = {OLD: tiny_model, NEW: newer}
    return hub_cache(tmp_path / "hub", HUB_ID, commits, main=NEW, v1=OLD)


def head(revision: str) -> torch.Tensor:
    (_, tensor), *_ = ModelCheckpoint(HUB_ID, revision).read(["lm_head.weight"])
    return tensor


def test_a_branch_a_tag_and_a_commit_name_a_revision(cached: Path) -> None:
    for revision, commit in (("", NEW), ("main", NEW), ("v1", OLD), (OLD, OLD)):
        checkpoint = ModelCheckpoint(HUB_ID, revision)
        assert checkpoint.revision == commit and checkpoint.folder == cached / "snapshots" / commit
    assert (head(NEW) - head("v1")).count_nonzero() == 1
    assert ModelCheckpoint(HUB_ID, OLD).fingerprint == ModelCheckpoint(HUB_ID, NEW).fingerprint


def test_weights_are_of_the_commit_that_the_config_is_of(cached: Path) -> None:
    checkpoint = ModelCheckpoint(HUB_ID)
    (cached / "refs" / "main").write_text(OLD)  # the branch moves on meanwhile
    assert checkpoint.path("config.json").parent.name == NEW


def test_a_revision_that_is_not_there_is_named(cached: Path) -> None:
    with pytest.raises(ConfigError, match=r"org/tiny.*model\.revision = 'v7'"):
        ModelCheckpoint(HUB_ID, "v7")
    with pytest.raises(ConfigError, match=r"org/tiny@v1.*goes into model\.revision"):
        ModelCheckpoint(f"{HUB_ID}@v1")


def test_a_shard_that_the_cache_lacks_is_named_with_its_model(cached: Path) -> None:
    name = ModelCheckpoint(HUB_ID, OLD).files["lm_head.weight"][0]
    (cached / "snapshots" / OLD / name).unlink()
    with pytest.raises(ConfigError, match=rf"{HUB_ID}.*{name}.*{OLD}"):
        load_llm_half(HUB_ID, revision=OLD)


def test_halves_of_different_revisions_are_refused_with_both_named(cached: Path) -> None:
    half = load_edge_half(HUB_ID, revision="v1")
    with serve(FrozenLLM(load_llm_half(HUB_ID))) as address:
        with RemoteLLM(address, retry_seconds=0) as remote:
            assert remote.describe().revision == NEW
            what = half.model, half.fingerprint, half.hidden_size, half.hub_id
            with pytest.raises(HostRefusedError, match=f"{NEW}.*{OLD}"):
                remote.register(*what, half.revision)
            remote.register(*what, NEW)
            remote.register(*what)  # of a folder, which has none


def test_a_bundle_records_its_revision(cached: Path, tmp_path: Path) -> None:
    write_bundle(ModelCheckpoint(HUB_ID, "v1"), tmp_path / "bundle")
    bundle = str(tmp_path / "bundle")
    assert EdgeBundle(bundle).revision == load_edge_half(bundle).revision == OLD
    check_bundle("edge.bundle", bundle, Model(HUB_ID, OLD))
    with pytest.raises(ConfigError, match=f"edge.bundle.*{OLD}.*{NEW}"):
        check_bundle("edge.bundle", bundle, Model(HUB_ID))


def test_the_revision_of_the_run_is_checked(cached: Path) -> None:
    shutil.rmtree(cached / "snapshots" / OLD)
    check_half(Model(HUB_ID), "llm")
    with pytest.raises(ConfigError, match="v1"):
        check_half(Model(HUB_ID, "v1"), "llm")


def test_a_run_records_the_commit_and_is_continued_with_no_other(
    cached: Path, run_config: Config
) -> None:
    flat = run_config(model__name=HUB_ID, model__revision="v1", num_server_rounds=1)
    folder = run_in_process(RunConfig.parse(flat), clients=2).path
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["model_revision"] == OLD and environment["model"]["hub_id"] == HUB_ID
    assert environment["dataset_revision"] == ""

    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0])
    shutil.rmtree(folder / "checkpoints" / "round-00001")
    (cached / "refs" / "v1").write_text(NEW)
    with pytest.raises(ConfigError, match=f"{OLD}.*{NEW}"):
        run_in_process(RunConfig.parse({**flat, "resume": "auto"}), clients=2)


def test_what_is_made_of_a_run_has_the_runs_commit(
    cached: Path, run_config: Config, tmp_path: Path
) -> None:
    """Though its config names a branch, which has moved on."""
    flat = run_config(model__name=HUB_ID, model__revision="v1")
    run, _ = write_run(flat, 0.5, 0.75)
    (cached / "refs" / "v1").write_text(NEW)
    export(run, "merged", "best", tmp_path / "merged", "", None)
    assert OLD in (tmp_path / "merged" / "README.md").read_text()
    written = ModelCheckpoint(str(tmp_path / "merged"))
    (_, tensor), *_ = written.read(["lm_head.weight"])
    assert torch.equal(tensor, head(OLD))
    with open_asker(run):  # another commit's halves would be refused, as this bundle is
        pass
    with pytest.raises(ConfigError, match=f"{OLD}.*{NEW}"):
        write_bundle(ModelCheckpoint(HUB_ID, NEW), tmp_path / "bundle")
        with open_asker(run, bundle=str(tmp_path / "bundle")):
            pass


@pytest.mark.parametrize(
    "command",
    [
        "run -c model.name={model} -c model.revision=v1",
        "split {model} --out {out} --revision v1",
        "size {model} --revision v1",
        "size llava-1.5-7b --revision v1",
        "serve {model} --revision v1",
    ],
)
def test_a_folder_has_no_revision(command: str, tiny_model: Path, tmp_path: Path) -> None:
    arguments = command.format(model=tiny_model, out=tmp_path / "out").split()
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2, result.output
    assert "revision" in result.output and "v1" in result.output


def test_a_revision_that_a_command_names_is_taken(cached: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = CliRunner().invoke(cli, ["split", HUB_ID, "--out", str(out), "--revision", "v1"])
    assert run.exit_code == 0 and EdgeBundle(str(out)).revision == OLD
    counted = CliRunner().invoke(cli, ["size", HUB_ID, "--revision", "v1"])
    assert counted.exit_code == 0 and "(llava; hub)" in counted.output
