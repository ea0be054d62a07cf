"""What a checkpoint's config.json decides, and what it does not: people have all kinds of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from fednano_flwr.adapters.site import build_adapters
from fednano_flwr.config import Adapter, ConfigError, Model
from fednano_flwr.edge.encoder import QuestionEncoder, load_encoder
from fednano_flwr.edge.generation import generate
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.bundle import HALVES, check_half
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.models.source import check_model
from tests import families
from tests.models.test_families import SAMPLES

FLASH = "flash_attention_2"
GPTQ = {"quant_method": "gptq", "bits": 4}
Change = Callable[[dict[str, Any]], None]
TOKENS = 7


def top(**keys: Any) -> Change:
    return lambda config: config.update(keys)


def text(**keys: Any) -> Change:
    return lambda config: config["text_config"].update(keys)


def vision(**keys: Any) -> Change:
    return lambda config: config["vision_config"].update(keys)


@pytest.fixture
def changed(tiny_model: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """The tiny model with another config."""

    def make(change: Change) -> Path:
        folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
        file = folder / "config.json"
        config = json.loads(file.read_text())
        change(config)
        file.write_text(json.dumps(config))
        return folder

    return make


def inputs(size: int) -> Tensor:
    return torch.randn(1, TOKENS, size, generator=torch.Generator().manual_seed(0))


def logits(folder: Path) -> Tensor:
    half = load_llm_half(str(folder))
    mask = torch.ones(1, TOKENS, dtype=torch.bool)
    with torch.no_grad():
        return half.logits(inputs(half.hidden_size), torch.arange(TOKENS), mask)


HOW_IT_RUNS: dict[str, Change] = {
    "attention": top(attn_implementation=FLASH),
    "attention as older versions wrote it": top(_attn_implementation=FLASH),
    "attention of the text": text(attn_implementation=FLASH),
    "attention of the encoder": vision(_attn_implementation=FLASH),
    "attention by part": top(attn_implementation={"text_config": FLASH, "vision_config": "eager"}),
    "attention of a kernel's": top(attn_implementation="kernels-community/flash-attn"),
    "eager attention": top(attn_implementation="eager"),
    "experts": top(experts_implementation="grouped_mm"),
    "attentions kept": top(output_attentions=True),
    "attentions of the text kept": text(output_attentions=True),
    "all layers' outputs kept": text(output_hidden_states=True),
    "tuples": top(return_dict=False),
    "tuples of the text": text(return_dict=False),
    "no cache": top(use_cache=False),
    "no cache in the text": text(use_cache=False),
    "checkpointing": top(gradient_checkpointing=True),
    "dropout": text(attention_dropout=0.5),
    "dtype": top(dtype="bfloat16", torch_dtype="float16"),
    "no quantization": top(quantization_config=None),
    "no quantization of the text": text(quantization_config=None),
    "empty quantization": top(quantization_config={}),
    "code of its own": top(auto_map={"AutoModel": "modeling_x.X", "AutoConfig": "config_x.X"}),
    "a newer version": top(transformers_version="9.9.9"),
    "no architectures": top(architectures=None),
    "another name": top(_name_or_path="somebody/else"),
}


OFTEN = ("attention of the text", "tuples", "dropout", "no quantization", "code of its own")


@pytest.mark.parametrize(
    "key", [pytest.param(k, marks=() if k in OFTEN else pytest.mark.slow) for k in HOW_IT_RUNS]
)
def test_a_config_does_not_say_how_a_model_runs_here(
    key: str,
    changed: Callable[[Change], Path],
    tiny_model: Path,
    encoder: QuestionEncoder,
) -> None:
    folder = changed(HOW_IT_RUNS[key])
    check_model(str(folder))
    assert torch.equal(logits(folder), logits(tiny_model))
    host = load_llm_half(str(folder))._host
    assert host.config.get_text_config()._attn_implementation == "sdpa"
    pictures = encoder.vision_inputs(SAMPLES[0])
    ours, usual = (load_edge_half(str(f)).features("image", pictures) for f in (folder, tiny_model))
    assert torch.equal(ours, usual)


@pytest.mark.parametrize("family", families.every(but=("llava",)))
def test_no_familys_attention_is_what_the_config_says(family: str, tmp_path: Path) -> None:
    folder = families.write(family, tmp_path / family)
    before = attention_of_parts(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for part in (
        config,
        *(part for key, part in config.items() if part and key.endswith("_config")),
    ):
        part["attn_implementation"] = FLASH
    file.write_text(json.dumps(config))
    assert attention_of_parts(folder) == before


def attention_of_parts(folder: Path) -> list[str]:
    """The attention of each part of both halves."""
    halves = load_llm_half(str(folder))._host, load_edge_half(str(folder))._vision
    return [
        config._attn_implementation
        for half in halves
        for config in (half.config, *(getattr(half.config, k) for k in half.config.sub_configs))
        if config is not None
    ]


def without(*keys: str, **more: Any) -> Change:
    def change(config: dict[str, Any]) -> None:
        for key in keys:
            config["text_config"].pop(key, None)
        config["text_config"].update(more)

    return change


POSITIONS: dict[str, Change] = {
    "base, as older versions wrote it": without("rope_parameters", rope_theta=500.0),
    "linear, as older versions wrote it": text(rope_scaling={"type": "linear", "factor": 4.0}),
    "dynamic": text(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
    "none": text(rope_scaling=None),
    "linear": text(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 77.0}),
}


@pytest.mark.parametrize("written", POSITIONS)
def test_positions_are_those_that_transformers_reads(
    written: str, changed: Callable[[Change], Path]
) -> None:
    folder = changed(POSITIONS[written])
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    with torch.no_grad():
        theirs = model(inputs_embeds=inputs(48)).logits[0]
    assert torch.allclose(logits(folder), theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (top(quantization_config=GPTQ), r"quantization_config \(gptq\)"),
        (text(quantization_config=GPTQ), r"quantization_config \(gptq\)"),
        (top(quantization_config={"load_in_4bit": True}), r"quantization_config .*load_in_4bit"),
        (text(rope_scaling={"type": "no such"}), r"config\.json.*no such"),
        (text(hidden_size=64), r"has shape .*the config asks for"),
    ],
)
def test_a_config_that_its_weights_do_not_fit_is_refused(
    change: Change, says: str, changed: Callable[[Change], Path]
) -> None:
    model = Model(str(changed(change)))
    for half in HALVES:
        with pytest.raises(ConfigError, match=says):
            check_half(model, half)


@pytest.mark.parametrize("written", ["{", "[]", '{"eos_token_id": "2"}', '{"eos_token_id": [[2]]}'])
def test_a_generation_config_that_cannot_be_used_is_named(
    written: str, changed: Callable[[Change], Path]
) -> None:
    folder = changed(top())
    (folder / "generation_config.json").write_text(written)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        load_encoder(ModelCheckpoint(str(folder)))


def test_a_generation_config_says_where_answers_end_and_nothing_else(
    changed: Callable[[Change], Path],
) -> None:
    folder = changed(top())
    written = {"eos_token_id": [3, 9], "do_sample": True, "temperature": 9.0, "max_length": 1}
    (folder / "generation_config.json").write_text(json.dumps(written))
    half, encoder = load_edge_half(str(folder)), load_encoder(ModelCheckpoint(str(folder)))
    adapters = build_adapters(48, Adapter(rank=2, alpha=2.0, dropout=0.0, sites="text"), 0)
    edge = NanoEdge(half, half.token_table(), adapters, encoder)
    llm = LowRankExchange(FrozenLLM(load_llm_half(str(folder))), "server")
    answers = [generate(edge, llm, [encoder.encode(SAMPLES[0])], 5) for _ in range(3)]
    assert answers[0][0] and answers == [answers[0]] * 3
    assert encoder.ends == {3, 9}
