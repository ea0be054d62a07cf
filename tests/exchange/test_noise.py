"""Clip and noise of what leaves a client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fednano_flwr.config import RunConfig
from fednano_flwr.edge.client import exchange_of
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.noise import Noise, clipped, noise_of, system_normal
from fednano_flwr.exchange.protocol import IGNORE, AdaptedBatch, LLMInputs
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.llm_half import LLMHalf

ROWS = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])


class Inspected(FrozenLLM):
    """A host that keeps what arrives."""

    def __init__(self, half: LLMHalf) -> None:
        super().__init__(half)
        self.seen: list[Tensor] = []

    def step(self, inputs: Any, labels: Tensor, owner: bytes = b"") -> Any:
        self.seen.append(inputs.embeds)
        return super().step(inputs, labels, owner)

    def score(self, inputs: Any, *rest: Any, **named: Any) -> Tensor:
        self.seen.append(inputs.embeds)
        return super().score(inputs, *rest, **named)

    def next_tokens(self, inputs: Any, *rest: Any, **named: Any) -> Tensor:
        self.seen.append(inputs.embeds)
        return super().next_tokens(inputs, *rest, **named)

    def prefill(self, inputs: Any, *rest: Any, **named: Any) -> Any:
        self.seen.append(inputs.embeds)
        return super().prefill(inputs, *rest, **named)

    def decode(self, cache: int, token: Any, *rest: Any, **named: Any) -> Any:
        self.seen.append(token.embedding)
        return super().decode(cache, token, *rest, **named)


def batch(z: Tensor, b: Tensor) -> AdaptedBatch:
    hidden = torch.randn(5, 48, generator=torch.Generator().manual_seed(1))
    text = torch.zeros(5, dtype=torch.bool)
    return AdaptedBatch(hidden, text, torch.arange(5), (), {"text": z}, {"text": b}, (5,))


def test_longer_rows_are_scaled_to_the_clip_and_shorter_ones_stay() -> None:
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])
    assert torch.allclose(clipped(ROWS, 1.0), expected)
    assert torch.equal(clipped(ROWS, 5.0), ROWS)


def test_the_gradient_of_the_clip_is_its_derivative() -> None:
    """d (C x/‖x‖) = C (I − x xᵀ/‖x‖²)/‖x‖ where it clips, the identity where it does not."""
    rows = ROWS.clone().requires_grad_()
    clipped(rows, 1.0).backward(torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 2.0]]))
    expected = torch.tensor([[(1 - 9 / 25) / 5, -12 / 25 / 5], [1.0, 2.0], [1.0, 2.0]])
    assert rows.grad is not None and torch.allclose(rows.grad, expected)


def test_noise_is_added_in_multiples_of_the_clip_and_keeps_the_dtype() -> None:
    noise = Noise(2.0, 0.5, lambda count: torch.arange(float(count)))
    assert noise(torch.zeros(2, 2)).tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert noise(torch.zeros(2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_system_noise_is_standard_normal_and_never_twice_the_same() -> None:
    drawn, again = system_normal(200_001), system_normal(200_001)
    assert drawn.shape == (200_001,) and not torch.equal(drawn, again)
    assert drawn.isfinite().all()
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.02  # 9 and 12 deviations
    assert abs((drawn.abs() < 1).float().mean() - 0.6827) < 0.01
    assert abs((drawn[:-1] * drawn[1:]).mean()) < 0.02
    half = len(drawn) // 2  # the two numbers of a pair
    assert abs((drawn[:half] * drawn[-half:]).mean()) < 0.02


def test_the_seed_of_a_run_does_not_say_the_noise() -> None:
    torch.manual_seed(0)
    first = system_normal(8)
    torch.manual_seed(0)
    assert not torch.equal(first, system_normal(8))


def test_an_answer_token_by_token_is_clipped_and_noised_too(llm_half: LLMHalf) -> None:
    host = Inspected(llm_half)
    llm = EmbeddingsExchange(host, "server", Noise(1.0, 0.1))
    prompt = batch(torch.zeros(5, 2), torch.zeros(48, 2))
    one = replace(
        prompt,
        hidden=prompt.hidden[:1],
        is_image=prompt.is_image[:1],
        token_ids=prompt.token_ids[:1],
        lengths=(1,),
        z={"text": torch.zeros(1, 2)},
    )
    llm.decode(llm.prefill(prompt).cache, one)
    for rows, plain in zip(host.seen, (prompt, one), strict=True):
        assert 0.05 < (rows - clipped(plain.hidden, 1.0)).std() < 0.15


def test_all_that_leaves_is_clipped_and_noised_afresh_also_in_scoring(llm_half: LLMHalf) -> None:
    host = Inspected(llm_half)
    llm = EmbeddingsExchange(host, "server", Noise(1.0, 0.1))
    plain = batch(torch.zeros(5, 2), torch.zeros(48, 2))
    labels = torch.tensor([IGNORE] * 4 + [7])
    llm.loss(plain, labels)
    llm.loss(plain, labels)
    llm.score(plain, torch.tensor([4]), torch.tensor([1, 2]))
    llm.next_tokens(plain, torch.tensor([4]))
    assert len(host.seen) == 4
    noises = [rows - clipped(plain.hidden, 1.0) for rows in host.seen]
    for noise in noises:
        assert 0.05 < noise.std() < 0.15  # 240 numbers of deviation 0.1
    for one, other in pairwise(noises):
        assert not torch.equal(one, other)


def test_gradients_are_those_of_the_loss_at_what_was_sent(llm_half: LLMHalf) -> None:
    host, generator = FrozenLLM(llm_half), torch.Generator().manual_seed(3)
    fixed = torch.randn(5 * 48, generator=generator)
    noise = Noise(3.0, 0.2, lambda count: fixed)
    z, b = (torch.randn(shape, generator=generator) for shape in ((5, 2), (48, 2)))
    labels = torch.tensor([IGNORE] * 4 + [7])
    z.requires_grad_()
    EmbeddingsExchange(host, "server", noise).loss(batch(z, b), labels).backward()
    rows = batch(z.detach(), b).embedded().embeds.requires_grad_()
    sent = noise(rows)
    _, gradient = host.step(LLMInputs(sent.detach(), (5,)), labels)
    sent.backward(gradient)
    assert z.grad is not None and rows.grad is not None
    assert torch.allclose(z.grad, rows.grad @ b, atol=1e-6)


def test_without_clip_and_noise_nothing_is_done(defaults: dict[str, Any], llm_half: Any) -> None:
    config = RunConfig.parse({**defaults, "exchange.kind": "embeddings"})
    assert noise_of(config.privacy) is None
    llm = exchange_of(config, FrozenLLM(llm_half))
    assert isinstance(llm, EmbeddingsExchange) and llm._noise is None


@pytest.fixture
def parsed(defaults: dict[str, Any]) -> Callable[..., RunConfig]:
    return lambda **keys: RunConfig.parse(
        {**defaults, **{key.replace("__", ".").replace("_", "-"): v for key, v in keys.items()}}
    )


def test_a_config_with_noise_gets_it(parsed: Callable[..., RunConfig], llm_half: LLMHalf) -> None:
    config = parsed(
        exchange__kind="embeddings", privacy__embedding_clip=2, privacy__embedding_noise=0.5
    )
    llm = exchange_of(config, FrozenLLM(llm_half))
    assert isinstance(llm, EmbeddingsExchange) and isinstance(llm._noise, Noise)
    assert (llm._noise.clip, llm._noise.multiplier) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"privacy__embedding_clip": 1.0}, "token ids"),
        (
            {"exchange__kind": "embeddings", "privacy__embedding_noise": 0.1},
            "a multiple of the clip",
        ),
        ({"exchange__kind": "embeddings", "privacy__embedding_clip": -1.0}, "0 \\(off\\) or more"),
        (
            {
                "exchange__kind": "embeddings",
                "privacy__embedding_clip": 1.0,
                "privacy__embedding_noise": float("nan"),
            },
            "privacy.embedding-noise = nan",
        ),
    ],
)
def test_noise_that_would_hide_nothing_is_refused(
    parsed: Callable[..., RunConfig], keys: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        parsed(**keys)
