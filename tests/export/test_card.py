"""The model card: what it says, and that its code works without this project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import metadata_load
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import PeftModel
from tokenizers import AddedToken
from torch import Tensor

from fednano_flwr.adapters.site import AdapterSites
from fednano_flwr.config import RunConfig
from fednano_flwr.data.sample import Picture
from fednano_flwr.edge.client import EXCHANGES
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import last_positions
from fednano_flwr.export import license
from fednano_flwr.export.card import EXAMPLE, label
from fednano_flwr.export.license import find_license
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.families import FAMILIES
from fednano_flwr.models.processor import load_processor
from tests import families
from tests.export.conftest import Exported, export
from tests.export.made_up import host_of, random_adapters, write_run
from tests.models.test_families import picture

Config = Callable[..., dict[str, Any]]
DEMO = "package:fednano_demo/model"
APACHE = "\n      Apache License\n    Version 2.0, January 2004\n"
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


def code_of(out: Path, base: Path) -> str:
    """The card's code, with the base model's place where the card leaves it to the reader."""
    card = (out / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return re.sub(r'^BASE = ".*$', f'BASE = "{base}"', code, flags=re.MULTILINE)


@torch.no_grad()
def split_run(flat: dict[str, Any], width: int, shown: Picture) -> tuple[Tensor, Tensor]:
    """The card's question asked of the two halves: its tokens, and log-probabilities after it."""
    model, adapter = flat["model.name"], RunConfig.parse(flat).adapter
    checkpoint = ModelCheckpoint(model)
    adapters = random_adapters(width, adapter).eval()
    encoder, frozen = load_encoder(checkpoint), load_edge_half(model)
    question = encoder.encode(replace(EXAMPLE, images=(shown,)))
    edge = NanoEdge(frozen, frozen.token_table(), adapters, encoder)
    host = host_of(checkpoint, adapter)
    every = torch.arange(host.describe().vocabulary)
    llm = EXCHANGES["lowrank"](host, "server")
    return question.ids, llm.score(edge([question]), last_positions([question]), every)[0]


