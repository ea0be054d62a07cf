"""Bounds on the norm of one update: reject it, or scale it down."""

from __future__ import annotations

from torch import Tensor, finfo, float32, stack

from fednano_flwr.adapters.packing import State
from fednano_flwr.config import Bounds

ROUNDED = 1e-3
"""Share of a norm by which sums in float32 may miss it."""
EPSILON = finfo(float32).eps


def norm(state: State) -> float:
    """The L2 norm of all values together, in float64."""
    norms = [value.double().norm() for value in state.values()]
    return float(stack(norms).norm()) if norms else 0.0


def check_norms(theta: State, fisher: State, sent: State, bounds: Bounds) -> None:
    """Reject an update or a Fisher diagonal whose norm is above its bound.

    Tensors of a lower rank cannot be subtracted from those sent; their own norm counts.

    Raises:
        ValueError: names the norm and the bound.
    """
    alike = {name: value for name, value in theta.items() if value.shape == sent[name].shape}
    gone = norm({**theta, **change(alike, sent)})
    if bounds.max_update_norm and gone > bounds.max_update_norm:
        raise ValueError(
            f"the update has the norm {gone:.4g}, above bounds.max-update-norm = "
            f"{bounds.max_update_norm:g}"
        )
    if bounds.max_fisher_norm and (size := norm(fisher)) > bounds.max_fisher_norm:
        raise ValueError(
            f"the Fisher diagonal has the norm {size:.4g}, above bounds.max-fisher-norm = "
            f"{bounds.max_fisher_norm:g}"
        )


def check_clipped(theta: State, sent: State, most: float) -> None:
    """Reject an update that its client should have scaled down to the norm `most` and did not.

    Allows for float32 rounding of the adapters and of the client's sums.

    Raises:
        ValueError: names both norms.
    """
    gone = norm(change(theta, sent))
    if gone > most * (1 + ROUNDED) + EPSILON * norm(sent):
        raise ValueError(
            f"the update has the norm {gone:.6g}, above the clip norm {most:.6g} that its client "
            "was sent: it has not been scaled down (privacy.dp), and the noise would not cover it"
        )


def clipped(theta: State, sent: State, most: float) -> State:
    """θ_sent + (θ − θ_sent) · min(1, most / ‖θ − θ_sent‖)."""
    update = change(theta, sent)
    size = norm(update)
    if size <= most:
        return theta
    scale = most / size
    return {name: (sent[name].double() + update[name] * scale).float() for name in theta}


def change(theta: State, sent: State) -> dict[str, Tensor]:
    """θ − θ_sent in float64."""
    return {name: value.double() - sent[name].double() for name, value in theta.items()}
