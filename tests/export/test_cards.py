"""The code in a model card does what the card says, without this project."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import AddedToken
from torch import Tensor
from typer.testing import CliRunner

from fednano_flwr import cli
from fednano_flwr.data.sample import Picture
from fednano_flwr.edge.adapters import AdapterSites
from fednano_flwr.edge.client import EXCHANGES
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import last_positions, load_encoder
from fednano_flwr.export.card import EXAMPLE, label, license_of
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import Checkpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.families import FAMILIES
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.models.processor import load_processor
from tests import tiny_families
from tests.export.made_up import random_adapters, write_run
from tests.models.test_families import picture

DEMO = "package:fednano_demo/model"
BLOCKED = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fednano_flwr", "fednano_demo", "flwr"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
"""
KEEP = """
import torch
with torch.no_grad():
    torch.save(model(**inputs).logits[0, -1], "logits.pt")
"""


def export(run: Path, form: str, out: Path) -> str:
    result = CliRunner().invoke(cli.cli, ["export", str(run), "--format", form, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return result.output


def code_of(card: Path, base: Path) -> str:
    """The card's code, with the base model's place where the card leaves it to the reader."""
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    return re.sub(r'^BASE = ".*$', f'BASE = "{base}"', code, flags=re.MULTILINE)


@torch.no_grad()
def split_run(model: str, adapters: Any, shown: Picture) -> tuple[Tensor, Tensor, list[int]]:
    """The card's question asked of the two halves: its tokens, the logits after it, its options."""
    checkpoint = Checkpoint(model)
    encoder, frozen = load_encoder(checkpoint), load_edge_half(model)
    question = encoder.encode(replace(EXAMPLE, image=shown))
    edge = NanoEdge(frozen, frozen.token_table(), adapters.eval(), encoder)
    host = FrozenLLM(load_llm_half(model))
    llm = EXCHANGES["lowrank"](host, "server")
    every = torch.arange(host.describe().vocabulary)
    logits = llm.score(edge([question]), last_positions([question]), every)[0]
    return question.ids, logits, list(question.options)


@pytest.mark.parametrize("form", [pytest.param("peft", marks=pytest.mark.slow), "merged"])
def test_a_process_without_this_project_answers_as_the_split_model_does(
    form: str, run_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    flat = run_config(model__name=DEMO, adapter__rank=16)
    run, _ = write_run(flat, 0.5, 0.75)
    out = tmp_path / "out"
    export(run, form, out)
    shown = picture(0, 48, 48)
    (out / "picture.png").write_bytes(shown.data or b"")
    base = Checkpoint(DEMO).folder
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED + code_of(out / "README.md", base) + KEEP],
        cwd=out,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    got = torch.load(out / "logits.pt")
    adapters = random_adapters(128, run_of(flat))
    _, expected, options = split_run(DEMO, adapters, shown)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert got[options].argmax() == expected[options].argmax()
    assert result.stdout.strip()


def loaded(folder: str) -> Any:
    """The processor, by ways that work for the tiny checkpoints.

    Those that take videos would ask for torchvision. BLIP's tokenizers on the hub do not name a
    token for pictures, so that their processors make one of a kind that the tiny ones' is not.
    """
    processor = load_processor(Path(folder))
    if "Blip" in type(processor).__name__:
        processor.image_token = AddedToken(str(processor.image_token), special=True)
    return processor


def run_of(flat: dict[str, Any]) -> Any:
    from fednano_flwr.config import RunConfig

    return RunConfig.parse(flat).adapter


# Those that differ in how they are asked; the others beside them.
ASKED = ("llava", "paligemma", "instructblip", "blip-2")
EVERY = [
    pytest.param(family, form, marks=[] if family in ASKED else [pytest.mark.slow])
    for family in FAMILIES
    for form in ("peft", "merged")
]


@pytest.mark.parametrize(("family", "form"), EVERY)
def test_the_cards_code_asks_every_family_as_the_run_did_and_gets_its_logits(
    family: str,
    form: str,
    run_config: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_families.write(family, tmp_path / family)
    flat = run_config(model__name=str(model))
    run, _ = write_run(flat, 0.5, 0.75)
    out = tmp_path / "out"
    export(run, form, out)
    shown = picture(0, 40, 30)
    (out / "picture.png").write_bytes(shown.data or b"")
    monkeypatch.chdir(out)
    names: dict[str, Any] = {"load": loaded}
    code = code_of(out / "README.md", model).replace("AutoProcessor.from_pretrained", "load")
    exec(code + KEEP, names)
    ids, expected, _ = split_run(str(model), random_adapters(48, run_of(flat)), shown)
    assert names["inputs"]["input_ids"][0].tolist() == ids.tolist()
    got = torch.load(out / "logits.pt")
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_peft_loads_exported_adapters_as_it_loads_the_runs(
    run_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run, trained = write_run(run_config(), 0.5, 0.75)
    export(run, "peft", tmp_path / "out")
    loaded = PeftModel.from_pretrained(AdapterSites(48, None), tmp_path / "out")  # type: ignore[arg-type]
    state = {key.replace(".default", ""): value for key, value in loaded.state_dict().items()}
    for name, value in trained.items():
        assert torch.equal(state[name], value)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["auto_mapping"] is None and config["peft_type"] == "LORA"


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_card_tells_of_data_rounds_and_traffic_and_of_no_place_on_this_machine(
    form: str, run_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    flat = run_config(dataset__alpha=0.25)
    run, _ = write_run(flat, 0.5, 0.75, 0.625)
    export(run, form, tmp_path / "out")
    files = [file for file in (tmp_path / "out").iterdir() if file.suffix in (".md", ".json")]
    assert not [file for file in files if str(tmp_path.parent.parent) in file.read_text()]
    card = (tmp_path / "out" / "README.md").read_text()
    head = card.split("---\n")[1]
    assert "license: unknown" in head and "federated-learning" in head
    assert f"library_name: {'peft' if form == 'peft' else 'transformers'}" in head
    assert "| 1 (here) | 2 | 75.0% (62.5% to 87.5%) | 0.500 |" in card
    assert "| all | 24 | 50.0% | 75.0% |" in card
    assert "| 2 | 2.0 kB | 2.0 kB | 3.0 MB | 4.0 kB | 1,234 |" in card
    assert "| `dataset.alpha` | `0.25` |" in card and "| `strategy.name` | `fedavg-exact` |" in card
    assert Checkpoint(flat["model.name"]).fingerprint in card


def test_a_models_own_license_is_named_and_none_is_made_up(tmp_path: Path) -> None:
    assert license_of(tmp_path) == "unknown"
    (tmp_path / "README.md").write_text("license: mit\n")
    assert license_of(tmp_path) == "unknown"
    (tmp_path / "README.md").write_text("---\ntags: [a]\nlicense: apache-2.0\n---\ntext\n")
    assert license_of(tmp_path) == "apache-2.0"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/home/somebody/models/llava", "llava"),
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("package:fednano_demo/model", "package:fednano_demo/model"),
        ("scienceqa", "scienceqa"),
    ],
)
def test_a_name_is_said_without_the_folders_it_lies_in(name: str, said: str) -> None:
    assert label(name) == said
