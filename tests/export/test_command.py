"""`fednano export`, as a user calls it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from typer.testing import CliRunner

from fednano_flwr import client_app, server_app
from fednano_flwr.cli import app as cli
from fednano_flwr.config import RunConfig
from fednano_flwr.export import stream
from fednano_flwr.export.fold import LowRank, fold_rows
from fednano_flwr.models.checkpoint import Checkpoint
from fednano_flwr.models.families import FAMILIES
from tests import tiny, tiny_families
from tests.export.made_up import write_run
from tests.local_grid import LocalGrid

DOC = Path(__file__).parents[2] / "docs" / "export.md"
Config = Callable[..., dict[str, Any]]
EMBEDDINGS = "language_model.embed_tokens.weight"


def export(run: Path | str, out: Path, *more: str, form: str = "merged") -> Result:
    arguments = ["export", str(run), "--format", form, "--out", str(out), *more]
    return CliRunner().invoke(cli.cli, arguments)


@pytest.fixture
def run(run_config: Config) -> Path:
    return write_run(run_config(), 0.5, 0.75)[0]


def test_a_real_runs_result_goes_both_ways(run_config: Config, tmp_path: Path) -> None:
    flat = run_config(num_server_rounds=1)
    folder = server_app.federate(LocalGrid(client_app.app, flat, 2), 1, RunConfig.parse(flat))
    said = json.loads((folder.path / "environment.json").read_text())["model"]
    assert said["fingerprint"] == Checkpoint(flat["model.name"]).fingerprint
    assert said["hidden_size"] == 48
    for form in ("peft", "merged"):
        result = export(folder.path, tmp_path / form, "--which", "last", form=form)
        assert result.exit_code == 0, result.output
        assert "adapters of round 1 (last)" in result.output and "warning" not in result.output
        assert (tmp_path / form / "README.md").exists()


def test_last_and_best_are_those_rounds_adapters(run_config: Config, tmp_path: Path) -> None:
    run, _ = write_run(run_config(), 0.5, 0.75, 0.625)
    assert "round 1 (best)" in export(run, tmp_path / "best", form="peft").output
    last = export(run, tmp_path / "last", "--which", "last", form="peft")
    assert "round 2 (last)" in last.output


def broken(run: Path, what: str) -> Path:
    """The run's folder with something wrong."""
    if what == "no adapters":
        shutil.rmtree(run / "adapters")
    elif what == "no config":
        (run / "config.json").unlink()
    elif what == "a cut file":
        file = run / "adapters" / "best" / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:100])
    elif what == "other adapters":
        state = {"base_model.model.q_proj.lora_A.weight": torch.ones(2, 2)}
        save_file(state, run / "adapters" / "best" / "adapter_model.safetensors")
    elif what == "locft":
        config = json.loads((run / "config.json").read_text()) | {"strategy.name": "locft"}
        (run / "config.json").write_text(json.dumps(config))
    elif what == "metrics":
        (run / "metrics.jsonl").write_text('{"round": 0\n')
    elif what == "lost rounds":
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text(lines[0])
    elif what == "state":
        (run / "state.json").write_text("{}")
    elif what == "not a number":
        file = run / "adapters" / "best" / "adapter_model.safetensors"
        save_file({key: value / 0 for key, value in load_file(file).items()}, file)
    return run


@pytest.mark.parametrize("form", ["peft", "merged"])
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no adapters", "it has no adapters/best"),
        ("no config", "it has no config.json; give the folder of a run"),
        ("a cut file", "the run cannot be read"),
        ("other adapters", "not NanoAdapters"),
        ("locft", "each client's adapters stay with the client"),
        ("metrics", "the run cannot be read"),
        ("lost rounds", "round 1 is not in metrics.jsonl, though adapters/best are of it"),
        ("state", "its state.json does not say best_round"),
        ("not a number", "the adapters of round 1 are not finite numbers"),
    ],
)
def test_a_folder_that_is_no_whole_run_is_refused(
    run: Path, what: str, says: str, form: str, tmp_path: Path
) -> None:
    refused(export(broken(run, what), tmp_path / "out", form=form), says, tmp_path / "out")


