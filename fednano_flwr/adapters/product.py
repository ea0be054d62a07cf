"""LoRA merging in product space: factors A (r, d) and B (d', r) stand for W = B A.

d' = d at a client's sites; a layer inside the language model may have another. The mean of the
clients' A times the mean of their B is not the mean of their products. Here the products themselves
are merged and cut back to r, without a d' × d matrix where none is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fednano_flwr.base.seeds import Purpose, derive_seed

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
Factorization = Callable[["Spectrum", int, "Factors"], "Factors"]
UNUSED = 1e-6
"""A direction whose singular value is smaller than this share of the largest is not used."""


@dataclass(frozen=True)
class Factors:
    """One adapter: A (r, d) and B (d', r)."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Spectrum:
    """W = U diag(σ) V as thin factors: U (d', k) and V (k, d) orthonormal, σ (k,) falling."""

    u: Tensor
    sigma: Tensor
    v: Tensor


def adapters_of(theta: Mapping[str, Tensor]) -> dict[str, Factors]:
    """The adapters of a state, by the part of their names that both factors share, sorted.

    Raises:
        ValueError: a parameter is no factor of a pair.
    """
    names = sorted({name.removesuffix(DOWN).removesuffix(UP) for name in theta})
    if {name + end for name in names for end in (DOWN, UP)} != set(theta):
        raise ValueError(f"not pairs of LoRA factors: {sorted(theta)}")
    return {name: Factors(theta[name + DOWN], theta[name + UP]) for name in names}


def state_of(adapters: Mapping[str, Factors]) -> dict[str, Tensor]:
    """The state that `adapters_of` took apart, in float32."""
    return dict(sorted(_named(adapters)))


def _named(adapters: Mapping[str, Factors]) -> Iterator[tuple[str, Tensor]]:
    for name, factors in adapters.items():
        yield name + DOWN, factors.a.float().contiguous()
        yield name + UP, factors.b.float().contiguous()


def trained_part(theta: Mapping[str, Tensor], factor: str) -> dict[str, Tensor]:
    """The parameters of a state that are the factor "A" or "B"; all of them with "both"."""
    return {name: value for name, value in theta.items() if is_part(name, factor)}


def is_part(name: str, factor: str) -> bool:
    """Whether a parameter is of the factor "A" or "B"; of "both" all are."""
    return factor == "both" or f".lora_{factor}." in name


def mean_product(adapters: Sequence[Factors], weights: Sequence[float]) -> Spectrum:
    """Spectrum of Σ_k w_k B_k A_k / Σ_k w_k, exact to float64.

    Args:
        adapters: one a client; ranks may differ.
        weights: one positive number a client.
    """
    total = sum(weights)
    return sum_of_products(adapters, [weight / total for weight in weights])


def sum_of_products(adapters: Sequence[Factors], coefficients: Sequence[float]) -> Spectrum:
    """Spectrum of Σ_k c_k B_k A_k, exact to float64.

    The sum is the product of two thin matrices, [c_1 B_1 … c_K B_K] and [A_1; …; A_K]; their QR
    factors leave an SVD of at most (Σ r_k)². Where Σ r_k > min(d', d) the products themselves are
    added up, in their order: a d' × d matrix, however many there are.

    Args:
        adapters: ranks may differ.
        coefficients: any numbers.
    """
    if _is_dense(adapters):
        return spectrum(_dense(adapters, coefficients))
    q_up, core, q_down = _thin(adapters, coefficients)
    u, sigma, v = torch.linalg.svd(core, full_matrices=False)
    return Spectrum(q_up @ u, sigma, v @ q_down.T)


def norm_of_sum(adapters: Sequence[Factors], coefficients: Sequence[float]) -> float:
    """Frobenius' norm of Σ_k c_k B_k A_k, without an SVD."""
    if _is_dense(adapters):
        return float(_dense(adapters, coefficients).norm())
    return float(_thin(adapters, coefficients)[1].norm())


def _is_dense(adapters: Sequence[Factors]) -> bool:
    """Whether a sum of these products has more directions than dimensions."""
    first = adapters[0]
    return sum(len(factors.a) for factors in adapters) > min(len(first.b), first.a.shape[1])


def _dense(adapters: Sequence[Factors], coefficients: Sequence[float]) -> Tensor:
    """Σ_k c_k B_k A_k itself (d', d)."""
    first = adapters[0]
    shape = len(first.b), first.a.shape[1]
    total = torch.zeros(shape, dtype=torch.float64, device=first.a.device)
    for factors, coefficient in zip(adapters, coefficients, strict=True):
        total.addmm_(factors.b.double(), factors.a.double(), alpha=coefficient)
    return total


def _thin(
    adapters: Sequence[Factors], coefficients: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Q, M and P of Σ_k c_k B_k A_k = Q M Pᵀ, the columns of Q (d', k) and P (d, k) orthonormal."""
    up = torch.cat([f.b.double() * c for f, c in zip(adapters, coefficients, strict=True)], 1)
    down = torch.cat([f.a.double() for f in adapters], 0)
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    return q_up, r_up @ r_down.T, q_down


def spectrum(product: Tensor) -> Spectrum:
    """Of a product W (d', d) that is no sum of low ranks."""
    return Spectrum(*torch.linalg.svd(product.double(), full_matrices=False))


def residual(found: Spectrum, rank: int) -> float:
    """‖W − cut(W)‖ / ‖W‖ in Frobenius' norm: what a cut to `rank` loses; 0 of a zero product."""
    norm = found.sigma.norm()
    return float(found.sigma[rank:].norm() / norm) if norm > 0 else 0.0


def balanced(found: Spectrum, rank: int, like: Factors) -> Factors:
    """The best approximation of rank `rank`, its factors of equal size: B = U √σ, A = √σ V.

    A direction that the product does not use gets B = 0 and a row of A as long as those of `like`
    are on average, as a fresh adapter has, or it could never be learned. A product of zero keeps
    A of `like`, with B = 0.

    Args:
        like: factors of that rank, such as the mean of the clients'.
    """
    used = _used(found, rank)
    root = found.sigma[:used].sqrt()
    return _filled(Factors(root[:, None] * found.v[:used], found.u[:, :used] * root), rank, like)


def as_long_as(found: Spectrum, rank: int, like: Factors) -> Factors:
    """The best approximation of rank `rank`, A orthogonal and as large as A of `like`, σ in B.

    So factors stay as they are in training from a fresh adapter, where A is random and B starts at
    zero. Directions that the product does not use, and a product of zero: as in `balanced`.
    """
    used = _used(found, rank)
    length = _length(like)
    scaled = Factors(length * found.v[:used], found.u[:, :used] * found.sigma[:used] / length)
    return _filled(scaled, rank, like)


FACTORIZATIONS = {"plain": as_long_as, "balanced": balanced}
"""How a product W is factorized into B A, by `strategy.factors`."""


def _used(found: Spectrum, rank: int) -> int:
    """How many directions, at most `rank`, the product uses."""
    return int((found.sigma[:rank] > UNUSED * found.sigma[0]).sum())


def _length(like: Factors) -> float:
    """Root mean square of the lengths of A's rows; 1 where they are zero."""
    return float(like.a.double().norm()) / len(like.a) ** 0.5 or 1.0


def _filled(factors: Factors, rank: int, like: Factors) -> Factors:
    """Factors of a product that uses fewer directions than they have room for, made learnable."""
    used = len(factors.a)
    if used == rank:
        return factors
    if used == 0 and like.a.any():
        return Factors(like.a, torch.zeros_like(like.b))
    spare = _beside(factors.a, rank - used, like)
    unused = factors.b.new_zeros(len(factors.b), rank - used)
    return Factors(torch.cat([factors.a, _length(like) * spare]), torch.cat([factors.b, unused], 1))


def _beside(kept: Tensor, count: int, like: Factors) -> Tensor:
    """Orthonormal rows (count, d) orthogonal to `kept`: what A of `like` sees there, then any."""
    a = like.a.double()
    row_space = torch.linalg.qr(kept.T)[0]
    _, sigma, seen = torch.linalg.svd(a - a @ row_space @ row_space.T, full_matrices=False)
    seen = seen[sigma > UNUSED * a.norm()][:count]
    drawn = torch.Generator().manual_seed(derive_seed(Purpose.UNUSED_DIRECTIONS))
    any_rows = torch.randn(count, a.shape[1], dtype=a.dtype, generator=drawn)
    rows = torch.linalg.qr(torch.cat([kept, seen, any_rows]).T)[0].T[len(kept) :][:count]
    missing = count - len(rows)  # more rows than dimensions: zero, there is nothing left to see
    return torch.cat([rows, rows.new_zeros(missing, a.shape[1])])


def cut(factors: Factors, rank: int, factorize: Factorization) -> Factors:
    """The best approximation of lower rank; itself where it fits already.

    A product of zero keeps the first `rank` rows of A, so that all who cut it start alike.
    """
    if len(factors.a) <= rank:
        return factors
    like = Factors(factors.a[:rank], factors.b[:, :rank])
    return factorize(mean_product([factors], [1.0]), rank, like)


def cut_state(
    theta: Mapping[str, Tensor], rank: int, factorize: Factorization
) -> dict[str, Tensor]:
    """Every adapter of a state cut to `rank`; the state itself where it fits already."""
    adapters = adapters_of(theta)
    if all(len(factors.a) <= rank for factors in adapters.values()):
        return dict(theta)
    return state_of({name: cut(factors, rank, factorize) for name, factors in adapters.items()})


def shapes_at(shapes: Mapping[str, tuple[int, ...]], rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the same adapters at another rank."""
    return {
        name: (rank, *shape[1:]) if name.endswith(DOWN) else (*shape[:-1], rank)
        for name, shape in shapes.items()
    }


def rebalanced(theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same products in balanced factors."""
    return state_of(
        {
            name: balanced(mean_product([factors], [1.0]), factors.a.shape[0], factors)
            for name, factors in adapters_of(theta).items()
        }
    )
