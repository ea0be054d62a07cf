"""Packed updates in Flower's records: beside `theta.NAME`, `fisher.NAME` or in their place.

One array of bytes for all adapters, one for all Fisher diagonals, since each array of a record
costs some 200 bytes of its own; the key says how they are packed: `packed.theta.int4`,
`packed.fisher.log4`.
"""

from __future__ import annotations

import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

from fednano_flwr.config import Upload
from fednano_flwr.edge.own_state import OwnState
from fednano_flwr.records import FISHER, THETA, check_update, from_arrays, to_arrays
from fednano_flwr.upload import delta
from fednano_flwr.upload import fisher as fishers
from fednano_flwr.upload.packing import State
from fednano_flwr.upload.update import pack_adapters, pack_fisher, unpack_adapters, unpack_fisher

PACKED = "packed."
RESIDUAL = "upload-residual"
"""What a client keeps: the part of its updates that rounding has left out so far."""


def to_upload(
    theta: State, fisher: State | None, sent: State, upload: Upload, own: OwnState | None
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
        packed[PACKED + FISHER + upload.fisher] = _array(pack_fisher(fisher, upload.fisher))
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


def receive_update(
    reply: Message, sent: ArrayRecord, fisher: str = "none", lower_ranks: bool = False
) -> None:
    """Unpack a train reply in place, then refuse it if it would spoil the merge.

    Args:
        reply: as it came; afterwards its arrays are `theta.NAME` and `fisher.NAME`.
        sent: the adapters that went to the client.
        fisher: "none" where the strategy asked for no Fisher diagonal.
        lower_ranks: accept adapters of a lower rank than those sent.

    Raises:
        ValueError: the packed bytes are not what a client writes, or the update cannot be used.
    """
    arrays = reply.content.array_records.get("arrays")
    if arrays and any(key.startswith(PACKED) for key in arrays):
        reply.content["arrays"] = unpack(arrays, sent, with_fisher=fisher != "none")
    check_update(reply, sent, fisher != "none", lower_ranks)


def unpack(arrays: ArrayRecord, sent: ArrayRecord, with_fisher: bool) -> ArrayRecord:
    """The update that `to_upload` wrote, as `to_arrays` would have written it.

    Raises:
        ValueError: a part is missing, there twice, or not what a client writes.
    """
    start = from_arrays(sent)
    theta, fisher = from_arrays(arrays), from_arrays(arrays, FISHER)
    for key in (key for key in arrays if key.startswith(PACKED)):
        prefix, _, kind = key.removeprefix(PACKED).rpartition(".")
        if prefix + "." == THETA and kind in delta.BITS and not theta:
            theta = unpack_adapters(_bytes(arrays, key), start, kind)
        elif prefix + "." == FISHER and kind in (*fishers.BITS, "row") and not fisher:
            shapes = {name: tuple(value.shape) for name, value in start.items()}
            fisher = unpack_fisher(_bytes(arrays, key), shapes, kind)
        else:
            raise ValueError(f"{key} is no packed part of an update, or is there twice")
    if with_fisher and not fisher:
        raise ValueError("the Fisher diagonals are missing")
    return to_arrays(theta, fisher)


def _array(data: Tensor) -> Array:
    return Array(data.numpy())


def _bytes(arrays: ArrayRecord, key: str) -> Tensor:
    try:
        return torch.from_numpy(arrays[key].numpy().copy())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} cannot be read: {error}") from None
