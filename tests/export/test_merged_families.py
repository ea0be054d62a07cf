"""Every family: a merged model is the split run, and plain transformers loads it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from fednano_flwr.adapters.product import Factors, adapters_of
from fednano_flwr.adapters.site import adapter_state, sites_in
from fednano_flwr.config import Adapter
from fednano_flwr.edge.client import EXCHANGES
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, next_token_labels, teacher_forced
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.export.merged import Merged, write_merged
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.families import FAMILIES, canonical
from tests import families
from tests.export.made_up import host_of, random_adapters, random_lora
from tests.models.test_families import samples_of
from tests.models.test_loading import NAMES, rename
from tests.models.unsplit import Unsplit

ADAPTER = Adapter(4, 8.0, 0.0, "all,llm", llm_rank=3, llm_targets="all-linear")
BATCHES = {
    "one picture": slice(0, 1),
    "no picture": slice(1, 2),
    "several pictures": slice(2, 3),
    "all kinds": slice(0, 5),
}
TOLERANCE = 1e-4
UNTRIED = FAMILIES.keys() - families.TINY.keys()  # now: another test may register one of its own
# Beside every family as its config has it: a head that is the embeddings' table, and one that is
# not, where that is not what the family usually has; names that other versions wrote.
VARIANTS = families.every("llava tied", "qwen2_5_vl tied", "gemma3 untied", "blip-2 untied", *NAMES)


def test_every_family_is_merged_here() -> None:
    assert not UNTRIED


@dataclass
class Setting:
    family: str
    model: Path
    merged: Path
    lora: dict[str, Factors]
    report: Merged
    questions: list[Question]
    edge: NanoEdge
    host: FrozenLLM


def factors(adapters: Any) -> dict[str, Factors]:
    """A and s·B of each site, read from PEFT's own layers."""
    found = {}
    for site in sites_in(adapter_state(adapters)):
        layer = getattr(adapters.base_model.model, f"{site}_adapter")
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        found[site] = Factors(a.detach(), layer.scaling["default"] * b.detach().double())
    return found


def rewritten(folder: Path, family: str, tied: bool, out: Path) -> Path:
    """The same checkpoint without zeros, its head tied to the embeddings or one of its own."""
    model = families.TINY[family].family.model_class.from_pretrained(folder)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    table = model.get_input_embeddings().weight
    head = table if tied else torch.nn.Parameter(torch.randn_like(table) * 0.1)
    model.get_output_embeddings().weight = head
    state = dict(model.state_dict())
    if tied:
        state = {key: value for key, value in state.items() if not key.endswith("lm_head.weight")}
    model.save_pretrained(out, state_dict=state, max_shard_size="100KB")
    for file in folder.iterdir():
        if not (out / file.name).exists() and ".safetensors" not in file.name:
            (shutil.copytree if file.is_dir() else shutil.copy)(file, out / file.name)
    return out


@pytest.fixture(scope="module", params=VARIANTS)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    place = tmp_path_factory.mktemp("export")
    words = request.param.split()
    family = words[0] if words[0] in families.TINY else words[1]
    model = families.write(family, place / family)
    tied = words[-1] == "tied" or request.param in NAMES  # then the head's name is made up
    if family == "llava" or tied or words[-1] == "untied":
        model = rewritten(model, family, tied, place / "rewritten")
    if request.param in NAMES:
        model = rename(model, place / "renamed", NAMES[request.param], shards=3)
    checkpoint = ModelCheckpoint(str(model))
    frozen = load_edge_half(str(model))
    adapters = random_adapters(48, ADAPTER, sites=frozen.sites)
    merged = place / "merged"
    merged.mkdir()
    lora = {
        name.removeprefix("llm."): Factors(pair.a, 8 / 3 * pair.b.double())
        for name, pair in adapters_of(random_lora(checkpoint, ADAPTER)).items()
    }
    report = write_merged(checkpoint, factors(adapters), lora, merged)
    encoder = load_encoder(checkpoint)
    return Setting(
        family,
        model,
        merged,
        lora,
        report,
        [encoder.encode(sample) for sample in samples_of(encoder)],
        NanoEdge(frozen, frozen.token_table(), adapters.eval(), encoder),
        host_of(checkpoint, ADAPTER),
    )


@torch.no_grad()
def split_scores(setting: Setting, chosen: list[Question]) -> Tensor:
    labels = next_token_labels(chosen, IGNORE)
    rows = (labels != IGNORE).nonzero().squeeze(1)
    inputs = setting.edge(chosen, teacher_forced(chosen))
    every = torch.arange(setting.host.describe().vocabulary)
    return EXCHANGES["embeddings"](setting.host, "server").score(inputs, rows, every)


def distance(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


def test_the_merged_model_has_the_split_runs_logits(setting: Setting) -> None:
    whole = Unsplit(setting.merged, setting.family, "float32")
    frozen = Unsplit(setting.model, setting.family, "float32")
    for name, part in BATCHES.items():
        chosen = setting.questions[part]
        expected = split_scores(setting, chosen)
        with torch.no_grad():
            got = whole.logits(chosen, setting.edge.encoder, None, "right").log_softmax(1)
            before = frozen.logits(chosen, setting.edge.encoder, None, "right").log_softmax(1)
        assert distance(got, expected) <= TOLERANCE, name
        assert distance(before, expected) > 100 * TOLERANCE, name


def test_transformers_finds_every_weight_and_no_other(setting: Setting) -> None:
    own = families.TINY[setting.family].family
    sees = "image" in own.modalities  # for those that hear alone there is no common class
    kind = transformers.AutoModelForImageTextToText if sees else own.model_class
    model, said = kind.from_pretrained(setting.merged, output_loading_info=True)
    assert type(model) is own.model_class
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    base = families.TINY[setting.family].family.model_class.from_pretrained(setting.model)
    head = model.get_output_embeddings().weight
    assert torch.equal(head, base.get_output_embeddings().weight)
    shared = base.get_output_embeddings().weight is base.get_input_embeddings().weight
    assert bool(setting.report.head) == shared


def test_only_embeddings_connector_and_the_loras_layers_differ_from_the_checkpoint(
    setting: Setting,
) -> None:
    before, after = ModelCheckpoint(str(setting.model)), ModelCheckpoint(str(setting.merged))
    assert after.files.keys() - before.files.keys() == (
        {"lm_head.weight"} if setting.report.head else set()
    )
    differing = {
        name
        for (name, old), (same, new) in zip(
            before.read(before.files), after.read(before.files), strict=True
        )
        if name == same and not torch.equal(old, new)
    }
    assert differing == {
        name for name, (_, key) in after.files.items() if key in setting.report.changed
    }
    layers = {canonical(f"{name}.weight") for name in setting.lora}
    assert layers < differing and len(differing - layers) in (2, 3, 4)
