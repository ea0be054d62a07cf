"""Layers that keep a state in place of keys and values: convolutions and linear attention."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, LinearAttentionLayer

from fednano_flwr.config import ConfigError
from fednano_flwr.llm.caches import Answers
from fednano_flwr.models.layers import decoder_layers
from fednano_flwr.models.llm_half import LLMHalf, load_llm_half
from fednano_flwr.models.source import check_model
from tests.models.test_families import error

MIXERS = {"lfm2_vl": ("conv", "self_attn"), "qwen3_5": ("linear_attn", "self_attn")}
"""Modules of a decoder layer by which a token reads those before it; a layer has one of them."""
STATES = [
    ("lfm2_vl", "conv_states"),
    ("qwen3_5", "conv_states"),
    ("qwen3_5", "recurrent_states"),
]
LENGTHS = (9, 4, 7)
ROUNDING = 1e-5
SEEN = 1e-3
"""Relative differences: of the same in another order of sums, and of something else."""

Folders = Callable[[str], Path]


@pytest.fixture(params=MIXERS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def half(family: str, family_folder: Folders) -> LLMHalf:
    return load_llm_half(str(family_folder(family)))


def prompts(half: LLMHalf, lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    """Input embeddings (T, d) of sequences."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, half.hidden_size, generator=generator) for length in lengths]


def next_tokens(half: LLMHalf) -> Tensor:
    """Input embeddings (B, d) of one token more of each."""
    return torch.stack([rows[-1].flip(0) for rows in prompts(half)])


@torch.no_grad()
def read(half: LLMHalf, rows: Sequence[Tensor], filler: float = 0.0) -> tuple[Tensor, Answers]:
    """Logits (B, vocabulary) after prompts, padded on the left as a host does, and their cache."""
    lengths = torch.tensor([len(own) for own in rows])
    pads = lengths.max() - lengths
    cache = half.new_cache()
    embeds = pad_sequence(list(rows), True, filler, "left")
    positions = (torch.arange(embeds.shape[1]) - pads[:, None]).clamp(min=0)
    logits = half.next_logits(embeds, pads, cache, 0, on_axes(half, positions))
    return logits, Answers(cache, pads, embeds.shape[1], lambda tokens: torch.empty(0))


@torch.no_grad()
def go_on(half: LLMHalf, answers: Answers, rows: Tensor) -> Tensor:
    """Logits (B, vocabulary) after one token more (B, d) of each sequence."""
    positions = on_axes(half, (answers.width - answers.pads)[:, None])
    return half.next_logits(rows[:, None], answers.pads, answers.cache, answers.width, positions)


def on_axes(half: LLMHalf, positions: Tensor) -> dict[str, Tensor]:
    three = positions.expand(3, *positions.shape)
    return {"position_ids": three} if half.family.position_axes else {}


def states(cache: Cache, kind: str) -> list[Tensor]:
    """Of all layers that have a state of this kind."""
    layers = [layer for layer in cache.layers if isinstance(layer, LinearAttentionLayer)]
    found = [state for layer in layers for state in getattr(layer, kind).values()]
    return [state for state in found if state is not None]


def test_layers_of_either_kind_change_the_logits(half: LLMHalf, family: str) -> None:
    whole, _ = read(half, prompts(half))
    layers = decoder_layers(half.get_submodule("_host"))  # type: ignore[arg-type]
    for name in MIXERS[family]:
        own = [getattr(layer, name) for layer in layers if hasattr(layer, name)]
        hooks = [mixer.register_forward_hook(nothing) for mixer in own]
        assert hooks and len(hooks) < len(layers)
        without, _ = read(half, prompts(half))
        for hook in hooks:
            hook.remove()
        assert error(without, whole) > SEEN


def nothing(module: Any, args: Any, output: Any) -> Any:
    several = isinstance(output, tuple)
    return (output[0] * 0, *output[1:]) if several else output * 0


def test_an_answer_goes_on_as_if_all_had_been_read_at_once(half: LLMHalf) -> None:
    rows, more = prompts(half), next_tokens(half)
    _, answers = read(half, rows)
    found = go_on(half, answers, more)
    whole, _ = read(
        half, [torch.cat([own, one[None]]) for own, one in zip(rows, more, strict=True)]
    )
    assert error(found, whole) <= ROUNDING


@pytest.mark.parametrize(("family", "kind"), STATES, indirect=["family"])
def test_without_its_prompts_state_an_answer_goes_on_otherwise(half: LLMHalf, kind: str) -> None:
    found = []
    for factor in (1, 0):
        _, answers = read(half, prompts(half))
        kept = states(answers.cache, kind)
        assert len(kept) == 2 and all(state.any() for state in kept)
        for state in kept:
            state.mul_(factor)
        found.append(go_on(half, answers, next_tokens(half)))
    assert error(found[1], found[0]) > SEEN


def test_what_stands_in_padding_reaches_no_state(half: LLMHalf) -> None:
    (first, answers), (same, others) = (read(half, prompts(half), x) for x in (0.0, 5.0))
    assert torch.equal(first, same)
    more = next_tokens(half)
    assert torch.equal(go_on(half, answers, more), go_on(half, others, more))


def test_answers_that_go_on_keep_their_own_states(half: LLMHalf) -> None:
    more = next_tokens(half)
    _, answers = read(half, prompts(half))
    expected = go_on(half, answers, more)
    for chosen in ([0, 2], [1], [2]):
        _, answers = read(half, prompts(half))
        answers.go_on_with(torch.tensor(chosen))
        assert error(go_on(half, answers, more[chosen]), expected[chosen]) <= ROUNDING


def test_a_sequence_alone_is_what_it_is_among_others(half: LLMHalf) -> None:
    rows, more = prompts(half), next_tokens(half)
    first, answers = read(half, rows)
    second = go_on(half, answers, more)
    for place, own in enumerate(rows):
        alone, answer = read(half, [own])
        assert error(alone, first[place : place + 1]) <= ROUNDING
        after = go_on(half, answer, more[place : place + 1])
        assert error(after, second[place : place + 1]) <= ROUNDING


def test_a_sample_alone_trains_as_it_does_among_others(half: LLMHalf) -> None:
    """On the right there is no mask: what comes after a token does not reach it."""
    rows = [own.requires_grad_() for own in prompts(half)]
    losses, gradients = [], []
    for batch in (rows, *([own] for own in rows)):
        embeds = pad_sequence(batch, batch_first=True)
        count, width, _ = embeds.shape
        last = torch.tensor([i * width + len(own) - 1 for i, own in enumerate(batch)])
        mask = torch.arange(width) < torch.tensor([len(own) for own in batch])[:, None]
        positions = on_axes(half, torch.arange(width).expand(count, -1))
        logits = half.logits(embeds, last, mask, positions)
        losses.append(logits.log_softmax(1)[:, 5])
        gradients.append(torch.autograd.grad(losses[-1].sum(), batch))
    assert error(torch.cat(losses[1:]), losses[0]) <= ROUNDING
    for got, (alone,) in zip(gradients[0], gradients[1:], strict=True):
        assert alone.any(1).all() and error(got, alone) <= ROUNDING


def test_convolutions_by_which_padding_would_reach_an_answer_are_refused(
    family_folder: Folders, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(family_folder("lfm2_vl"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["conv_bias"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="conv_bias"):
        check_model(str(folder))