def refused(result: Result, says: str, out: Path) -> None:
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.stderr.replace("│", " ").split())
    assert not out.exists() and not list(out.parent.glob(".*partial"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--format", "gguf"], "'gguf' is not one of 'peft', 'merged'"),
        (["--which", "first"], "'first' is not one of 'best', 'last'"),
        (["--dtype", "int4"], "'int4' is not one of"),
        (["--format", "peft", "--dtype", "float16"], "--dtype is for --format merged"),
        (["--model", "/nowhere/model"], "there is no folder /nowhere/model"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    run: Path, more: list[str], says: str, tmp_path: Path
) -> None:
    refused(export(run, tmp_path / "out", *more), says, tmp_path / "out")


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(
        export(tmp_path / "none", tmp_path / "out"), "there is no such folder", tmp_path / "out"
    )


def test_a_run_whose_model_is_gone_says_how_to_name_it(
    run_config: Config, tiny_model: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(tiny_model, tmp_path / "model")
    run, _ = write_run(run_config(model__name=str(moved)), 0.5, 0.75)
    moved.rename(tmp_path / "elsewhere")
    refused(export(run, tmp_path / "out"), "--model PATH says where it is", tmp_path / "out")
    found = export(run, tmp_path / "out", "--model", str(tmp_path / "elsewhere"))
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize("form", ["peft", "merged"])
@pytest.mark.parametrize(
    ("other", "says"),
    [({"seed": 1}, "trained on"), ({"width": 32}, "embeddings of size 32")],
)
def test_another_model_is_refused(
    run: Path, other: dict[str, int], says: str, form: str, tmp_path: Path
) -> None:
    model = tiny.write_checkpoint(tmp_path / "other", **other)
    result = export(run, tmp_path / "out", "--model", str(model), form=form)
    refused(result, says, tmp_path / "out")


def test_a_run_that_does_not_say_its_model_is_exported_with_a_warning(
    run: Path, tmp_path: Path
) -> None:
    (run / "environment.json").write_text("{}")
    result = export(run, tmp_path / "out")
    assert result.exit_code == 0 and "warning: the run does not say" in result.output


def test_adapters_that_change_nothing_are_refused(run_config: Config, tmp_path: Path) -> None:
    run, _ = write_run(run_config(), 0.75, 0.5)
    says = "the adapters of round 0 change nothing (B A = 0): the frozen model was the best"
    refused(export(run, tmp_path / "out"), says, tmp_path / "out")
    assert export(run, tmp_path / "out", "--which", "last").exit_code == 0


def test_a_folder_with_something_in_it_is_left_as_it_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    result = export(run, tmp_path / "out")
    assert result.exit_code == 2 and "not empty" in result.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_export_that_breaks_off_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, files = stream.write, []

    def fail(file: Path, *arguments: Any) -> None:
        whole(file, *arguments)
        files.append(file)
        if len(files) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(stream, "write", fail)
    result = export(run, tmp_path / "new" / "out")
    assert result.exit_code == 1 and "No space left on device" in result.stderr
    assert len(files) == 2 and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "stored quantized"),
        ({"model_type": "llama"}, "its family is llama"),
    ],
)
def test_a_checkpoint_that_cannot_take_adapters_is_refused(
    run_config: Config, change: dict[str, Any], says: str, tiny_model: Path, tmp_path: Path
) -> None:
    run, _ = write_run(run_config(), 0.5, 0.75)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | change
    (model / "config.json").write_text(json.dumps(config))
    refused(export(run, tmp_path / "out", "--model", str(model)), says, tmp_path / "out")


