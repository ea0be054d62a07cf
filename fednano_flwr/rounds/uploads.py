"""Packed updates in Flower's records: beside `theta.NAME`, `fisher.NAME` or in their place.

One array of bytes for all adapters, one for all Fisher diagonals, since each array of a record
costs some 200 bytes of its own; the key says how they are packed: `packed.theta.int4`,
`packed.fisher.log4`.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord
from torch import Tensor

from fednano_flwr.adapters.pack_fisher import pack_fisher, unpack_fisher
from fednano_flwr.adapters.packing import BITS, State, pack_adapters, shapes_of, unpack_adapters
from fednano_flwr.config import Upload
from fednano_flwr.edge.local_state import LocalState
from fednano_flwr.rounds.records import FISHER, THETA, from_arrays, to_arrays, to_tensor

PACKED = "packed."
RESIDUAL = "upload-residual"
"""What a client keeps: the part of its updates that rounding has left out so far."""


def to_upload(
    theta: State, fisher: State | None, sent: State, upload: Upload, own: LocalState | None
) -> ArrayRecord:
    """What a client replies, as `upload` says: float32 as ever, or packed.

    Args:
        theta, fisher: of training; no `theta` where nothing is to be sent.
        sent: adapters that training started from.
        own: keeps the residual for error feedback; None for none.

    Raises:
        ValueError: a number cannot be packed; the kept residual stays as it was.
        StateError: the kept residual is damaged.
    """
    if not theta:  # the client keeps its adapters
        return ArrayRecord()
    packed: dict[str, Array] = {}
    plain_fisher = fisher
    if fisher is not None and upload.fisher != "float32":
        packed[PACKED + FISHER + upload.fisher] = _array(pack_fisher(fisher))
        plain_fisher = None
    if upload.adapters == "float32":
        return ArrayRecord({**to_arrays(theta, plain_fisher), **packed})
    keeps = own if upload.error_feedback else None
    residual = keeps.load(RESIDUAL) if keeps else None
    adapters = pack_adapters(theta, sent, upload.adapters, residual)
    packed[PACKED + THETA + upload.adapters] = _array(adapters.data)
    if keeps:
        keeps.save(RESIDUAL, adapters.residual)
    return ArrayRecord({**to_arrays({}, plain_fisher), **packed})


def adapters_in(arrays: ArrayRecord, sent: State) -> State:
    """A reply's adapters, plain or packed; none where it has none.

    Args:
        sent: the adapters that went to the client.

    Raises:
        ValueError: they are there twice, cannot be read, or are not what a client writes.
    """
    key, kind = _packed(arrays, THETA, tuple(BITS))
    if not kind:
        return from_arrays(arrays, THETA)
    return unpack_adapters(to_tensor(arrays, key), sent, kind)


def fishers_in(arrays: ArrayRecord, theta: State) -> State:
    """A reply's Fisher diagonals, plain or packed; none where it has none.

    Args:
        theta: its adapters, which have the same shapes; a client's rank may be its own.

    Raises:
        ValueError: they are there twice, cannot be read, or are not what a client writes.
    """
    key, kind = _packed(arrays, FISHER, ("log4",))
    if not kind:
        return from_arrays(arrays, FISHER)
    return unpack_fisher(to_tensor(arrays, key), shapes_of(theta))


def _packed(arrays: ArrayRecord, prefix: str, kinds: tuple[str, ...]) -> tuple[str, str]:
    """The key of the part that is packed, and how; empty where none is.

    Raises:
        ValueError: an unknown kind, or the part is there twice.
    """
    packed = [key for key in arrays if key.startswith(PACKED + prefix)]
    if not packed:
        return "", ""
    key, kind = packed[0], packed[0].removeprefix(PACKED + prefix)
    if kind not in kinds:
        raise ValueError(f"{key} is no packed part of an update")
    if len(packed) > 1 or any(other.startswith(prefix) for other in arrays):
        raise ValueError(f"{prefix}* is there twice, once as {key}")
    return key, kind


def _array(data: Tensor) -> Array:
    return Array(data.numpy())