def close(folder: Path, expected: Tensor) -> bool:
    got = torch.load(folder / "logits.pt").log_softmax(-1)
    return bool((got - expected).abs().max() <= 1e-4 * expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("form", [pytest.param("peft", marks=pytest.mark.slow), "merged"])
def test_a_process_without_this_project_answers_as_the_split_model_does(
    form: str, run_config: Config, tmp_path: Path
) -> None:
    flat = run_config(model__name=DEMO, adapter__rank=16)
    out = tmp_path / "out"
    assert export(write_run(flat, 0.5, 0.75)[0], out, form=form).exit_code == 0
    shown = picture(0, 48, 48)
    (out / "picture.png").write_bytes(shown.data or b"")
    code = BLOCKED + code_of(out, ModelCheckpoint(DEMO).folder) + KEEP
    result = subprocess.run([sys.executable, "-c", code], cwd=out, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert close(out, split_run(flat, 128, shown)[1])
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


# Those that differ in how they are asked; the others are slow.
ASKED = ("llava", "paligemma", "instructblip", "blip-2", "qwen3_5")


@pytest.mark.parametrize("form", ["peft", "merged"])
@pytest.mark.parametrize(
    ("family", "sites"),
    [
        *(
            pytest.param(name, "all", marks=() if name in ASKED else pytest.mark.slow)
            for name, family in FAMILIES.items()
            if "image" in family.modalities
        ),
        ("llava", "llm"),
        ("gemma3", "all,llm"),  # its head is the embeddings' table
        ("gemma3", "llm"),
    ],
)
def test_the_cards_code_asks_every_family_as_the_run_did_and_gets_its_logits(
    family: str,
    sites: str,
    form: str,
    run_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = families.write(family, tmp_path / family)
    flat = run_config(model__name=str(model), adapter__sites=sites, adapter__llm_rank=3)
    out = tmp_path / "out"
    assert export(write_run(flat, 0.5, 0.75)[0], out, form=form).exit_code == 0
    shown = picture(0, 40, 30)
    (out / "picture.png").write_bytes(shown.data or b"")
    monkeypatch.chdir(out)
    names: dict[str, Any] = {"load": loaded}
    code = code_of(out, model).replace("AutoProcessor.from_pretrained", "load")
    exec(code + KEEP, names)
    ids, expected = split_run(flat, 48, shown)
    assert names["inputs"]["input_ids"][0].tolist() == ids.tolist()
    assert close(out, expected)


@pytest.mark.parametrize(
    ("family", "sites"),
    [("gemma4", ("image", "text", "audio")), ("qwen2_audio", ("text",))],
)
def test_a_card_has_no_code_that_would_leave_sounds_out(
    family: str,
    sites: tuple[str, ...],
    run_config: Config,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    flat = run_config(model__name=str(family_folder(family)), adapter__sites=",".join(sites))
    run = write_run(flat, 0.5, 0.75, sites=sites)[0]
    assert export(run, tmp_path / "out", form="peft").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "```python" not in card and "`fednano ask RUN" in card


def test_peft_loads_exported_adapters_as_it_loads_the_runs(exported: Exported) -> None:
    folder = exported.folders["peft"]
    loaded = PeftModel.from_pretrained(AdapterSites(48, None), folder)  # type: ignore[arg-type]
    state = {key.replace(".default", ""): value for key, value in loaded.state_dict().items()}
    assert all(torch.equal(state[name], value) for name, value in exported.trained.items())
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["auto_mapping"] is None and config["peft_type"] == "LORA"


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_card_tells_of_data_rounds_and_traffic_and_of_no_place_on_this_machine(
    form: str, exported: Exported
) -> None:
    folder, card = exported.folders[form], exported.card(form)
    files = [file for file in folder.iterdir() if file.suffix in (".md", ".json")]
    assert not [file for file in files if str(exported.run.parents[2]) in file.read_text()]
    head = metadata_load(folder / "README.md")
    assert head["license"] == "unknown" and "federated-learning" in head["tags"]
    assert head["library_name"] == ("peft" if form == "peft" else "transformers")
    assert "base_model" not in head
    assert " by fednano-flwr: 2 clients, strategy" in card
    assert "| 1 (here) | 2 | 75.0% (62.5% to 87.5%) | 0.250 | 0.500 |" in card
    assert "| all | 24 | 50.0% | 75.0% |" in card
    assert "| 2 | 2.0 kB | 2.0 kB | 3.0 MB | 4.0 kB | 1,234 |" in card
    assert "| `dataset.alpha` | `0.25` |" in card and "| `resume`" not in card
    bounds = [key for key in exported.flat if key.startswith("bounds.")]
    assert bounds and all(f"| `{key}` |" in card for key in bounds)
    assert ModelCheckpoint(exported.flat["model.name"]).fingerprint in card
    assert ("with its NanoAdapters merged" in card) == (form == "merged")


@pytest.mark.parametrize(("scored", "round_0"), [("0", "–"), ("01", "50.0%")])
def test_a_card_compares_with_round_0_only_where_the_same_clients_were_scored(
    scored: str, round_0: str, exported: Exported, tmp_path: Path
) -> None:
    run = shutil.copytree(exported.run, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    records[0]["accuracy_per_client"] = dict.fromkeys(scored, 0.5)
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    assert export(run, tmp_path / "out", form="peft").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| all | 24 | {round_0} | 75.0% |" in card


@pytest.mark.parametrize(
    ("files", "metadata"),
    [
        ({}, {"license": "unknown"}),
        ({"README.md": "license: mit\n"}, {"license": "unknown"}),
        ({"README.md": "---\n: [\n---\n"}, {"license": "unknown"}),
        ({"README.md": "---\ntags: [a]\nlicense: mit\n---\ntext\n"}, {"license": "mit"}),
        ({"README.md": "---\r\nlicense: 'mit'\r\n---\r\n"}, {"license": "mit"}),
        ({"README.md": "---\nlicense: gemma\n---\n", "LICENSE": APACHE}, {"license": "gemma"}),
        (
            {"README.md": "---\nlicense: other\nlicense_name: my-own\nlicense_link: a.org\n---\n"},
            {"license": "other", "license_name": "my-own", "license_link": "a.org"},
        ),
        ({"LICENSE": APACHE}, {"license": "apache-2.0"}),
        ({"LICENSE.txt": "MIT License\n\nPermission is"}, {"license": "mit"}),
        ({"LICENSE": "Ask us."}, {"license": "other"}),
        ({"NOTICE": APACHE}, {"license": "unknown"}),
    ],
)
def test_a_models_own_license_is_named_and_none_is_made_up(
    files: dict[str, str], metadata: dict[str, str], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, newline="")
    found = find_license(tmp_path, "")
    assert found.metadata == metadata
    assert bool(found.source) == (metadata["license"] != "unknown")


def test_a_hub_models_card_is_fetched_where_its_folder_here_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(name: str, revision: str, patterns: list[str]) -> Path:
        asked.append((name, revision, patterns))
        if name != "some/model":
            raise LocalEntryNotFoundError("no connection")
        return hub

    hub, here = tmp_path / "hub", tmp_path / "here"
    hub.mkdir()
    (hub / "README.md").write_text("---\nlicense: llama2\n---\n")
    monkeypatch.setattr(license, "snapshot", snapshot)
    assert find_license(here, "some/model", "v1").metadata == {"license": "llama2"}
    assert asked == [("some/model", "v1", ["README.md", "LICENSE*", "NOTICE*"])]
    assert find_license(here, "other/model").metadata == {"license": "unknown"}
    here.mkdir()
    (here / "LICENSE").write_text(APACHE)
    assert find_license(here, "other/model").source == "LICENSE"
    assert len(asked) == 2  # a folder that names one is enough


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_license_and_hub_id_of_the_model_are_in_the_card_and_texts_beside_a_merged_model(
    form: str, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    for name, text in (("LICENSE", APACHE), ("NOTICE.txt", "by somebody")):
        (hub / name).write_text(text)
    run = shutil.copytree(exported.run, tmp_path / "run")
    environment = json.loads((run / "environment.json").read_text())
    environment["model"]["hub_id"] = "some/model"
    (run / "environment.json").write_text(json.dumps(environment))
    monkeypatch.setattr(license, "snapshot", lambda *_: hub)
    out = tmp_path / "out"
    assert export(run, out, form=form).exit_code == 0
    head = metadata_load(out / "README.md")
    assert (head["license"], head["base_model"]) == ("apache-2.0", "some/model")
    assert head["base_model_relation"] == ("adapter" if form == "peft" else "finetune")
    assert "Its license, by its file LICENSE: apache-2.0." in (out / "README.md").read_text()
    texts = {"LICENSE", "NOTICE.txt"}
    assert texts & {f.name for f in out.iterdir()} == (texts if form == "merged" else set())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/home/somebody/models/llava", "llava"),
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("package:fednano_demo/model", "package:fednano_demo/model"),
        ("module:fednano_demo.generate/a/b", "module:fednano_demo.generate/a/b"),
        ("scienceqa", "scienceqa"),
        ("data/alice/a:b", "a:b"),
    ],
)
def test_a_name_is_said_without_the_folders_it_lies_in(name: str, said: str) -> None:
    assert label(name) == said