def test_an_edge_bundle_is_refused_and_its_model_named(
    run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    split = ["split", str(tiny_model), "--out", str(tmp_path / "bundle")]
    assert CliRunner().invoke(cli.cli, split).exit_code == 0
    result = export(run, tmp_path / "out", "--model", str(tmp_path / "bundle"))
    refused(result, f"a client's half of {tiny_model}", tmp_path / "out")


def test_weights_are_stored_as_asked_for(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    result = export(run, tmp_path / "out", "--dtype", "bfloat16")
    assert result.exit_code == 0 and "stored as bfloat16" in result.output
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    before, after = Checkpoint(str(tiny_model)), Checkpoint(str(tmp_path / "out"))
    state = load_file(run / "adapters" / "best" / "adapter_model.safetensors")
    a, b = (state[f"base_model.model.text_adapter.lora_{factor}.weight"] for factor in "AB")
    for (name, old), (same, new) in zip(
        before.read(before.files), after.read(before.files), strict=True
    ):
        assert name == same and new.dtype == torch.bfloat16
        if name == EMBEDDINGS:
            assert torch.equal(new, fold_rows(old, LowRank(a, b, 32 / 4)).bfloat16())
        elif "linear_2" not in name:
            assert torch.equal(new, old.bfloat16())


def scaled(model: Path, name: str, factor: float) -> None:
    """Make a tensor of a checkpoint larger."""
    checkpoint = Checkpoint(str(model))
    file, key = checkpoint.files[name]
    state = load_file(model / file)
    state[key] *= factor
    save_file(state, model / file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", [EMBEDDINGS, "multi_modal_projector.linear_1.weight"])
def test_a_dtype_that_numbers_do_not_fit_into_is_refused(
    name: str, run_config: Config, tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    scaled(model, name, 1e7)
    run, _ = write_run(run_config(model__name=str(model)), 0.5, 0.75)
    says = (
        f"{Checkpoint(str(model)).files[name][1]} has numbers that would not be finite as float16"
    )
    half = export(run, tmp_path / "out", "--dtype", "float16")
    refused(half, says, tmp_path / "out")
    assert "--dtype bfloat16" in half.stderr
    assert export(run, tmp_path / "out", "--dtype", "bfloat16").exit_code == 0


def test_what_was_not_finite_before_is_copied_as_it_is(
    run_config: Config, tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    name = "multi_modal_projector.linear_1.bias"
    scaled(model, name, float("inf"))
    run, _ = write_run(run_config(model__name=str(model)), 0.5, 0.75)
    result = export(run, tmp_path / "out", "--dtype", "float16")
    assert result.exit_code == 0, result.output
    ((_, written),) = Checkpoint(str(tmp_path / "out")).read([name])
    assert not written.isfinite().any()


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_the_current_folder_is_refused_before_the_work(
    form: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = export(run.resolve(), Path("."), form=form)
    assert result.exit_code == 2 and "is the current folder" in result.stderr
    assert not list((tmp_path / "here").iterdir())


def test_a_run_of_another_version_is_exported_and_its_keys_are_named(
    run: Path, tmp_path: Path
) -> None:
    config = json.loads((run / "config.json").read_text())
    del config["max-answer-tokens"]
    (run / "config.json").write_text(json.dumps(config | {"batch-length": 3}))
    result = export(run, tmp_path / "out", form="peft")
    assert result.exit_code == 0, result.output
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (" ".join(result.output.split()), card):
        assert "what it lacks has today's default: max-answer-tokens = " in text
        assert "keys that are no more are left out: batch-length." in text
    assert "| `batch-length`" not in card


@pytest.mark.parametrize("sites", ["image", "text"])
def test_a_tied_head_is_untied_only_where_the_embeddings_change(
    run_config: Config, sites: str, tmp_path: Path
) -> None:
    model = tiny_families.write("gemma3", tmp_path / "model")
    run, _ = write_run(run_config(model__name=str(model), adapter__sites=sites), 0.5, 0.75)
    result = export(run, tmp_path / "out")
    assert result.exit_code == 0, result.output
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.tie_word_embeddings == (sites == "image")
    assert ("lm_head.weight" in Checkpoint(str(tmp_path / "out")).files) == (sites == "text")


def test_nothing_but_what_loading_needs_is_copied(run: Path, tiny_model: Path, tmp_path: Path):
    export(run, tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    shards = {file for file in names if file.endswith(".safetensors")}
    assert len(shards) > 1
    assert names - shards == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_docs_table_of_families_is_the_registrys() -> None:
    rows = re.findall(r"^\| `([\w.-]+)` \| (yes|no) \| (.+) \|$", DOC.read_text(), re.MULTILINE)
    expected = []
    for family, connector in ((name, one.connector) for name, one in FAMILIES.items()):
        bias = [f"{connector.linear}.bias"] if connector.linear else []
        weights = [*connector.parts()[:1], *bias, *connector.parts()[1:]]
        if connector.cannot:
            expected.append((family, "no", connector.cannot))
        else:
            expected.append((family, "yes", ", ".join(f"`{name}`" for name in weights)))
    assert sorted(rows) == sorted(expected)
