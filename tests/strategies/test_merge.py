import math

import pytest
import torch

from fednano_flwr.strategies.merge import (
    extrapolation,
    fisher_merge,
    fisher_notes,
    fisher_weights,
    weighted_mean,
)


def test_weighted_mean_by_hand() -> None:
    merged = weighted_mean([torch.tensor([1.0, 10.0]), torch.tensor([4.0, -2.0])], [2.0, 1.0])
    assert merged.tolist() == pytest.approx([2.0, 6.0])


def test_fisher_merge_by_hand() -> None:
    thetas = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0, 5.0, 5.0])]
    fishers = [torch.tensor([3.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 0.0])]
    merged = fisher_merge(thetas, fishers, [1.0, 1.0], floor=1e-9)
    # (3·1 + 1·5) / 4, only the second client knows, nobody knows: the plain mean
    assert merged.tolist() == pytest.approx([2.0, 5.0, 3.0])


def test_fisher_merge_weighs_clients_by_hand() -> None:
    merged = fisher_merge(
        [torch.tensor([0.0]), torch.tensor([6.0])],
        [torch.tensor([1.0]), torch.tensor([2.0])],
        [4.0, 1.0],
        floor=1e-9,
    )
    assert merged.item() == pytest.approx(6.0 * 2 / (4 * 1 + 2))


def test_the_floor_pulls_towards_the_mean_by_hand() -> None:
    merged = fisher_merge(
        [torch.tensor([0.0]), torch.tensor([1.0])],
        [torch.tensor([0.0]), torch.tensor([1.0])],
        [1.0, 3.0],
        floor=1.0,
    )
    # The mean Fisher value is 3/4: (3·(1 + 0.75)·1) / (1·(0 + 0.75) + 3·(1 + 0.75)).
    assert merged.item() == pytest.approx(7 / 8)


def test_equal_fishers_give_the_weighted_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    thetas = [torch.randn(4, 7, generator=generator) for _ in range(3)]
    fisher = torch.rand(4, 7, generator=generator)
    merged = fisher_merge(thetas, [fisher] * 3, [5.0, 1.0, 2.0], floor=1e-8)
    assert torch.allclose(merged, weighted_mean(thetas, [5.0, 1.0, 2.0]), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_a_common_scale_of_all_fisher_values_changes_no_merge(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    thetas = [torch.randn(4, 7, generator=generator) for _ in range(3)]
    fishers = [torch.rand(4, 7, generator=generator) ** 8 for _ in range(3)]
    fishers[1][0] = 0

    def merge(factor: float) -> torch.Tensor:
        return fisher_merge(thetas, [f * factor for f in fishers], [5.0, 1.0, 2.0], floor=1e-6)

    assert torch.allclose(merge(scale), merge(1.0), rtol=1e-5, atol=1e-6)
    power_of_two = 2.0 ** round(math.log2(scale) / 2)
    assert torch.equal(merge(power_of_two), merge(1.0))
    assert not torch.allclose(merge(scale), weighted_mean(thetas, [5.0, 1.0, 2.0]), atol=1e-2)


def test_fisher_values_that_are_zero_throughout_give_the_weighted_mean() -> None:
    thetas, weights = [torch.tensor([1.0, -2.0]), torch.tensor([4.0, 8.0])], [2.0, 1.0]
    merged = fisher_merge(thetas, [torch.zeros(2)] * 2, weights, floor=1e-6)
    assert torch.equal(merged, weighted_mean(thetas, weights))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e-9])
def test_a_fisher_that_cannot_be_is_refused(bad: float) -> None:
    fishers = [torch.ones(3), torch.tensor([1.0, bad, 1.0])]
    with pytest.raises(ValueError, match="negative, infinite or NaN"):
        fisher_merge([torch.zeros(3), torch.ones(3)], fishers, [1.0, 1.0], floor=1e-8)


def test_fisher_weights_by_hand() -> None:
    fisher = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([8.0, 4.0])}
    as_sent = fisher_weights(fisher, 0.5, "as-sent")
    assert as_sent["b"].tolist() == pytest.approx([8**0.5, 2.0])
    client = fisher_weights(fisher, 1.0, "client")  # mean of all four is 4
    assert client["a"].tolist() == [0.25, 0.75] and client["b"].tolist() == [2.0, 1.0]
    tensor = fisher_weights(fisher, 2.0, "tensor")  # means 2 and 6
    assert tensor["a"].tolist() == [0.25, 2.25]
    assert tensor["b"].tolist() == pytest.approx([16 / 9, 4 / 9])


@pytest.mark.parametrize("scale", ["as-sent", "client", "tensor"])
def test_a_fisher_of_zero_stays_zero(scale: str) -> None:
    fisher = {"a": torch.zeros(2), "b": torch.zeros(1)}
    assert all((value == 0).all() for value in fisher_weights(fisher, 1.0, scale).values())


def test_fisher_notes_by_hand() -> None:
    small = {"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([1.0])}
    large = {"a": torch.tensor([6.0, 0.0]), "b": torch.tensor([5.0])}
    notes = fisher_notes([small, large])
    assert notes == {"fisher a": 2.0, "fisher b": 3.0, "fisher scale": 4.0}
    nothing = {"a": torch.zeros(2), "b": torch.zeros(1)}
    assert fisher_notes([small, nothing]) == {"fisher a": 0.5, "fisher b": 0.5}


def test_extrapolation_by_hand() -> None:
    # Two steps of length 2 at right angles: their mean has length √2, half their mean square is 2.
    assert extrapolation([4.0, 4.0], 2.0, [0.5, 0.5]) == 1.0
    # Four at right angles: 4 / (2 · 1) = 2.
    assert extrapolation([4.0] * 4, 1.0, [0.25] * 4) == 2.0
    # Shares count: (0.75 · 4 + 0.25 · 8) / (2 · 2) = 1.25.
    assert extrapolation([4.0, 8.0], 2.0, [0.75, 0.25]) == 1.25
    assert extrapolation([4.0, 4.0], 4.0, [0.5, 0.5]) == 1.0  # they agree: the mean itself
    assert extrapolation([0.0], 0.0, [1.0]) == 1.0


def test_changes_that_cancel_but_for_rounding_have_no_direction() -> None:
    assert extrapolation([4.0, 4.0], 4e-13, [0.5, 0.5]) == 1.0
    assert extrapolation([4.0, 4.0], 1.6e-11, [0.5, 0.5]) > 1.0


def test_a_rate_is_never_above_the_number_of_clients() -> None:
    assert extrapolation([4.0] * 3, 0.8, [1 / 3] * 3) == pytest.approx(2.5)
    assert extrapolation([4.0] * 3, 1e-6, [1 / 3] * 3) == 3.0
