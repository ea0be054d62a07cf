"""What a LoRA means is its product: pairs of factors A (r, d) and B (d, r) stand for W = B A.

The mean of the clients' A times the mean of their B is not the mean of their products. Here the
products themselves are merged and cut back to r, without a d × d matrix where none is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
UNUSED = 1e-6
"""A direction whose singular value is smaller than this share of the largest is not used."""


@dataclass(frozen=True)
class Factors:
    """One adapter: A (r, d) and B (d, r)."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Spectrum:
    """W = U diag(σ) V as thin factors: U (d, k) and V (k, d) orthonormal, σ (k,) falling."""

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


def mean_product(adapters: Sequence[Factors], weights: Sequence[float]) -> Spectrum:
    """Spectrum of Σ_k w_k B_k A_k / Σ_k w_k, exact to float64.

    The sum is the product of two thin matrices, [w_1 B_1 … w_K B_K] and [A_1; …; A_K]; their QR
    factors leave an SVD of at most (Σ r_k)², whatever d is.

    Args:
        adapters: one a client; ranks may differ.
        weights: one positive number a client.
    """
    total = sum(weights)
    up = torch.cat([f.b.double() * (w / total) for f, w in zip(adapters, weights, strict=True)], 1)
    down = torch.cat([f.a.double() for f in adapters], 0)
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, sigma, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return Spectrum(q_up @ u, sigma, v @ q_down.T)


def spectrum(product: Tensor) -> Spectrum:
    """Of a product W (d, d) that is no sum of low ranks."""
    return Spectrum(*torch.linalg.svd(product.double(), full_matrices=False))


def residual(found: Spectrum, rank: int) -> float:
    """‖W − cut(W)‖ / ‖W‖ in Frobenius' norm: what a cut to `rank` loses; 0 of a zero product."""
    norm = found.sigma.norm()
    return float(found.sigma[rank:].norm() / norm) if norm > 0 else 0.0


def balanced(found: Spectrum, rank: int, like: Factors) -> Factors:
    """The best approximation of rank `rank`, its factors of equal size: B = U √σ, A = √σ V.

    A direction that the product does not use gets B = 0 and a row of A as long as those of `like`
    are on average, as a fresh adapter has, or it could never be learned. A product of zero keeps
    the factors of `like`.

    Args:
        like: factors of that rank, such as the mean of the clients'.
    """
    if float(found.sigma[0]) == 0:
        return like
    used = found.sigma > UNUSED * found.sigma[0]
    if int(used.sum()) < rank:
        return _with_unused(found, int(used.sum()), rank, like)
    root = found.sigma[:rank].sqrt()
    return Factors(root[:, None] * found.v[:rank], found.u[:, :rank] * root)


def _with_unused(found: Spectrum, used: int, rank: int, like: Factors) -> Factors:
    """Factors of a product of a lower rank than they have room for."""
    root = found.sigma[:used].sqrt()
    kept = found.v[:used]
    spare = like.a.double() - like.a.double() @ kept.T @ kept  # what A sees beside the product
    spare = torch.linalg.svd(spare, full_matrices=False)[2][: rank - used]
    length = like.a.double().norm() / rank**0.5
    a = torch.cat([root[:, None] * kept, length * spare])
    b = torch.cat([found.u[:, :used] * root, found.u.new_zeros(len(found.u), rank - used)], 1)
    return Factors(a, b)


def as_long_as(found: Spectrum, rank: int, like: Factors) -> Factors:
    """The same approximation, in factors of which A is orthogonal and as large as A of `like`.

    B carries the singular values, as it does in training from a fresh adapter, where A is random
    and B starts at zero. It tells what balancing adds to merging products.
    """
    if float(found.sigma[0]) == 0:
        return like
    length = like.a.double().norm() / rank**0.5
    return Factors(length * found.v[:rank], found.u[:, :rank] * found.sigma[:rank] / length)


def cut(factors: Factors, rank: int) -> Factors:
    """The best approximation of lower rank, in balanced factors; itself where it fits already."""
    if factors.a.shape[0] <= rank:
        return factors
    like = Factors(factors.a[:rank], factors.b[:, :rank])
    return balanced(mean_product([factors], [1.0]), rank, like)


def rebalanced(theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same products in balanced factors."""
    return state_of(
        {
            name: balanced(mean_product([factors], [1.0]), factors.a.shape[0], factors)
            for name, factors in adapters_of(theta).items()
        }
    )
