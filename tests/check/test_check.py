"""`fednano check`, as a user calls it, and runs of families that are not listed."""

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
from safetensors.torch import load_file
from typer.testing import CliRunner

from fednano_flwr.check import command
from fednano_flwr.check.shrink import shorten, write_shrunk
from fednano_flwr.cli.app import cli
from fednano_flwr.config import ConfigError, Model, RunConfig
from fednano_flwr.config.machine import Memory
from fednano_flwr.edge.encoder import KINDS
from fednano_flwr.in_process import run_in_process
from fednano_flwr.models import families, passed
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.source import check_model
from tests.families import TINY, every
from tests.families.unlisted import UNLISTED, write_unlisted

Folder = Callable[[str], Path]
AUTO = ("--family", "auto")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def unlisted(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A checkpoint of a family that is not listed, written when it is asked for."""
    folder = tmp_path_factory.mktemp("unlisted")

    def write(model_type: str) -> Path:
        place = folder / model_type
        return place if place.exists() else write_unlisted(model_type, place)

    return write


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch, family_folder: Folder) -> Folder:
    """A checkpoint of a family that is taken off the list."""

    def hide(model_type: str) -> Path:
        folder = family_folder(model_type)
        monkeypatch.delitem(families.FAMILIES, model_type)
        return folder

    return hide


def check(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["check", *map(str, arguments)])


def differences(result: Result) -> dict[str, float]:
    """By name, of the printed table."""
    rows = re.findall(r"│ (\w[^│]*?) +│ +([\d.e+-]+) │ +[\d.e+-]+ │", result.output)
    return {name: float(found) for name, found in rows}


@pytest.mark.parametrize("family", every())
def test_the_halves_of_a_listed_family_are_the_whole_model(
    family: str, family_folder: Folder
) -> None:
    result = check(family_folder(family))
    assert result.exit_code == 0, result.output
    assert result.output.rstrip().endswith("passed")
    found = differences(result)
    assert len(found) == 6 and all(value < 1e-5 for value in found.values())
    checkpoint = ModelCheckpoint(str(family_folder(family)))
    for site in checkpoint.family.modalities_of(checkpoint.config):
        assert f"tokens of a {KINDS[site]}: " in result.output
    assert "server's half" in result.output


@pytest.mark.parametrize("family", every())
def test_where_memory_is_short_a_small_model_of_the_architecture_is_compared(
    family: str, family_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "main_memory", lambda: Memory(10**9, 10**8))
    result = check(family_folder(family))
    assert result.exit_code == 0, result.output
    assert "architecture only" in result.output and "100.0 MB are free" in result.output


@pytest.mark.parametrize("family", ["llava", "internvl", "smolvlm", "perception_lm", "fast_vlm"])
def test_auto_cuts_a_listed_family_whose_file_is_hidden(family: str, hidden: Folder) -> None:
    folder = hidden(family)
    with pytest.raises(ConfigError, match="--family auto"):
        check_model(str(folder))
    result = check(folder, *AUTO)
    assert result.exit_code == 0, result.output
    assert f"family {family}" in result.output


@pytest.mark.parametrize("family", UNLISTED)
def test_auto_cuts_families_that_are_not_listed(family: str, unlisted: Folder) -> None:
    result = check(unlisted(family), *AUTO)
    assert result.exit_code == 0, result.output
    assert all(value < 1e-5 for value in differences(result).values())


@pytest.mark.parametrize("memory", [10**8, 10**11])
@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_auto_fails_where_a_family_needs_more(
    family: str, memory: int, hidden: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens of a picture see each other, or have positions in height and width."""
    folder = hidden(family)
    monkeypatch.setattr(command, "main_memory", lambda: Memory(memory, memory))
    result = check(folder, *AUTO)
    assert result.exit_code == 1, result.output
    assert "passed" not in result.output and "error: logits:" in result.output
    assert differences(result)["adapter gradients"] > 1e-2


def test_half_a_gradient_fails_where_logits_are_right(
    family_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = families.Family.logits

    def half(family: families.Family, host: Any, inputs_embeds: torch.Tensor, **more: Any) -> Any:
        halved = (inputs_embeds + inputs_embeds.detach()) / 2
        return right(family, host, inputs_embeds=halved, **more)

    monkeypatch.setattr(families.Family, "logits", half)
    result = check(family_folder("llava"))
    assert result.exit_code == 1, result.output
    wrong = [name for name, found in differences(result).items() if found > 1e-5]
    assert wrong == ["adapter gradients"] and "error: adapter gradients: 0.5;" in result.output


def test_a_wrong_first_position_fails_where_answers_are_generated(
    family_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(families.FAMILIES["blip-2"], first_position=1)
    monkeypatch.setitem(families.FAMILIES, "blip-2", wrong)
    result = check(family_folder("blip-2"))
    assert result.exit_code == 1, result.output
    assert "error: logits of answers, written:" in result.output
    wrong = {name for name, found in differences(result).items() if found > 1e-5}
    assert wrong <= {"logits of answers, written", "wrong tokens in answers"}


def test_a_half_that_cannot_run_fails_with_its_reason(
    family_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = families.FAMILIES["gemma3"]
    monkeypatch.setitem(families.FAMILIES, "gemma3", replace(known, token_types=False))
    result = check(family_folder("gemma3"))
    assert result.exit_code == 1
    assert "the two halves cannot run" in result.output and "token_type_ids" in result.output


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("mllama", "layers of its own"), ("t5", "reads pictures"), ("nobodys", "nobodys")],
)
def test_auto_leaves_what_is_refused_by_name_and_what_it_cannot_cut(
    kind: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    result = check(tmp_path, *AUTO)
    assert result.exit_code == 2 and reason in result.output


def test_a_model_without_weights_is_checked_for_its_architecture(
    unlisted: Folder, tmp_path: Path
) -> None:
    ignored = shutil.ignore_patterns("*.safetensors*")
    folder = shutil.copytree(unlisted("vipllava"), tmp_path / "model", ignore=ignored)
    result = check(folder, *AUTO)
    assert result.exit_code == 0, result.output
    assert "architecture only" in result.output and "has no weights" in result.output
    found = passed.require_pass(Model(str(unlisted("vipllava")), family="auto"))
    assert "small random model" in found  # the same config, with weights


def test_a_small_model_keeps_every_kind_of_layer_and_those_that_are_named(tmp_path: Path) -> None:
    config, processor = TINY["gemma3"].make()
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.num_attention_heads, text.num_key_value_heads = 96, 8, 4
    kinds = [*5 * ["sliding_attention"], "full_attention"]
    text.num_hidden_layers, text.layer_types = 12, 2 * kinds
    text.intermediate_size, vision.num_hidden_layers = 4096, 6
    config.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "small").mkdir()
    write_shrunk(ModelCheckpoint(str(tmp_path / "model")), tmp_path / "small", room=10**8)
    small = ModelCheckpoint(str(tmp_path / "small")).config
    assert small.text_config.layer_types == kinds
    assert (small.text_config.hidden_size, small.text_config.intermediate_size) == (48, 256)
    assert small.vision_config.num_hidden_layers == 4
    assert check(tmp_path / "model").exit_code == 0
    encoder = {"depth": 24, "deepstack_visual_indexes": [8, 16]}
    part = {"vision_feature_layer": -5, "vision_config": encoder, "text_config": {"num_layers": 9}}
    shorten(part)
    assert part["vision_config"]["depth"] == 17 and part["text_config"]["num_layers"] == 4


def test_a_run_needs_a_check_that_has_passed_with_these_versions(
    unlisted: Folder,
    run_config: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder = unlisted("aria")
    again = run_config(model__name=str(folder), model__family="auto", num_server_rounds=1)
    config = RunConfig.parse(again)
    with pytest.raises(ConfigError, match=f"fednano check {folder} --family auto"):
        run_in_process(config, clients=2)
    assert check(folder, *AUTO).exit_code == 0
    run = run_in_process(config, clients=2)
    assert run.rounds[1]["accuracy"] is not None
    export = ["export", str(run.path), "--out", str(tmp_path / "out"), "--format"]
    result = CliRunner().invoke(cli, [*export, "merged"])
    assert result.exit_code == 2 and "connector is not known" in result.output
    assert CliRunner().invoke(cli, [*export, "peft"]).exit_code == 0
    monkeypatch.setattr(passed, "_versions", lambda: ["transformers 6"])
    with pytest.raises(ConfigError, match="transformers 6"):
        run_in_process(replace(config, run=replace(config.run, name="again")), clients=2)


def test_a_client_with_a_bundle_needs_no_check(
    unlisted: Folder, run_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder, bundle = unlisted("deepseek_vl"), tmp_path / "bundle"
    split = ["split", str(folder), "--out", str(bundle)]
    assert CliRunner().invoke(cli, split).exit_code == 2
    result = CliRunner().invoke(cli, [*split, *AUTO])
    assert result.exit_code == 0, result.output
    adapters = []
    assert check(folder, *AUTO).exit_code == 0
    for name, path in (("whole", ""), ("bundle", str(bundle))):
        flat = run_config(
            model__name=str(folder), model__family="auto", edge__bundle=path, run__name=name
        )
        run = run_in_process(RunConfig.parse(flat), clients=2)
        adapters.append(load_file(run.path / "adapters" / "last" / "adapter_model.safetensors"))
    whole, bundled = adapters
    assert whole and all(torch.equal(whole[name], bundled[name]) for name in whole)


@pytest.mark.parametrize("damaged", ["", '{"logits": 1e-', "\0" * 9])
def test_a_pass_whose_file_is_damaged_is_none(unlisted: Folder, damaged: str) -> None:
    model = Model(str(unlisted("aria")), family="auto")
    passed.remember(ModelCheckpoint(model.name, family="auto").fingerprint, {})
    assert passed.require_pass(model)
    (file,) = passed.folder().iterdir()
    file.write_text(damaged)
    with pytest.raises(ConfigError, match="no check of it has passed"):
        passed.require_pass(model)


def test_where_a_pass_cannot_be_kept_nothing_is_compared(
    family_folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "file"))
    result = check(family_folder("llava"))
    assert result.exit_code == 2, result.output
    assert "FEDNANO_CACHE" in result.output and "largest differences" not in result.output


def test_a_check_that_fails_takes_an_earlier_pass_back(hidden: Folder) -> None:
    model = Model(str(hidden("gemma3")), family="auto")
    passed.remember(ModelCheckpoint(model.name, family="auto").fingerprint, {})
    assert passed.require_pass(model)
    assert check(model.name, *AUTO).exit_code == 1
    with pytest.raises(ConfigError, match="no check of it has passed"):
        passed.require_pass(model)
