"""Dialogues, captions and options in words: their loss is the whole model's, in every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fednano_flwr.adapters.site import build_adapters, named_trainable, randomize
from fednano_flwr.config import Adapter
from fednano_flwr.data.errors import SampleError
from fednano_flwr.data.sample import Place, Sample, Turn
from fednano_flwr.edge.client import EXCHANGES
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import next_token_labels, teacher_forced
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from tests.families import TINY, every
from tests.models.test_families import error, for_family, picture
from tests.models.unsplit import Unsplit

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
CAPTION = " ".join(f"w{20 + k % 17}" for k in range(60))
SAMPLES = {
    "three turns": Sample(
        "0",
        "w34 w35",
        "g",
        "s",
        free_answer="w36",
        images=(picture(0, 24, 30),),
        turns=(
            Turn(SYSTEM, ("w20 w21 ",)),
            Turn(USER, (Place.PICTURE, "w22 w23 ?")),
            Turn(ASSISTANT, ("w24 w25 w26",)),
            Turn(USER, (" w27 w28",)),
            Turn(ASSISTANT, ("w29",)),
            Turn(USER, (" w34 w35",)),
        ),
    ),
    "two pictures in different turns": Sample(
        "1",
        "w20 w21",
        "g",
        "s",
        free_answer="w22 w23 w24",
        images=(picture(1, 40, 30), picture(2, 20, 20)),
        turns=(
            Turn(USER, (Place.PICTURE, "w25")),
            Turn(ASSISTANT, ("w26 w27",)),
            Turn(USER, (" w20 ", Place.PICTURE, " w21")),
        ),
    ),
    "caption": Sample("2", "w20", "g", "s", free_answer=CAPTION, images=(picture(3, 30, 30),)),
    "14 options": Sample(
        "3",
        "w20 w21",
        "g",
        "s",
        choices=tuple(f"w{k} w{k + 1}" for k in range(20, 34)),
        answer=12,
        images=(picture(4, 24, 24),),
    ),
}
ONE_TURN = Sample(
    "4",
    "w20 w21",
    "g",
    "s",
    free_answer="w22",
    images=(picture(5, 24, 24),),
    turns=(Turn(USER, (Place.PICTURE, "w20 w21")),),
)


@dataclass
class Setting:
    family: str
    whole: Unsplit
    edge: NanoEdge
    host: FrozenLLM


@pytest.fixture(scope="module", params=every())
def setting(request: pytest.FixtureRequest, family_folder: Callable[[str], Path]) -> Setting:
    folder = family_folder(request.param)
    half = load_edge_half(str(folder))
    adapters = build_adapters(48, Adapter(4, 8.0, 0.0, "all"), seed=3, sites=half.sites)
    randomize(adapters, 0.3, seed=4)
    encoder = load_encoder(ModelCheckpoint(str(folder)))
    edge = NanoEdge(half, half.token_table(), adapters, encoder)
    whole = Unsplit(folder, request.param, "float32")
    return Setting(request.param, whole, edge, FrozenLLM(load_llm_half(str(folder))))


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_loss_and_its_gradients_are_the_whole_models(setting: Setting, kind: str) -> None:
    edge, encoder = setting.edge, setting.edge.encoder
    sample = for_family(setting.family, SAMPLES[kind])
    if TINY[setting.family].family.prompt and len(sample.turns) > 1:
        with pytest.raises(SampleError, match=rf"{len(sample.turns)} turns"):
            encoder.encode(sample)
        return
    question = encoder.encode(sample)
    earlier = [turn.text for turn in sample.turns if turn.role == ASSISTANT]
    learned = question.ids[question.learned].tolist()
    assert encoder.processor.tokenizer.decode(learned).replace("</s>", " </s> ").split() == [
        word for text in earlier for word in (*text.split(), "</s>")
    ]
    allowed = 10 * TINY[setting.family].tolerance
    expected = setting.whole.loss(question, encoder, edge.adapters)
    wanted = gradients(expected, edge)
    for name, exchange in EXCHANGES.items():
        for labels_at in ("server", "client"):
            batch = edge([question], teacher_forced([question]))
            labels = next_token_labels([question], IGNORE)
            loss = exchange(setting.host, labels_at).loss(batch, labels)
            assert loss.item() == pytest.approx(expected.item(), rel=allowed), name
            found = gradients(loss, edge)
            assert found.keys() == wanted.keys()
            assert max(error(found[name], wanted[name]) for name in wanted) <= allowed


def gradients(loss: Tensor, edge: NanoEdge) -> dict[str, Tensor]:
    """Of the adapters that took part."""
    trained = named_trainable(edge.adapters)
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {name: one for name, one in zip(trained, found, strict=True) if one is not None}


def test_one_turn_of_a_dialogue_is_taken_by_every_family(setting: Setting) -> None:
    encoder = setting.edge.encoder
    question = encoder.encode(for_family(setting.family, ONE_TURN))
    assert encoder.decode(question.ids.tolist()).startswith("w20 w21")
    assert not question.learned.any() and encoder.decode(question.answer).strip() == "w22"


def test_more_options_than_letters_are_words_with_an_end(setting: Setting) -> None:
    sample = for_family(setting.family, SAMPLES["14 options"])
    encoder = setting.edge.encoder
    question = encoder.encode(sample)
    assert question.options == () and [words[-1] for words in question.words] == [encoder.end] * 14
    assert tuple(encoder.decode(words) for words in question.words) == sample.choices
    assert question.answer == question.words[12]
