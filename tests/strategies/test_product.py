"""Merging what adapters mean, against dense matrices and numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fednano_flwr.adapters.product import (
    DOWN,
    UP,
    Factors,
    Spectrum,
    adapters_of,
    as_long_as,
    balanced,
    cut,
    cut_state,
    mean_product,
    norm_of_sum,
    rebalanced,
    residual,
    shapes_at,
    spectrum,
    state_of,
)
from fednano_flwr.adapters.update import Update
from fednano_flwr.config import RunConfig
from fednano_flwr.strategies.base import AdapterStrategy
from fednano_flwr.strategies.fisher_product import merged_product, product_fisher
from fednano_flwr.strategies.merge import fisher_merge
from fednano_flwr.strategies.registry import make_strategy

WIDTH = 12
Made = Callable[..., AdapterStrategy]


def factors(rank: int, seed: int, width: int = WIDTH) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, width, generator=generator)
    return Factors(a, torch.randn(width, rank, generator=generator))


def product(pair: Factors) -> Tensor:
    return pair.b.double() @ pair.a.double()


def dense(found: Spectrum) -> Tensor:
    return found.u @ found.sigma.diag() @ found.v


def by_hand(a: list[list[float]], b: list[list[float]]) -> Factors:
    return Factors(torch.tensor(a), torch.tensor(b))


def fresh(rank: int, seed: int, width: int = WIDTH) -> Factors:
    """An adapter before its first step: B is zero."""
    return Factors(factors(rank, seed, width).a, torch.zeros(width, rank))


@pytest.fixture(scope="module")
def strategy(defaults: dict[str, Any]) -> Made:
    def make(name: str, **keys: Any) -> AdapterStrategy:
        changed = {f"strategy.{key.replace('_', '-')}": value for key, value in keys.items()}
        config = RunConfig.parse({**defaults, **changed, "strategy.name": name})
        made = make_strategy(config.strategy)
        assert isinstance(made, AdapterStrategy)
        return made

    return make


def update(
    partition: int, pair: Factors, num_examples: int = 1, fisher: Factors | None = None
) -> Update:
    fishers = None if fisher is None else state_of({"text": fisher})
    return Update(partition, state_of({"text": pair}), fishers, num_examples)


def merged(made: AdapterStrategy, *updates: Update) -> Factors:
    return adapters_of(made.merge(updates))["text"]


# The mean of products


@pytest.mark.parametrize("ranks", [(3, 3, 3), (1, 4, 2), (4, 4, 4), (5, 4, 4), (7, 9, 8)])
def test_the_mean_product_is_that_of_dense_matrices(ranks: tuple[int, ...]) -> None:
    clients = [factors(rank, seed) for seed, rank in enumerate(ranks)]
    weights = [3.0, 1.0, 2.5]
    expected = sum(w * product(c) for w, c in zip(weights, clients, strict=True)) / sum(weights)
    found = mean_product(clients, weights)
    assert torch.allclose(dense(found), expected, rtol=0, atol=1e-12)
    assert torch.allclose(found.sigma[:3], torch.linalg.svdvals(expected)[:3], atol=1e-12)
    eye = torch.eye(len(found.sigma), dtype=torch.float64)
    assert torch.allclose(found.u.T @ found.u, eye, atol=1e-12)
    assert torch.allclose(found.v @ found.v.T, eye, atol=1e-12)


@pytest.mark.parametrize("shape", [(7, 20), (20, 7), (7, 7)])
@pytest.mark.parametrize("name", ["fedavg-exact", "fisher-product"])
def test_layers_may_have_other_widths_out_than_in(
    strategy: Made, name: str, shape: tuple[int, int]
) -> None:
    """With fewer directions than either has, with more than one of them, and more than both."""
    (wide, narrow), drawn = shape, torch.Generator().manual_seed(0)
    for rank in (1, 3, 7, 12):
        clients = [
            Factors(
                torch.randn(rank, narrow, generator=drawn), torch.randn(wide, rank, generator=drawn)
            )
            for _ in range(3)
        ]
        same = Factors(torch.ones(rank, narrow), torch.ones(wide, rank))
        made = strategy(name, server_rate=0) if name == "fedavg-exact" else strategy(name)
        made.sent = state_of({"text": clients[0]})
        found = merged(made, *(update(k, one, 1, same) for k, one in enumerate(clients)))
        rate = made.notes.get("server rate", 1.0)
        start, mean = product(clients[0]), sum(map(product, clients)) / 3
        u, sigma, v = torch.linalg.svd(start + rate * (mean - start), full_matrices=False)
        best = (u[:, :rank] * sigma[:rank]) @ v[:rank]
        assert found.a.shape == (rank, narrow) and found.b.shape == (wide, rank)
        assert torch.allclose(product(found), best, atol=1e-4)


def test_the_mean_of_products_is_not_the_product_of_means_by_hand(strategy: Made) -> None:
    # 1·1 and (−1)·(−1) are both 1; the means of A and of B are both 0.
    clients = [by_hand([[1.0]], [[1.0]]), by_hand([[-1.0]], [[-1.0]])]
    updates = [update(k, client) for k, client in enumerate(clients)]
    assert product(merged(strategy("fedavg"), *updates)).item() == 0
    assert product(merged(strategy("fedavg-exact"), *updates)).item() == pytest.approx(1)


def test_clients_with_one_a_are_merged_as_by_fedavg_by_hand(strategy: Made) -> None:
    # A = (1 2); B = (1 0)ᵀ of one question and (3 8)ᵀ of three: their mean is (2.5 6)ᵀ.
    updates = [
        update(0, by_hand([[1.0, 2.0]], [[1.0], [0.0]]), 1),
        update(1, by_hand([[1.0, 2.0]], [[3.0], [8.0]]), 3),
    ]
    for name in ("fedavg", "fedavg-exact"):
        found = product(merged(strategy(name), *updates))
        assert found.flatten().tolist() == pytest.approx([2.5, 5.0, 6.0, 12.0])


def test_equal_clients_keep_their_product(strategy: Made) -> None:
    own = factors(3, seed=1)
    for how in ("balanced", "plain"):
        made = strategy("fedavg-exact", factors=how)
        found = merged(made, update(0, own, 5), update(1, own, 2))
        assert torch.allclose(product(found), product(own), atol=1e-5)
        assert made.notes["residual text"] < 1e-12


def test_another_basis_of_a_clients_factors_changes_fedavg_alone(strategy: Made) -> None:
    one, two = factors(3, seed=1), factors(3, seed=2)
    basis = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, -0.5]])
    turned = Factors(torch.linalg.inv(basis) @ two.a, two.b @ basis)
    assert torch.allclose(product(turned), product(two), atol=1e-5)
    for name, same in (("fedavg-exact", True), ("fedavg", False)):
        plain = product(merged(strategy(name), update(0, one), update(1, two)))
        moved = product(merged(strategy(name), update(0, one), update(1, turned)))
        assert torch.allclose(moved, plain, atol=1e-5) == same


def test_clients_may_count_alike_whatever_their_number_of_questions(strategy: Made) -> None:
    # B = (1 0)ᵀ of one question and (3 8)ᵀ of three, as above: the plain mean is (2 4)ᵀ.
    updates = [
        update(0, by_hand([[1.0, 2.0]], [[1.0], [0.0]]), 1),
        update(1, by_hand([[1.0, 2.0]], [[3.0], [8.0]]), 3),
    ]
    for name in ("fedavg", "fedavg-exact"):
        found = product(merged(strategy(name, weight_by="equal"), *updates))
        assert found.flatten().tolist() == pytest.approx([2.0, 4.0, 4.0, 8.0])


def test_the_norm_of_a_sum_of_products_is_that_of_the_dense_matrix() -> None:
    pairs = [factors(3, 0), factors(1, 1), factors(4, 2)]
    whole = 0.5 * product(pairs[0]) + 2 * product(pairs[1]) - product(pairs[2])
    assert norm_of_sum(pairs, [0.5, 2, -1]) == pytest.approx(float(whole.norm()), rel=1e-12)
    assert norm_of_sum([pairs[0], pairs[0]], [1, -1]) < 1e-12


def test_a_sum_of_many_products_takes_no_more_memory_than_a_few_square_matrices() -> None:
    width, rank = 32, 8
    pairs = [factors(rank, seed, width) for seed in range(200)]  # 1,600 directions in all
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            for one in found if isinstance(found, tuple | list) else [found]:
                largest = max(largest, one.numel() if isinstance(one, Tensor) else 0)
            return found

    with Sizes():
        found = mean_product(pairs, [1.0] * len(pairs))
        norm = norm_of_sum(pairs, [1 / len(pairs)] * len(pairs))
    assert largest <= width * width
    mean = sum(map(product, pairs)) / len(pairs)
    assert torch.allclose(dense(found), mean, atol=1e-12)
    assert norm == pytest.approx(float(mean.norm()))


# The cut


def test_the_cut_is_the_best_approximation() -> None:
    wide = factors(6, seed=3)
    values = torch.linalg.svdvals(product(wide))
    narrow = cut(wide, 2, balanced)
    error = (product(wide) - product(narrow)).norm()
    assert error.item() == pytest.approx(values[2:].norm().item(), rel=1e-9)
    found = mean_product([wide], [1.0])
    assert residual(found, 2) == pytest.approx((error / values.norm()).item(), rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(50):
            a = narrow.a + size * torch.randn(2, WIDTH, generator=generator, dtype=torch.float64)
            b = product(wide) @ torch.linalg.pinv(a)  # the best B that this A allows
            assert (product(wide) - b @ a).norm() > error


def test_what_a_cut_loses_by_hand() -> None:
    found = spectrum(torch.diag(torch.tensor([3.0, 4.0, 0.0])))
    assert residual(found, 1) == pytest.approx(3 / 5)
    assert residual(found, 2) == residual(found, 3) == 0
    assert residual(spectrum(torch.zeros(3, 3)), 1) == 0
    kept = product(balanced(found, 1, fresh(1, 0, width=3)))
    assert kept.flatten().tolist() == pytest.approx([0, 0, 0, 0, 4, 0, 0, 0, 0])


def test_a_cut_is_exact_where_the_product_has_so_low_a_rank() -> None:
    low = factors(2, seed=4)
    mix = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    wide = Factors(mix @ low.a, low.b @ torch.linalg.pinv(mix))
    narrow = cut(wide, 2, balanced)
    assert narrow.a.shape == (2, WIDTH) and narrow.b.shape == (WIDTH, 2)
    assert torch.allclose(product(narrow), product(wide), atol=1e-5)


def test_adapters_that_fit_are_not_touched() -> None:
    theta = state_of({"image": factors(3, 0), "text": factors(3, 1)})
    for rank in (3, 5):
        same = cut_state(theta, rank, balanced)
        assert all(same[name] is value for name, value in theta.items())


def test_fresh_adapters_are_cut_to_the_first_rows_of_a() -> None:
    start = fresh(5, seed=0)
    for write in (balanced, as_long_as):
        narrow = cut(start, 2, write)
        assert torch.equal(narrow.a, start.a[:2])
        assert torch.equal(narrow.b, torch.zeros(WIDTH, 2))


def test_shapes_at_another_rank_by_hand() -> None:
    shapes = {f"x{DOWN}": (4, 48), f"x{UP}": (48, 4)}
    assert shapes_at(shapes, 3) == {f"x{DOWN}": (3, 48), f"x{UP}": (48, 3)}


# Factorizing a product


def test_balanced_factors_share_every_singular_value_equally() -> None:
    found = mean_product([factors(4, 0), factors(4, 1)], [1.0, 2.0])
    pair = balanced(found, 4, fresh(4, 2))
    assert torch.allclose(pair.a.norm(dim=1), found.sigma[:4].sqrt(), atol=1e-12)
    assert torch.allclose(pair.b.norm(dim=0), found.sigma[:4].sqrt(), atol=1e-12)
    best = found.u[:, :4] @ found.sigma[:4].diag() @ found.v[:4]
    assert torch.allclose(product(pair), best, atol=1e-12)


def test_as_long_as_has_the_same_product_and_an_a_like_the_clients() -> None:
    found = mean_product([factors(4, 0), factors(4, 1)], [1.0, 2.0])
    like = factors(4, 2)
    pair = as_long_as(found, 4, like)
    assert torch.allclose(product(pair), product(balanced(found, 4, like)), atol=1e-12)
    square = (like.a.double() ** 2).sum() / 4  # mean squared length of a row
    assert torch.allclose(pair.a @ pair.a.T, square * torch.eye(4).double(), atol=1e-9)


def test_a_product_of_zero_keeps_a() -> None:
    like = fresh(3, 0)
    found = mean_product([like, like], [1.0, 1.0])
    for write in (balanced, as_long_as):
        kept = write(found, 3, like)
        assert torch.equal(kept.a, like.a) and torch.equal(kept.b, like.b)


def test_products_that_cancel_merge_to_zero_by_hand(strategy: Made) -> None:
    # 2·1 and 1·(−2): the mean of the products is 0, the means' product 1.5·(−0.5) is not.
    updates = [update(0, by_hand([[1.0]], [[2.0]])), update(1, by_hand([[-2.0]], [[1.0]]))]
    for how in ("balanced", "plain"):
        found = merged(strategy("fedavg-exact", factors=how), *updates)
        assert product(found).item() == 0
        assert found.a.abs().item() > 0


@pytest.mark.parametrize("write", [balanced, as_long_as])
@pytest.mark.parametrize("like", ["a random A", "an A that sees the same only", "an A of zeros"])
def test_unused_directions_change_nothing_and_can_be_learned(write: Any, like: str) -> None:
    low = factors(2, seed=5)
    rows = {
        "a random A": factors(5, 6).a,
        "an A that sees the same only": torch.ones(5, 2) @ low.a,
        "an A of zeros": torch.zeros(5, WIDTH),
    }[like]
    pair = write(mean_product([low], [1.0]), 5, Factors(rows, torch.zeros(WIDTH, 5)))
    assert pair.a.shape == (5, WIDTH) and pair.b.shape == (WIDTH, 5)
    assert torch.allclose(product(pair), product(low), atol=1e-5)
    assert torch.equal(pair.b[:, 2:], torch.zeros(WIDTH, 3, dtype=torch.float64))
    length = math.sqrt((rows.double() ** 2).sum() / 5) or 1.0
    gram = pair.a[2:] @ pair.a[2:].T
    assert torch.allclose(gram, length**2 * torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert (pair.a[2:] @ low.a.T.double()).abs().max() < 1e-5
    b = pair.b.clone().requires_grad_()
    hidden = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    (hidden @ pair.a.T @ b.T).square().sum().backward()
    gradient = b.grad
    assert gradient is not None and (gradient.norm(dim=0) > 1e-3).all()


def test_unused_directions_are_those_that_the_clients_a_sees() -> None:
    own = factors(4, seed=7)
    used = Factors(own.a, own.b * torch.tensor([1.0, 0.0, 1.0, 0.0]))
    pair = balanced(mean_product([used], [1.0]), 4, used)
    inside = pair.a @ torch.linalg.pinv(own.a.double()) @ own.a.double()
    assert torch.allclose(inside, pair.a, atol=1e-9)


def test_there_may_be_more_rows_than_dimensions() -> None:
    pair = balanced(mean_product([factors(1, 0, width=2)], [1.0]), 3, factors(3, 1, width=2))
    assert pair.a.shape == (3, 2) and pair.b.shape == (2, 3)
    assert torch.allclose(product(pair), product(factors(1, 0, width=2)), atol=1e-6)


def test_rebalancing_keeps_every_product() -> None:
    theta = state_of({"image": factors(3, 0), "text": factors(3, 1), "fresh": fresh(3, 2)})
    before, after = adapters_of(theta), adapters_of(rebalanced(theta))
    assert list(before) == list(after)
    for name, pair in after.items():
        assert torch.allclose(product(pair), product(before[name]), atol=1e-5)
    text = after["text"]
    assert torch.allclose(text.a.norm(dim=1), text.b.norm(dim=0), atol=1e-5)
    assert torch.equal(after["fresh"].a, before["fresh"].a)


def test_a_state_that_is_no_pairs_of_factors_is_refused() -> None:
    theta = state_of({"text": factors(2, 0)})
    del theta["text" + UP]
    with pytest.raises(ValueError, match=r"not pairs.*text\.lora_A"):
        adapters_of(theta)


# Clients of different ranks


@pytest.mark.parametrize("name", ["fedavg-exact", "fisher-product"])
@pytest.mark.parametrize("ranks", [(1, 4, 2), (1, 1, 1), (2, 2, 2)])
def test_clients_of_different_ranks_are_merged_as_dense_matrices(
    strategy: Made, name: str, ranks: tuple[int, ...]
) -> None:
    made = strategy(name)
    made.sent = state_of({"text": fresh(4, 9)})
    clients = [factors(rank, seed) for seed, rank in enumerate(ranks)]
    even = [Factors(torch.ones_like(c.a), torch.ones_like(c.b)) for c in clients]
    updates = [update(k, clients[k], 1 + k, even[k]) for k in range(3)]
    mean = sum((1 + k) * product(client) for k, client in enumerate(clients)) / 6
    values = torch.linalg.svdvals(mean)
    found = merged(made, *updates)
    assert found.a.shape == (4, WIDTH) and found.b.shape == (WIDTH, 4)
    error = (product(found) - mean).norm()
    assert error.item() == pytest.approx(values[4:].norm().item(), abs=1e-5)
    assert made.notes["residual text"] == pytest.approx((error / mean.norm()).item(), abs=1e-5)


def test_fresh_clients_of_different_ranks_keep_what_they_were_sent(strategy: Made) -> None:
    made, start = strategy("fedavg-exact"), fresh(4, 0)
    made.sent = state_of({"text": start})
    found = merged(
        made, *(update(k, cut(start, rank, balanced)) for k, rank in enumerate((1, 4, 2)))
    )
    assert torch.equal(found.a, start.a) and torch.equal(found.b, start.b)


# Fisher weights


@pytest.mark.parametrize("name", ["fednano", "fednano-ef", "fisher-product"])
@pytest.mark.parametrize("how", [{}, {"fisher_scale": "client"}, {"fisher_power": 0.5}])
def test_no_fisher_strategy_becomes_another_where_gradients_are_small(
    strategy: Made, name: str, how: dict[str, Any]
) -> None:
    if name == "fisher-product" and "fisher_scale" in how:
        pytest.skip("it brings every client's values to one scale")
    clients = [factors(3, seed) for seed in range(3)]

    def merge(size: float) -> Factors:
        updates = [
            update(k, c, 2 + k, Factors((size * c.a) ** 2, (size * c.b) ** 2))
            for k, c in enumerate(clients)
        ]
        return merged(strategy(name, **how), *updates)

    usual, plain = (
        merge(1.0),
        merged(strategy("fedavg"), *map(update, range(3), clients, (2, 3, 4))),
    )
    for size in (1e-9, 1e-5, 1e5):
        assert torch.allclose(product(merge(size)), product(usual), atol=1e-4)
    assert not torch.allclose(product(usual), product(plain), atol=0.1)


# Fisher weights on products


def test_the_fisher_of_a_product_by_hand() -> None:
    # Means over the rank: B (3 1)ᵀ, A (2 6); outer product (6 18; 2 6), whose mean is 8.
    fisher = by_hand([[1.0, 5.0], [3.0, 7.0]], [[2.0, 4.0], [0.0, 2.0]])
    found = torch.outer(*product_fisher(fisher))
    assert found.flatten().tolist() == pytest.approx([0.75, 2.25, 0.25, 0.75])
    nothing = by_hand([[0.0, 0.0]], [[3.0], [0.0]])
    assert torch.outer(*product_fisher(nothing)).flatten().tolist() == [1, 1, 1, 1]


def test_products_are_merged_as_parameters_with_their_fisher_values() -> None:
    clients = [factors(rank, seed) for seed, rank in enumerate((2, 3))]
    fishers = [Factors(c.a**2, c.b**2) for c in clients]
    weights, floor = [1.0, 3.0], 0.1
    dense_fishers = [torch.outer(*product_fisher(fisher)) for fisher in fishers]
    expected = fisher_merge([product(c) for c in clients], dense_fishers, weights, floor)
    found = merged_product(clients, fishers, weights, floor)
    assert found.shape == (WIDTH, WIDTH)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_every_entry_of_the_product_follows_the_client_that_feels_it_by_hand(
    strategy: Made,
) -> None:
    # Products (1 1; 1 1) and (5 5; 5 5). The first client feels output 0 alone: F = (2 2; 0 0);
    # the second all alike: F = 1. Row 0: (2·1 + 1·5)/3, row 1: 5.
    found = merged(
        strategy("fisher-product", fisher_floor=1e-12),
        update(0, by_hand([[1.0, 1.0]], [[1.0], [1.0]]), 1, by_hand([[1.0, 1.0]], [[7.0], [0.0]])),
        update(1, by_hand([[1.0, 1.0]], [[5.0], [5.0]]), 1, by_hand([[1.0, 1.0]], [[2.0], [2.0]])),
    )
    assert product(found).flatten().tolist() == pytest.approx([7 / 3, 7 / 3, 5, 5])


def test_an_even_fisher_merges_as_without_one(strategy: Made) -> None:
    clients = [factors(3, seed) for seed in range(3)]
    updates = [
        update(k, c, 2 + k, Factors(torch.full_like(c.a, 0.3), torch.full_like(c.b, 0.2)))
        for k, c in enumerate(clients)
    ]
    weighted = merged(strategy("fisher-product"), *updates)
    plain = merged(strategy("fedavg-exact"), *updates)
    assert torch.allclose(product(weighted), product(plain), atol=1e-5)


def test_a_server_rate_goes_further_in_the_direction_of_the_mean(strategy: Made) -> None:
    start, one, other = (factors(WIDTH, seed) for seed in (1, 2, 3))  # full rank: nothing is cut
    made = strategy("fedavg-exact", server_rate=1.5)
    made.sent = state_of({"text": start})
    found = merged(made, update(0, one, 3), update(1, other, 1))
    mean = 0.75 * product(one) + 0.25 * product(other)
    expected = product(start) + 1.5 * (mean - product(start))
    assert torch.allclose(product(found), expected, atol=1e-4)


def test_a_server_rate_of_zero_follows_from_the_clients_changes(strategy: Made) -> None:
    start, one, other = (factors(WIDTH, seed) for seed in (1, 2, 3))
    made = strategy("fedavg-exact", server_rate=0.0)
    made.sent = state_of({"text": start})
    found = merged(made, update(0, one, 3), update(1, other, 1))
    changes = [product(one) - product(start), product(other) - product(start)]
    mean = 0.75 * changes[0] + 0.25 * changes[1]
    squares = [float(change.norm() ** 2) for change in changes]
    rate = max(1.0, (0.75 * squares[0] + 0.25 * squares[1]) / (2 * float(mean.norm() ** 2)))
    assert made.notes["server rate"] == pytest.approx(rate)
    assert torch.allclose(product(found), product(start) + rate * mean, atol=1e-4)


def test_what_the_mean_of_the_factors_misses_is_noted_by_hand(strategy: Made) -> None:
    # Products 1·1 and 3·3 have the mean 5; the mean factors 2 and 2 have the product 4.
    made = strategy("fedavg-exact")
    merged(made, update(0, by_hand([[1.0]], [[1.0]]), 1), update(1, by_hand([[3.0]], [[3.0]]), 1))
    assert made.notes["missed by factors text"] == pytest.approx(0.2)


def test_what_the_factors_miss_does_not_depend_on_the_server_rate(strategy: Made) -> None:
    made, own = strategy("fedavg-exact", server_rate=2.0), factors(3, 1)
    made.sent = state_of({"text": factors(3, 2)})
    merged(made, update(0, own), update(1, own))
    assert made.notes["missed by factors text"] < 1e-6
    made.sent = state_of({"text": by_hand([[2.0]], [[7.0]])})
    merged(made, update(0, by_hand([[1.0]], [[1.0]])), update(1, by_hand([[3.0]], [[3.0]])))
    assert made.notes["missed by factors text"] == pytest.approx(0.2)


def test_changes_that_undo_each_other_are_not_blown_up(strategy: Made) -> None:
    made, start = strategy("fedavg-exact", server_rate=0.0), factors(2, 1)
    made.sent = state_of({"text": start})
    step = torch.randn(WIDTH, 2, generator=torch.Generator().manual_seed(3))
    ends = [Factors(start.a, start.b + sign * step) for sign in (1, -1)]
    found = merged(made, update(0, ends[0]), update(1, ends[1]))
    assert made.notes["server rate"] == 1
    assert torch.allclose(product(found), product(start), atol=1e-5)
