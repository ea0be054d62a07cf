"""`fednano export`, as a user calls it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from fednano_flwr.adapters.product import Factors
from fednano_flwr.export import merged
from fednano_flwr.export.merge_weights import adapt_rows
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.families import FAMILIES, Connector
from fednano_flwr.models.split import write_bundle
from tests import families, tiny
from tests.export.conftest import Exported, export
from tests.export.made_up import write_run

DOC = Path(__file__).parents[2] / "docs" / "export.md"
Config = Callable[..., dict[str, Any]]
EMBEDDINGS = "language_model.embed_tokens.weight"
ADAPTERS = "adapters/best/adapter_model.safetensors"


@pytest.fixture
def run(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return shutil.copytree(exported.run, tmp_path / "run")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the run's model, to be changed."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def refused(result: Result, says: str, out: Path) -> None:
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.stderr.replace("│", " ").split())
    assert not out.exists() and not list(out.parent.glob(".*partial"))


def change(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file (`__` for a dot, `_` for a hyphen)."""
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no adapters": (lambda run: shutil.rmtree(run / "adapters"), "adapters/best"),
    "no config": (lambda run: (run / "config.json").unlink(), "config.json is missing"),
    "a cut file": (lambda run: (run / ADAPTERS).write_bytes(b"\0" * 99), "cannot be read"),
    "other adapters": (
        lambda run: save_file({"q_proj.lora_A.weight": torch.ones(2, 2)}, run / ADAPTERS),
        "not NanoAdapters",
    ),
    "not finite": (
        lambda run: save_file({"a": torch.tensor(float("nan"))}, run / ADAPTERS),
        "not finite",
    ),
    "locft": (lambda run: change(run / "config.json", strategy__name="locft"), "locft"),
    "metrics": (lambda run: (run / "metrics.jsonl").write_text('{"round": 0\n'), "line 1"),
    "no rounds": (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl is empty"),
    "lost rounds": (
        lambda run: (run / "metrics.jsonl").write_text('{"round": 0}\n'),
        "round 1, which metrics.jsonl lacks",
    ),
    "state": (lambda run: (run / "state.json").write_text("{}"), "best_round"),
    "nothing": (lambda run: shutil.rmtree(run), "is no run's folder"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_is_no_whole_run_is_refused(what: str, run: Path, tmp_path: Path) -> None:
    breaking, says = BROKEN[what]
    breaking(run)
    refused(export(run, tmp_path / "out", form="peft"), says, tmp_path / "out")


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
    more: list[str], says: str, exported: Exported, tmp_path: Path
) -> None:
    refused(export(exported.run, tmp_path / "out", *more), says, tmp_path / "out")


def test_a_run_whose_model_is_gone_says_how_to_name_it(
    run: Path, model: Path, tmp_path: Path
) -> None:
    change(run / "config.json", model__name=str(tmp_path / "gone"))
    refused(export(run, tmp_path / "out"), "--model PATH says where it is", tmp_path / "out")
    found = export(run, tmp_path / "out", "--model", str(model))
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize(
    ("form", "other", "says"),
    [("peft", {"seed": 1}, "trained on"), ("merged", {"width": 32}, "embeddings of size 32")],
)
def test_another_model_is_refused(
    form: str, other: dict[str, int], says: str, exported: Exported, tmp_path: Path
) -> None:
    model = tiny.write_checkpoint(tmp_path / "other", **other)
    result = export(exported.run, tmp_path / "out", "--model", str(model), form=form)
    refused(result, says, tmp_path / "out")


def test_an_edge_bundle_is_refused_and_its_model_named(
    exported: Exported, tiny_model: Path, tmp_path: Path
) -> None:
    write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "bundle")
    result = export(exported.run, tmp_path / "out", "--model", str(tmp_path / "bundle"))
    refused(result, str(tiny_model), tmp_path / "out")


def test_a_checkpoint_that_lacks_a_tensor_is_refused(
    run_config: Config, model: Path, tmp_path: Path
) -> None:
    name = "vision_tower.encoder.layers.1.mlp.fc1.bias"
    file, key = ModelCheckpoint(str(model)).files[name]
    state = load_file(model / file)
    del state[key]
    save_file(state, model / file, metadata={"format": "pt"})
    index = json.loads((model / "model.safetensors.index.json").read_text())
    del index["weight_map"][key]
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    run, _ = write_run(run_config(model__name=str(model)), 0.5, 0.75)
    refused(export(run, tmp_path / "out"), name, tmp_path / "out")


