"""Packed updates in Flower's records, and what the server makes of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fednano_flwr.config import UPLOAD_ADAPTERS, UPLOAD_FISHERS, Upload
from fednano_flwr.edge.local_state import LocalState
from fednano_flwr.rounds.records import FISHER, RESIDUAL, from_arrays, to_arrays, to_upload
from fednano_flwr.rounds.replies import receive_update
from tests.replies import train_reply as reply

A, B = "text.lora_A.weight", "text.lora_B.weight"
State = dict[str, torch.Tensor]


def update(seed: int = 0) -> tuple[State, State, State]:
    """Adapters sent, trained, and Fisher diagonals: r = 8, d = 160."""
    generator = torch.Generator().manual_seed(seed)
    sent = {A: torch.randn(8, 160, generator=generator), B: torch.zeros(160, 8)}
    theta = {k: v + 0.01 * torch.randn(v.shape, generator=generator) for k, v in sent.items()}
    fisher = {k: (0.01 + torch.rand(v.shape, generator=generator)) ** 2 for k, v in sent.items()}
    return sent, theta, fisher


@pytest.mark.parametrize(("adapters", "kind"), list(product(UPLOAD_ADAPTERS, UPLOAD_FISHERS)))
def test_every_pair_of_settings_arrives_as_plain_arrays(adapters: str, kind: str) -> None:
    sent, theta, fisher = update()
    record = to_upload(theta, fisher, sent, Upload(adapters, kind, False), None)
    message = reply(record)
    receive_update(message, to_arrays(sent), "pass")
    got = message.content.array_records["arrays"]
    assert list(got) == list(to_arrays(theta, fisher))
    assert all(array.dtype == "float32" for array in got.values())
    bound = {"float32": 0, "int8": 2e-4, "int4": 4e-3}[adapters]
    for name, value in from_arrays(got).items():
        assert (value - theta[name]).abs().max() <= bound
    for name, value in from_arrays(got, FISHER).items():
        factor = {"float32": 1, "log4": 1.82}[kind]
        ratio = value / fisher[name]
        assert (ratio <= factor).all() and (ratio >= 1 / factor).all()


@pytest.mark.parametrize("with_fisher", [False, True])
def test_float32_is_what_it_was_to_the_last_byte(with_fisher: bool, tmp_path: Path) -> None:
    sent, theta, diagonal = update()
    fisher = diagonal if with_fisher else None
    own = LocalState(tmp_path, 1)
    record = to_upload(theta, fisher, sent, Upload("float32", "float32", True), own)
    plain = to_arrays(theta, fisher)
    assert record.object_id == plain.object_id
    message = reply(record)
    receive_update(message, to_arrays(sent), "pass" if with_fisher else "none")
    assert message.content.array_records["arrays"].object_id == plain.object_id
    assert not list(tmp_path.iterdir())


def test_flower_sends_few_bytes_beside_the_packed_ones() -> None:
    sent, theta, fisher = update()
    record = to_upload(theta, fisher, sent, Upload("int4", "log4", False), None)
    packed = sum(array.numpy().nbytes for array in record.values())
    assert packed == (2560 // 2 + 2 * 40) + (2560 // 2 + 4 * 40)
    assert record.count_bytes() - packed < 400
    # What a SuperNode pushes: every object of the record, each with its header.
    wire = sum(len(each.deflate()) for each in get_all_nested_objects(record).values())
    assert wire - packed < 1000


def test_residuals_are_kept_only_where_error_feedback_is_on(tmp_path: Path) -> None:
    sent, theta, _ = update()
    own, after = LocalState(tmp_path, 1), LocalState(tmp_path, 2)
    off = to_upload(theta, None, sent, Upload("int4", "float32", False), own)
    assert after.load(RESIDUAL) is None
    on = Upload("int4", "float32", True)
    assert to_upload(theta, None, sent, on, own).object_id == off.object_id  # nothing kept yet
    kept = after.load(RESIDUAL)
    assert kept is not None and any(value.abs().max() > 0 for value in kept.values())
    assert to_upload(theta, None, sent, on, after).object_id != off.object_id


def test_what_cannot_be_packed_leaves_the_residual_as_it_was(tmp_path: Path) -> None:
    sent, theta, fisher = update()
    own, upload = LocalState(tmp_path, 2), Upload("int4", "log4", True)
    to_upload(theta, fisher, sent, upload, LocalState(tmp_path, 1))
    before = own.load(RESIDUAL)
    assert before is not None
    for broken in ((theta, {**fisher, A: -fisher[A]}), ({**theta, A: theta[A] / 0}, fisher)):
        with pytest.raises(ValueError, match=r"negative|infinite"):
            to_upload(*broken, sent, upload, own)
    after = LocalState(tmp_path, 3).load(RESIDUAL)
    assert after is not None and all(torch.equal(before[k], after[k]) for k in before)


def without(record: ArrayRecord, part: str) -> ArrayRecord:
    return ArrayRecord({key: array for key, array in record.items() if part not in key})


def with_bytes(record: ArrayRecord, part: str, change: Callable) -> ArrayRecord:
    return ArrayRecord(
        {k: Array(change(a.numpy().copy())) if part in k else a for k, a in record.items()}
    )


def nan_scale(data: np.ndarray) -> np.ndarray:
    data[-2:] = 0xFF
    return data


def not_numpy(record: ArrayRecord) -> ArrayRecord:
    broken = Array(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=b"abc")
    return ArrayRecord({**record, "packed.theta.int4": broken})


TAMPERED = {
    "too short": (lambda r: with_bytes(r, "theta", lambda d: d[:-1]), "not 1360 bytes"),
    "another type": (lambda r: with_bytes(r, "fisher", lambda d: d.astype("float32")), "bytes"),
    "a NaN scale": (lambda r: with_bytes(r, "theta", nan_scale), "scale"),
    "no adapters": (lambda r: without(r, "theta"), "adapters have shapes"),
    "no Fisher": (lambda r: without(r, "fisher"), "Fisher diagonals are missing"),
    "twice": (lambda r: ArrayRecord({**r, **to_arrays(update()[1])}), "is there twice"),
    "another codec": (
        lambda r: ArrayRecord({"packed.theta.int3": r["packed.theta.int4"]}),
        "packed.theta.int3 is no packed part",
    ),
    "another name": (lambda r: ArrayRecord({**r, "packed.int4": Array(np.ones(3))}), "no part of"),
    "no array at all": (not_numpy, "packed.theta.int4 cannot be read"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_reply_is_refused_and_says_why(name: str) -> None:
    tamper, says = TAMPERED[name]
    sent, theta, fisher = update()
    record = to_upload(theta, fisher, sent, Upload("int4", "log4", False), None)
    with pytest.raises(ValueError, match=says):
        receive_update(reply(tamper(record)), to_arrays(sent), "pass")
