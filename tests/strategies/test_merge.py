import math

import pytest
import torch

from fednano_flwr.strategies.merge import fisher_merge, weighted_mean


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
        [1.0, 1.0],
        floor=1.0,
    )
    assert merged.item() == pytest.approx(2 / 3)


def test_equal_fishers_give_the_weighted_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    thetas = [torch.randn(4, 7, generator=generator) for _ in range(3)]
    fisher = torch.rand(4, 7, generator=generator)
    merged = fisher_merge(thetas, [fisher] * 3, [5.0, 1.0, 2.0], floor=1e-8)
    assert torch.allclose(merged, weighted_mean(thetas, [5.0, 1.0, 2.0]), atol=1e-6)


def test_tiny_fishers_lose_no_precision() -> None:
    fishers = [torch.full((2,), 1e-30), torch.full((2,), 3e-30)]
    merged = fisher_merge([torch.zeros(2), torch.ones(2)], fishers, [1.0, 1.0], floor=1e-40)
    assert merged.tolist() == pytest.approx([0.75, 0.75])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e-9])
def test_a_fisher_that_cannot_be_is_refused(bad: float) -> None:
    fishers = [torch.ones(3), torch.tensor([1.0, bad, 1.0])]
    with pytest.raises(ValueError, match="negative, infinite or NaN"):
        fisher_merge([torch.zeros(3), torch.ones(3)], fishers, [1.0, 1.0], floor=1e-8)
