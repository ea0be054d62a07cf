"""Tensors in any structure arrive as they were, in memory of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.llm.parcel import pack, unpack

TENSORS = {
    "bfloat16": torch.tensor([[1.5, -2.0, 3e38]], dtype=torch.bfloat16),
    "float16": torch.tensor([6e-8, 65504.0], dtype=torch.float16),
    "int64": torch.tensor([-(2**62), 3]),
    "bool": torch.tensor([[True], [False]]),
    "a single number": torch.tensor(2.5),
    "nothing": torch.empty(0, 4),
    "strided": torch.arange(24.0).reshape(4, 6).T[::2],
    "not finite": torch.tensor([float("nan"), float("inf")]),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_arrives_as_it_was(kind: str) -> None:
    sent = TENSORS[kind]
    found = unpack(*pack(sent))
    assert found.dtype == sent.dtype and found.shape == sent.shape
    assert torch.equal(found.nan_to_num(), sent.nan_to_num())


def test_dataclasses_arrive_with_their_tensors_and_without_their_graph() -> None:
    leaf = torch.ones(3, 2, requires_grad=True)
    found = unpack(*pack((EmbeddingInputs(leaf * 2, (1, 2)), {"z": [leaf]}, b"owner")))
    assert torch.equal(found[0].embeds, torch.full((3, 2), 2.0)) and found[0].lengths == (1, 2)
    assert not found[0].embeds.requires_grad and not found[1]["z"][0].requires_grad
    assert found[2] == b"owner"


def test_what_arrives_from_read_only_memory_may_be_written_and_is_nobodys_else(
    recwarn: pytest.WarningsRecorder,
) -> None:
    data, buffers = pack([torch.zeros(4), torch.zeros(4)])
    for buffer in buffers:
        assert isinstance(buffer, np.ndarray)
    frozen = [np.frombuffer(buffer.tobytes(), np.uint8) for buffer in buffers]
    assert not frozen[0].flags.writeable  # as Ray's object store gives them
    first, second = unpack(data, frozen), unpack(data, frozen)
    first[0] += 1
    assert first[1].sum() == second[0].sum() == 0 and not recwarn.list


def test_tensors_travel_beside_the_pickle_and_not_in_it() -> None:
    data, buffers = pack(EmbeddingInputs(torch.randn(1000, 8), (1000,)))
    assert len(data) < 1000 and [buffer.nbytes for buffer in buffers] == [32000]
