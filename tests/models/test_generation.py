"""Every family: an answer from a kept cache is the one without, and the whole model's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import GenerationConfig

from fednano_flwr.adapters.site import build_adapters, named_trainable
from fednano_flwr.config import Adapter
from fednano_flwr.edge.client import EXCHANGES
from fednano_flwr.edge.generation import answer_tokens, generate
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, load_encoder
from fednano_flwr.exchange.protocol import LLM, NewToken
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.families import FAMILIES
from fednano_flwr.models.llm_half import load_llm_half
from tests import tiny_families
from tests.models.test_families import FLOAT32_INSIDE, OWN_ROUNDING, SAMPLES, TOLERANCE, error
from tests.models.unsplit import Unsplit

TOKENS = 10
"""More than the windows of the tiny sliding layers (Gemma 3: 8)."""


@dataclass
class Setting:
    whole: Unsplit
    edge: NanoEdge
    host: FrozenLLM
    questions: list[Question]


@pytest.fixture(scope="module", params=list(FAMILIES))
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    family = request.param
    folder = tiny_families.write(family, tmp_path_factory.mktemp("model") / family)
    encoder = load_encoder(ModelCheckpoint(str(folder)))
    encoder.ends = set()  # every answer is as long as it may be
    frozen = load_edge_half(str(folder))
    adapters = build_adapters(48, Adapter(rank=4, alpha=8.0, dropout=0.0, sites="image,text"), 3)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in named_trainable(adapters).items():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return Setting(
        Unsplit(folder, family, "float32"),
        NanoEdge(frozen, frozen.token_table(), adapters, encoder),
        FrozenLLM(load_llm_half(str(folder))),
        [encoder.encode(sample) for sample in (SAMPLES[3], SAMPLES[1])],
    )


def unsplit(setting: Setting, question: Question) -> list[int]:
    """What the whole model's own `generate` gives."""
    family, model = setting.whole.family, setting.whole.model
    ids = question.ids[None]
    arguments: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
    if question.sample.pictures:
        arguments |= setting.edge.encoder.vision_inputs(question.sample)
    if family in ("gemma3", "qwen2_5_vl"):
        key = "token_type_ids" if family == "gemma3" else "mm_token_type_ids"
        arguments[key] = (ids == setting.whole.image_token).long()
    if family == "paligemma":
        arguments["token_type_ids"] = torch.zeros_like(ids)
    settings = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
    with setting.whole.adapted(setting.edge.adapters), torch.no_grad():
        if family in ("instructblip", "blip-2") and not question.sample.pictures:
            embeds = model.get_input_embeddings()(ids)
            lm = model.language_model
            found = lm.generate(inputs_embeds=embeds, generation_config=settings, **arguments)
        else:
            found = model.generate(input_ids=ids, generation_config=settings, **arguments)
    return found[0, -TOKENS:].tolist()


@contextmanager
def seen(host: FrozenLLM) -> Iterator[list[torch.Tensor]]:
    """Logits (1, vocabulary) of each pass."""
    found = []
    original = host._half.logits

    def logits(*arguments: Any) -> torch.Tensor:
        found.append(original(*arguments))
        return found[-1]

    with mock.patch.object(host._half, "logits", logits):
        yield found


@pytest.fixture(params=["embeddings, in-process", "lowrank, grpc"])
def llm(request: pytest.FixtureRequest, setting: Setting) -> Iterator[LLM]:
    kind, _, where = request.param.partition(", ")
    if where == "in-process":
        yield EXCHANGES[kind](setting.host, "server")
    else:
        with serve(setting.host) as address, RemoteLLM(address) as remote:
            yield EXCHANGES[kind](remote, "server")


def test_tokens_from_the_cache_are_those_without_and_the_whole_models(
    setting: Setting, llm: LLM
) -> None:
    for question in setting.questions:
        with seen(setting.host) as cached:
            tokens = list(answer_tokens(setting.edge, llm, question, TOKENS))
        assert len(tokens) == TOKENS and tokens == unsplit(setting, question)
        with seen(setting.host) as uncached:
            (text,) = generate(setting.edge, llm, [question], TOKENS)
        assert text == setting.edge.encoder.decode(tokens)
        # A random model's answer may be one word again and again; its logits are not.
        got, expected = torch.cat(cached), torch.cat(uncached)
        allowed = FLOAT32_INSIDE.get(setting.whole.family, TOLERANCE)
        assert len(got) == TOKENS and error(got, expected) <= OWN_ROUNDING * allowed
        assert error(got[1:], got[:-1]) > 100 * OWN_ROUNDING * allowed


def test_a_position_that_does_not_fit_the_family_is_refused(setting: Setting) -> None:
    wrong = None if setting.whole.family == "qwen2_5_vl" else torch.tensor([1, 2, 3])
    begun = EXCHANGES["lowrank"](setting.host, "server").prefill(
        setting.edge(setting.questions[1:2])
    )
    with pytest.raises(ValueError, match="position"):
        setting.host.decode(begun.cache, NewToken(5, position=wrong))
