"""Safetensors files written piece by piece, read by the safetensors library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fednano_flwr.export import stream
from fednano_flwr.export.stream import Outgoing

TENSORS = {
    "a": torch.arange(5, dtype=torch.uint8),
    "b": torch.randn(3, 4, dtype=torch.bfloat16),
    "c": torch.tensor(7),
    "d": torch.empty(0, 4),
    "e": torch.randn(2, 3, 5, dtype=torch.float64),
    "f": torch.tensor([True, False, True]),
    "g": torch.randn(1001, 3),
}


def test_a_file_copied_in_pieces_is_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE_BYTES", 128)
    save_file(TENSORS, tmp_path / "from", metadata={"format": "pt"})
    sizes: list[int] = []
    stored = stream.stored_in(tmp_path / "from")
    out = {key: Outgoing(one.dtype, one.shape, one.pieces) for key, one in stored.items()}
    stream.write(tmp_path / "to", out, sizes.append)
    written = load_file(tmp_path / "to")
    assert written.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert written[key].dtype == tensor.dtype and torch.equal(written[key], tensor)
    assert max(sizes) <= 128 and sum(sizes) == sum(t.nbytes for t in TENSORS.values())
    with safe_open(tmp_path / "to", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("pieces", "says"),
    [([torch.zeros(1, 2)], "8 bytes instead of 16"), ([torch.zeros(2, 2).half()], "float16")],
)
def test_pieces_that_are_not_the_tensor_are_refused(
    tmp_path: Path, pieces: list[torch.Tensor], says: str
) -> None:
    out = {"a": Outgoing(torch.float32, (2, 2), lambda: iter(pieces))}
    with pytest.raises(ValueError, match=says):
        stream.write(tmp_path / "file", out, lambda count: None)