def test_a_connector_that_the_checkpoint_has_not_is_refused_and_named(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misspelt = replace(FAMILIES["llava"], connector=Connector("multi_modal_projector.linear_9"))
    monkeypatch.setitem(FAMILIES, "llava", misspelt)
    result = export(exported.run, tmp_path / "out")
    refused(result, "multi_modal_projector.linear_9.weight", tmp_path / "out")


def test_a_run_that_does_not_say_its_model_is_exported_with_a_warning(
    run: Path, exported: Exported, tmp_path: Path
) -> None:
    (run / "environment.json").write_text("{}")
    result = export(run, tmp_path / "out")
    assert result.exit_code == 0 and "warning: the run does not say" in result.output
    assert not any("warning" in output for output in exported.output.values())


def test_adapters_that_change_nothing_are_refused_and_those_of_the_last_round_taken(
    run_config: Config, tmp_path: Path
) -> None:
    run, _ = write_run(run_config(), 0.75, 0.5)
    refused(export(run, tmp_path / "out"), "(B A = 0); the frozen model", tmp_path / "out")
    last = export(run, tmp_path / "out", "--which", "last", form="peft")
    assert last.exit_code == 0 and "round 1 (last)" in last.output


def test_a_folder_with_something_in_it_is_left_as_it_is(exported: Exported) -> None:
    result = export(exported.run, exported.run, form="peft")
    assert result.exit_code == 2 and "not empty" in result.stderr


def test_an_export_that_breaks_off_leaves_nothing(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[Path] = []

    def fail(tensors: Any, file: Path, **more: Any) -> None:
        save_file(tensors, file, **more)
        files.append(file)
        if len(files) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(merged, "save_file", fail)
    result = export(exported.run, tmp_path / "new" / "out")
    assert result.exit_code == 1 and "No space left on device" in result.stderr
    assert len(files) == 2 and not (tmp_path / "new").exists()


def test_weights_are_stored_as_asked_for(
    exported: Exported, tiny_model: Path, tmp_path: Path
) -> None:
    result = export(exported.run, tmp_path / "out", "--dtype", "bfloat16")
    assert result.exit_code == 0 and "stored as bfloat16" in result.output
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    before, after = ModelCheckpoint(str(tiny_model)), ModelCheckpoint(str(tmp_path / "out"))
    a, b = (exported.trained[f"base_model.model.text_adapter.lora_{f}.weight"] for f in "AB")
    for (name, old), (same, new) in zip(
        before.read(before.files), after.read(before.files), strict=True
    ):
        assert name == same and new.dtype == torch.bfloat16
        if name == EMBEDDINGS:
            assert torch.equal(new, adapt_rows(old, Factors(a, 32 / 4 * b.double())).bfloat16())
        elif "linear_2" not in name:
            assert torch.equal(new, old.bfloat16())


def scaled(model: Path, name: str, factor: float) -> None:
    """Make a tensor of a checkpoint larger."""
    file, key = ModelCheckpoint(str(model)).files[name]
    state = load_file(model / file)
    state[key] *= factor
    save_file(state, model / file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", [EMBEDDINGS, "multi_modal_projector.linear_1.weight"])
def test_a_dtype_that_numbers_do_not_fit_into_is_refused(
    name: str, run_config: Config, model: Path, tmp_path: Path
) -> None:
    scaled(model, name, 1e7)
    scaled(model, "multi_modal_projector.linear_1.bias", float("inf"))  # as it is: not refused
    run, _ = write_run(run_config(model__name=str(model)), 0.5, 0.75)
    half = export(run, tmp_path / "out", "--dtype", "float16")
    refused(half, f"{ModelCheckpoint(str(model)).files[name][1]} has numbers", tmp_path / "out")
    assert "as float16" in half.stderr and "--dtype bfloat16" in half.stderr
    assert export(run, tmp_path / "out", "--dtype", "bfloat16").exit_code == 0


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
        assert "max-answer-tokens = " in text and "left out: batch-length." in text
    assert "| `batch-length`" not in card


@pytest.mark.parametrize("sites", ["image", "text"])
def test_a_tied_head_is_untied_only_where_the_embeddings_change(
    run_config: Config, sites: str, tmp_path: Path
) -> None:
    model = families.write("gemma3", tmp_path / "model")
    run, _ = write_run(run_config(model__name=str(model), adapter__sites=sites), 0.5, 0.75)
    result = export(run, tmp_path / "out")
    assert result.exit_code == 0, result.output
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.tie_word_embeddings == (sites == "image")
    assert ("lm_head.weight" in ModelCheckpoint(str(tmp_path / "out")).files) == (sites == "text")


def test_nothing_but_what_loading_needs_is_copied(exported: Exported, tiny_model: Path) -> None:
    names = {file.name for file in exported.folders["merged"].iterdir()}
    shards = {file.name for file in tiny_model.glob("*.safetensors")}
    assert len(shards) > 1 and shards < names
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
    rows = re.findall(r"^\| `([\w.-]+)` \| (`.+`) \|$", DOC.read_text(), re.MULTILINE)
    expected = {}
    for name, family in FAMILIES.items():
        tensors: list[str] = []
        for connector in (family.connector, family.second_connector):
            linear = connector.linear
            tensors += [f"{linear}.weight", f"{linear}.bias"] if linear else []
            tensors += connector.rows
        expected[name] = ", ".join(f"`{name}`" for name in tensors)
    assert dict(rows) == expected
