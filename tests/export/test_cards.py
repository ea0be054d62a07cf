"""The code in a model card does what the card says, without this project."""

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
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import PeftModel
from tokenizers import AddedToken
from torch import Tensor
from typer.testing import CliRunner

from fednano_flwr.adapters.site import AdapterSites
from fednano_flwr.cli import app as cli
from fednano_flwr.data.sample import Picture
from fednano_flwr.edge.client import EXCHANGES
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import last_positions, load_encoder
from fednano_flwr.export import license
from fednano_flwr.export.card import EXAMPLE, label
from fednano_flwr.export.license import find_license
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


APACHE = "\n      Apache License\n    Version 2.0, January 2004\n"
NO_LICENSE = "license: unknown"


@pytest.mark.parametrize(
    ("files", "head"),
    [
        ({}, NO_LICENSE),
        ({"README.md": "license: mit\n"}, NO_LICENSE),
        ({"README.md": "---\ntags: [a]\nlicense: apache-2.0\n---\ntext\n"}, "license: apache-2.0"),
        ({"README.md": "---\r\nlicense: 'mit'\r\n---\r\n"}, "license: mit"),
        ({"LICENSE": APACHE}, "license: apache-2.0"),
        ({"LICENSE.txt": "MIT License\n\nPermission is"}, "license: mit"),
        ({"LICENSE": "Ask us."}, "license: other"),
        ({"NOTICE": APACHE}, NO_LICENSE),
        ({"README.md": "---\nlicense: gemma\n---\n", "LICENSE": APACHE}, "license: gemma"),
    ],
)
def test_a_models_own_license_is_named_and_none_is_made_up(
    files: dict[str, str], head: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, newline="")
    found = find_license(tmp_path, "")
    assert found.head == (head,)
    assert ("not known" in found.said) == (head == NO_LICENSE)


def test_a_license_of_its_own_name_keeps_name_and_link(tmp_path: Path) -> None:
    lines = "license: other\nlicense_name: my: own\nlicense_link: https://example.org/a"
    (tmp_path / "README.md").write_text(f"---\n{lines}\n---\n")
    assert yaml.safe_load("\n".join(find_license(tmp_path, "").head)) == {
        "license": "other",
        "license_name": "my: own",
        "license_link": "https://example.org/a",
    }


def test_a_hub_models_card_is_fetched_where_its_folder_here_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(name: str, revision: str, patterns: list[str]) -> Path:
        asked.append((name, revision, patterns))
        if name != "some/model":
            raise LocalEntryNotFoundError("no connection")
        (tmp_path / "hub").mkdir()
        (tmp_path / "hub" / "README.md").write_text("---\nlicense: llama2\n---\n")
        return tmp_path / "hub"

    monkeypatch.setattr(license, "snapshot", snapshot)
    found = find_license(tmp_path / "here", "some/model", "v1")
    assert found.head == ("license: llama2",)
    assert asked == [("some/model", "v1", ["README.md", "LICENSE*", "NOTICE*"])]
    offline = find_license(tmp_path / "here", "other/model")
    assert offline.head == (NO_LICENSE,) and "not known" in offline.said
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "LICENSE").write_text(APACHE)
    assert find_license(tmp_path / "here", "other/model").head == ("license: apache-2.0",)
    assert len(asked) == 2  # a folder that says it is enough


def test_the_demos_model_says_its_license() -> None:
    assert find_license(Checkpoint(DEMO).folder, "").head == ("license: apache-2.0",)


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_the_models_license_is_in_the_card_and_its_texts_beside_a_merged_model(
    form: str, run_config: Callable[..., dict[str, Any]], tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "LICENSE").write_text(APACHE)
    (model / "NOTICE.txt").write_text("by somebody")
    run, _ = write_run(run_config(model__name=str(model)), 0.5, 0.75)
    export(run, form, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0" in card.split("---\n")[1]
    assert "Its license, by its file LICENSE: apache-2.0." in card
    texts = {"LICENSE", "NOTICE.txt"} if form == "merged" else set()
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names & {"LICENSE", "NOTICE.txt"} == texts
    assert all((tmp_path / "out" / name).read_text() for name in texts)


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_the_license_of_a_model_that_the_run_had_from_the_hub_is_asked_for_there(
    form: str,
    run_config: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, _ = write_run(run_config(), 0.5, 0.75)
    environment = json.loads((run / "environment.json").read_text())
    environment["model"]["hub_id"] = "some/model"
    (run / "environment.json").write_text(json.dumps(environment))
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "README.md").write_text("---\nlicense: llama2\n---\n")
    monkeypatch.setattr(license, "snapshot", lambda *_: hub)
    export(run, form, tmp_path / "out")
    head = (tmp_path / "out" / "README.md").read_text().split("---\n")[1]
    assert "license: llama2" in head and "base_model: some/model" in head


def card_of(run: Path, out: Path) -> str:
    export(run, "peft", out)
    return (out / "README.md").read_text()


def with_rounds(run: Path, *changes: dict[str, Any]) -> None:
    """Change the run's records."""
    file = run / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    changed = [record | change for record, change in zip(records, changes, strict=True)]
    file.write_text("".join(json.dumps(record) + "\n" for record in changed))


def test_a_card_counts_the_clients_of_all_rounds(
    run_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run, _ = write_run(run_config(), 0.5, 0.75)
    one, two = ({"accuracy_per_client": dict.fromkeys(names, 0.5)} for names in ("0", "01"))
    with_rounds(run, one, two)
    card = card_of(run, tmp_path / "two")
    assert " by fednano-flwr: 2 clients, strategy" in card
    assert "| all | 24 | – | 75.0% |" in card  # round 0 was of other questions
    with_rounds(run, one, one)
    card = card_of(run, tmp_path / "one")
    assert " by fednano-flwr: 1 client, strategy" in card
    assert "| all | 24 | 50.0% | 75.0% |" in card


def test_a_cards_config_has_the_bounds_on_updates(
    run_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    flat = run_config()
    run, _ = write_run(flat, 0.5, 0.75)
    card = card_of(run, tmp_path / "out")
    bounds = [key for key in flat if key.startswith("bounds.")]
    assert bounds and all(f"| `{key}` |" in card for key in bounds)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/home/somebody/models/llava", "llava"),
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("package:fednano_demo/model", "package:fednano_demo/model"),
        ("scienceqa", "scienceqa"),
        ("module:fednano_demo.generate/a/b", "module:fednano_demo.generate/a/b"),
        ("/home/alice/a:b", "a:b"),
        ("C:/Users/alice/data", "data"),
        ("C:\\Users\\alice\\data", "data"),
        ("C:/data", "data"),
        ("data/alice/a:b", "a:b"),
    ],
)
def test_a_name_is_said_without_the_folders_it_lies_in(name: str, said: str) -> None:
    assert label(name) == said
