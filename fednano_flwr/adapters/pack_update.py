"""A client's update as bytes: adapters as what changed since they were sent, Fisher diagonals.

Neither names nor shapes travel: both sides know them from the adapters that the server sent.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fednano_flwr.adapters import pack_delta as delta
from fednano_flwr.adapters import pack_fisher as fishers
from fednano_flwr.adapters.packing import Shapes, State, count, flatten, shapes_of, unflatten


@dataclass(frozen=True)
class Packed:
    """Adapters as bytes, and what they leave out.

    Attributes:
        data: uint8, one row.
        residual: by parameter name; what the decoded bytes lack.
    """

    data: Tensor
    residual: dict[str, Tensor]


def pack_adapters(theta: State, sent: State, kind: str, residual: State | None = None) -> Packed:
    """Round what training changed, together with what earlier roundings left out.

    Error feedback (Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019), Q the codec:

        c_t = θ_t − θ_sent + e_t,    e_{t+1} = c_t − Q(c_t),    e_0 = 0

    so that Σ Q(c_t) = Σ (θ_t − θ_sent) − e_T: however many rounds, the sum is off by the last
    residual alone, and that is within half a step of its block.

    Args:
        theta: after training.
        sent: the adapters that training started from.
        kind: "int8" or "int4".
        residual: e_t; None for zero.

    Raises:
        ValueError: names or shapes differ, or a number is not finite.
    """
    for what, state in (("trained adapters", theta), ("kept residual", residual)):
        if state is not None and shapes_of(state) != shapes_of(sent):
            raise ValueError(f"{what} have shapes {shapes_of(state)}, those sent {shapes_of(sent)}")
    change = flatten(theta) - flatten(sent)
    if residual is not None:
        change += flatten(residual)
    bits = delta.BITS[kind]
    data = delta.encode(change, bits)
    left = change - delta.decode(data, change.numel(), bits)
    return Packed(data, unflatten(left, shapes_of(sent)))


def unpack_adapters(data: Tensor, sent: State, kind: str) -> dict[str, Tensor]:
    """The adapters that `pack_adapters` stands for: θ_sent + Q(c_t).

    Raises:
        ValueError: `data` is not what a client writes.
    """
    change = delta.decode(data, count(shapes_of(sent)), delta.BITS[kind])
    return unflatten(flatten(sent) + change, shapes_of(sent))


def pack_fisher(fisher: State, kind: str) -> Tensor:
    """Fisher diagonals as uint8, one row; `kind` is "log8", "log4" or "row".

    Raises:
        ValueError: a number is negative, infinite or NaN.
    """
    if kind == "row":
        return fishers.encode_rows(fisher)
    return fishers.encode(flatten(fisher), fishers.BITS[kind])


def unpack_fisher(data: Tensor, shapes: Shapes, kind: str) -> dict[str, Tensor]:
    """What `pack_fisher` was given, as far as `kind` tells.

    Raises:
        ValueError: `data` is not what a client writes.
    """
    if kind == "row":
        return fishers.decode_rows(data, shapes)
    return unflatten(fishers.decode(data, count(shapes), fishers.BITS[kind]), shapes)
