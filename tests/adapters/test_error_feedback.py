"""Error feedback, and states through the codecs."""

from __future__ import annotations

import pytest
import torch

from fednano_flwr.adapters.pack_fisher import pack_fisher, unpack_fisher
from fednano_flwr.adapters.packing import flatten, pack_adapters, unpack_adapters

State = dict[str, torch.Tensor]


def state(seed: int, scale: float = 1.0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "b.lora_B.weight": scale * torch.randn(21, 3, generator=generator),
        "b.lora_A.weight": scale * torch.randn(3, 21, generator=generator),
    }


def add(one: State, other: State) -> State:
    return {name: one[name] + other[name] for name in one}


def total_error(kind: str, rounds: int, feedback: bool) -> tuple[torch.Tensor, float]:
    """|Σ decoded − Σ true changes| after so many rounds, and the largest step of the last one.

    Every round's change is the same: two large entries, the others below half a step.
    """
    change = {name: 0.03 * value.sign() for name, value in state(1).items()}
    change["b.lora_A.weight"][0, 0] = change["b.lora_B.weight"][20, 2] = 1.0
    if kind == "int8":
        change = {name: value * (0.1 + 0.9 * (value == 1)) for name, value in change.items()}
    sent, residual = state(2, 0.01), None
    error = torch.zeros(126, dtype=torch.float64)
    for _ in range(rounds):
        packed = pack_adapters(add(sent, change), sent, kind, residual)
        got = unpack_adapters(packed.data, sent, kind)
        error += flatten(got).double() - flatten(sent).double() - flatten(change).double()
        residual = packed.residual if feedback else None
        sent = got
    step = packed.data[-4:].clone().view(torch.bfloat16).float().max()
    return error.abs(), float(step)


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_with_feedback_the_sum_of_all_rounds_is_off_by_half_a_step(kind: str) -> None:
    error, step = total_error(kind, 60, feedback=True)
    assert error.max() <= step / 2 + 1e-4
    without, step = total_error(kind, 60, feedback=False)
    assert without.max() > 5 * step


@pytest.mark.parametrize(("kind", "steps"), [("int8", 127), ("int4", 7)])
def test_adapters_come_back_within_half_a_step_and_the_residual_is_the_rest(
    kind: str, steps: int
) -> None:
    sent, theta = state(3), add(state(3), state(4, 0.01))
    packed = pack_adapters(theta, sent, kind)
    got = unpack_adapters(packed.data, sent, kind)
    assert {name: value.shape for name, value in got.items()} == {
        name: value.shape for name, value in theta.items()
    }
    largest = (flatten(theta) - flatten(sent)).abs().max()
    assert (flatten(got) - flatten(theta)).abs().max() <= 1.005 * largest / steps / 2 + 1e-6
    for name, value in theta.items():
        assert torch.allclose(got[name] + packed.residual[name], value, atol=1e-6), name


def test_a_residual_is_added_to_the_next_change() -> None:
    sent = {"b": torch.zeros(64)}
    theta = {"b": torch.zeros(64)}
    theta["b"][:2] = torch.tensor([0.7, 0.04])  # step 0.1
    first = pack_adapters(theta, sent, "int4")
    assert unpack_adapters(first.data, sent, "int4")["b"][1] == 0
    second = pack_adapters(theta, sent, "int4", first.residual)
    assert unpack_adapters(second.data, sent, "int4")["b"][1] == pytest.approx(0.1, rel=0.01)


def test_adapters_or_a_residual_of_other_shapes_are_refused() -> None:
    sent = state(1)
    with pytest.raises(ValueError, match="trained adapters have shapes"):
        pack_adapters({"b": torch.zeros(2)}, sent, "int4")
    with pytest.raises(ValueError, match="kept residual have shapes"):
        pack_adapters(state(2), sent, "int4", {"b": torch.zeros(2)})


def test_fisher_diagonals_come_back_under_their_names() -> None:
    fisher = {name: value**2 for name, value in state(5).items()}
    shapes = {name: tuple(value.shape) for name, value in fisher.items()}
    back = unpack_fisher(pack_fisher(fisher), shapes)
    assert set(back) == set(fisher)
    for name, value in fisher.items():
        ratio = back[name] / value
        assert (ratio < 1.82).all() and (ratio > 1 / 1.82).all(), name
