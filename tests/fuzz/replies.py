"""What a node could reply to the ServerApp."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord

from fednano_flwr.config import Upload
from fednano_flwr.rounds.records import from_arrays, to_arrays, to_upload
from fednano_flwr.rounds.replies import check_evaluation, receive_update
from tests.fuzz.messages import mutant
from tests.fuzz.running import Tally
from tests.replies import evaluate_reply, train_reply

A, B = "text.lora_A.weight", "text.lora_B.weight"
SENT = {A: torch.ones(4, 6), B: torch.zeros(6, 4)}
FISHER = {A: torch.full((4, 6), 0.5), B: torch.full((6, 4), 0.5)}
UPLOADS = [
    Upload(adapters, fisher, False)
    for adapters in ("float32", "int8", "int4")
    for fisher in ("float32", "log4")
]
VALUES: tuple[Any, ...] = (-1, 0, 1, 2**62, 0.5, -0.5, 1e300, float("nan"), float("inf"), [1, 2])
NOTES = (
    "",
    "{}",
    "[]",
    "null",
    "NaN",
    '{"all": [2, 3]}',
    '{"all": [1e999, 3]}',
    '{"a": -1}',
    '{"a": 1.5}',
    '{"\\ud800": 1}',
    "[" * 2000,
    '{"a":' * 2000,
    '{"all": [' + "9" * 5000 + ", 3]}",
)
DTYPES = ("<f4", "<f8", "<f2", "<i8", "|u1", "|O", "<U3", "<M8[s]", "|V3", ">f4")


def _npy(rng: random.Random) -> bytes:
    """A header of any shape and type, and some bytes."""
    file = BytesIO()
    shape = tuple(rng.choice((0, 1, 4, 6, 2**31, 2**63)) for _ in range(rng.randint(0, 3)))
    header = {"descr": rng.choice(DTYPES), "fortran_order": rng.random() < 0.2, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + rng.randbytes(rng.choice((0, 8, 96)))


def _numbers(rng: random.Random, shape: tuple[int, ...]) -> Array:
    values = np.full(shape, 0.5, rng.choice((np.float32, np.float32, np.float64)))
    if values.size:
        values.flat[rng.randrange(values.size)] = rng.choice((0.0, -1.0, np.nan, np.inf, 1e38))
    return Array(values)


def _spoil_arrays(arrays: ArrayRecord, rng: random.Random) -> ArrayRecord:
    items = dict(arrays.items())
    for _ in range(rng.randint(0, 3)):
        key = rng.choice(list(items)) if items else "theta.x"
        what = rng.randrange(6)
        if what == 0:
            items.pop(key, None)
        elif what == 1:
            items[rng.choice((key + "x", "theta.", "fisher." + A, "packed.theta.int8", "m"))] = (
                _numbers(rng, (4, 6))
            )
        elif key in items and what == 2:
            array = items[key]
            data = mutant(array.data, rng)
            items[key] = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=data)
        elif key in items and what == 3:
            array = items[key]
            items[key] = Array(dtype="float32", shape=(4, 6), stype=array.stype, data=_npy(rng))
        elif what == 4:
            items[key] = _numbers(rng, rng.choice(((4, 6), (6, 4), (2, 6), (6, 2), (0,), ())))
        elif key in items:
            array = items[key]
            stype = rng.choice(("torch", "", "numpy.ndarray"))
            items[key] = Array(dtype="x", shape=(2**40,), stype=stype, data=array.data)
    return ArrayRecord(items)


def _spoil_metrics(reply: Message, rng: random.Random) -> None:
    metrics = dict(reply.content.metric_records["metrics"])
    for _ in range(rng.choice((0, 0, 1, 2))):
        key = rng.choice(list(metrics))
        if rng.random() < 0.2:
            del metrics[key]
        else:
            metrics[rng.choice((key, key, key, "new"))] = rng.choice(VALUES)
    reply.content["metrics"] = MetricRecord(metrics)


def trained(rng: random.Random) -> Iterator[str]:
    """How a train reply ends; what is taken is sound."""
    fisher = rng.choice(("none", "pass"))
    upload = rng.choice(UPLOADS)
    arrays = to_upload(SENT, FISHER if rng.random() < 0.8 else None, SENT, upload, None)
    reply = train_reply(_spoil_arrays(arrays, rng))
    _spoil_metrics(reply, rng)
    if rng.random() < 0.05:
        reply.content["more"] = ConfigRecord({"a": 1})
    try:
        receive_update(reply, to_arrays(SENT), fisher, lower_ranks=rng.random() < 0.5)
    except ValueError:
        yield "refused"
        return
    taken = reply.content.array_records["arrays"]
    theta, found = from_arrays(taken), from_arrays(taken, "fisher.")
    assert list(theta) == list(SENT) and bool(found) == (fisher != "none")
    for name, value in (*theta.items(), *found.items()):
        assert value.dtype == torch.float32 and value.isfinite().all()
        assert tuple(value.shape) == tuple(theta[name].shape)
    assert theta[A].shape[1] == 6 and theta[B].shape[0] == 6
    assert theta[A].shape[0] == theta[B].shape[1] <= 4
    assert all((value >= 0).all() for value in found.values())
    yield "taken"


def evaluated(rng: random.Random) -> Iterator[str]:
    """How an evaluate reply ends; what is taken can be shown."""
    reply = evaluate_reply()
    _spoil_metrics(reply, rng)
    notes: dict[str, Any] = dict(reply.content.config_records["notes"])
    for _ in range(rng.choice((0, 1, 2))):
        key = rng.choice(("skipped", "unreadable", "tally"))
        if rng.random() < 0.5:
            notes[key] = rng.choice(NOTES)
        elif isinstance(notes.get(key), str):
            changed = mutant(notes[key].encode("utf-8", "surrogateescape"), rng)
            notes[key] = changed.decode("utf-8", "surrogateescape")
        else:
            notes.pop(rng.choice(list(notes)), None)
            notes["x"] = rng.choice((1, 2.5, "x", True, [1]))
    reply.content["notes"] = ConfigRecord(notes)
    try:
        check_evaluation(reply)
    except ValueError:
        yield "refused"
        return
    for key in ("skipped", "unreadable", "tally"):
        json.dumps(json.loads(str(reply.content.config_records["notes"][key])))
    yield "taken"


def attack(tally: Tally, examples: int) -> None:
    """Replies of training, then of evaluation."""
    tally.run("train replies", examples, trained)
    tally.run("evaluate replies", examples // 2, evaluated)
