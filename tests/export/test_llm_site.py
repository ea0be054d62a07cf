"""Exports of runs that have a LoRA inside the language model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fednano_flwr.config import ConfigError
from fednano_flwr.export.card import counted
from fednano_flwr.export.merged import write_merged
from fednano_flwr.export.result import read_run
from fednano_flwr.models.checkpoint import ModelCheckpoint
from tests import families, test_llm_site
from tests.export.conftest import export
from tests.export.made_up import write_run
from tests.export.test_command import refused

Config = Callable[..., dict[str, Any]]
QUERY = "model.language_model.layers.0.self_attn.q_proj"
LORA = "adapters/best/llm/adapter_model.safetensors"


@pytest.mark.parametrize(
    ("family", "sites"), [("llava", "all,llm"), ("gemma3", "text,llm"), ("gemma3", "llm")]
)
def test_a_merged_model_scores_as_the_run_did(
    family: str, sites: str, run_config: Config, tmp_path: Path
) -> None:
    model = families.write(family, tmp_path / "model")
    keys = {"strategy__name": "fedavg-exact", "adapter__sites": sites, "num_server_rounds": 1}
    folder = test_llm_site.run(run_config(model__name=str(model), **keys, **test_llm_site.RATES))
    out = tmp_path / "out"
    result = export(folder.path, out, "--which", "last")
    assert result.exit_code == 0, result.output
    again = test_llm_site.run(
        run_config(run__name="again", model__name=str(out), num_server_rounds=0)
    )
    first, last, merged = folder.rounds[0], folder.rounds[-1], again.rounds[0]
    assert merged["test_loss"] == pytest.approx(last["test_loss"], rel=1e-5)
    assert merged["accuracy"] == last["accuracy"]
    assert abs(first["test_loss"] - last["test_loss"]) > 1e-3 * last["test_loss"]


@pytest.mark.parametrize(("sites", "place"), [("all,llm", "llm"), ("llm", "")])
def test_a_lora_is_exported_beside_nanoadapters_or_alone(
    sites: str, place: str, run_config: Config, tmp_path: Path
) -> None:
    run, trained = write_run(run_config(adapter__sites=sites, adapter__llm_rank=3), 0.5, 0.75)
    out = tmp_path / "out"
    result = export(run, out, form="peft")
    assert result.exit_code == 0, result.output
    assert f"{sum(value.numel() for value in trained.values()):,} parameters" in result.output
    stored = load_file(out / place / "adapter_model.safetensors")
    assert len(stored) == sum(name.startswith("llm.") for name in trained)
    assert all(
        torch.equal(value, trained[name.replace("base_model.model.", "llm.")])
        for name, value in stored.items()
    )
    config = json.loads((out / place / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 32) and QUERY in config["target_modules"]
    assert config["base_model_name_or_path"] == Path(run_config()["model.name"]).name
    assert (out / "llm").exists() == bool(place)
    for file in (file for file in out.rglob("*") if file.suffix in (".md", ".json")):
        assert str(tmp_path.parent) not in file.read_text()


@pytest.mark.parametrize("form", ["peft", "merged"])
@pytest.mark.parametrize("sites", ["all,llm", "llm"])
def test_a_card_tells_of_the_lora(
    sites: str, form: str, run_config: Config, tmp_path: Path
) -> None:
    keys = {"adapter__llm_rank": 8, "adapter__ranks": "2,4"}
    run, _ = write_run(run_config(adapter__sites=sites, **keys), 0.5, 0.75)
    result = export(run, tmp_path / "out", form=form)
    assert result.exit_code == 0, result.output
    card = (tmp_path / "out" / "README.md").read_text()
    title = "LoRA" if sites == "llm" else "NanoAdapters and LoRA"
    assert (f"with its {title} merged\n" if form == "merged" else f"# {title} for ") in card
    layers = "2 × k_proj, 2 × o_proj, 2 × q_proj, 2 × v_proj"
    assert f" LoRA inside the language model: rank 8, scale s = 4, on {layers}.\n" in card
    assert (" Rank 4, scale s = 8, on image and text." in card) == (sites != "llm")
    assert "2 × q_proj" in result.output and "{{" not in card
    assert ("`2 × q_proj`" in card) == (form == "merged")
    assert "is not sent." in card and "the norm of the LoRA's gradients." in card
    assert ("the adapters' factors" in card) == (sites != "llm")
    assert ("Clients had adapters of ranks 2,4" in card) == (sites != "llm")


def test_a_lora_alone_that_changes_nothing_is_refused(run_config: Config, tmp_path: Path) -> None:
    run, _ = write_run(run_config(adapter__sites="llm"), 0.75, 0.5)
    refused(export(run, tmp_path / "out"), "(B A = 0); the frozen model", tmp_path / "out")
    assert export(run, tmp_path / "out", "--which", "last").exit_code == 0


def test_one_part_that_changes_something_is_enough(run_config: Config, tmp_path: Path) -> None:
    run, _ = write_run(run_config(adapter__sites="all,llm"), 0.5, 0.75)
    file = run / "adapters/best/adapter_model.safetensors"
    save_file({name: value * 0 for name, value in load_file(file).items()}, file)
    result = export(run, tmp_path / "out", form="peft")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("kept", ["A", "other", ""])
def test_what_is_no_lora_is_refused(kept: str, run_config: Config, tmp_path: Path) -> None:
    run, _ = write_run(run_config(adapter__sites="all,llm"), 0.5, 0.75)
    state = load_file(run / LORA)
    chosen = {name: value for name, value in state.items() if f".lora_{kept}." in name}
    save_file({"weight": torch.ones(2)} if kept == "other" else chosen, run / LORA)
    says = "pairs of LoRA factors" if kept else "holds [], not a LoRA"
    refused(export(run, tmp_path / "out", form="peft"), says, tmp_path / "out")


def test_a_layer_that_another_part_reads_is_refused(run_config: Config, tmp_path: Path) -> None:
    flat = run_config(adapter__sites="llm")
    result = read_run(write_run(flat, 0.5, 0.75)[0], "best")
    checkpoint = ModelCheckpoint(flat["model.name"])
    checkpoint.tree.all_tied_weights_keys = {"some.other.weight": f"{QUERY}.weight"}
    with pytest.raises(ConfigError, match="another part of the model reads it; use --format peft"):
        write_merged(checkpoint, {}, result.lora, tmp_path)
    missing = {QUERY.replace("layers.0", "layers.9"): result.lora[QUERY]}
    with pytest.raises(ConfigError, match=r"layers\.9.*the checkpoint lacks it"):
        write_merged(checkpoint, {}, missing, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_names_that_differ_in_numbers_alone_are_counted() -> None:
    names = ["a.0.q_proj.weight", "mlp.2.weight", "a.1.q_proj.weight", "mlp.2.bias"]
    assert counted(names) == ["2 × q_proj", "mlp.2.weight", "mlp.2.bias"]
