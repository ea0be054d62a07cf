"""Folding, with numbers worked out by hand and by forming the d × d matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fednano_flwr.export.fold import LowRank, fold_columns, fold_rows

ADAPTER = LowRank(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]]), 0.5)


def test_a_row_becomes_what_the_adapter_makes_of_it() -> None:
    # A h = 1·4 + 2·1 = 6; s B A h = 0.5 · (18, -6) = (9, -3)
    assert fold_rows(torch.tensor([[4.0, 1.0]]), ADAPTER).tolist() == [[13.0, -2.0]]
    assert fold_rows(torch.tensor([4.0, 1.0]), ADAPTER).tolist() == [13.0, -2.0]


def test_a_linear_layer_with_folded_weight_and_bias_gives_the_adapted_output() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 7, dtype=torch.float64)
    adapter = LowRank(torch.randn(3, 7), torch.randn(7, 3), 1.5)
    matrix = torch.eye(7) + adapter.scale * adapter.up @ adapter.down
    inputs = torch.randn(4, 5, dtype=torch.float64)
    expected = layer(inputs) @ matrix.double().T
    got = inputs @ fold_columns(layer.weight, adapter).T + fold_rows(layer.bias, adapter)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert (got - layer(inputs)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_fold_is_computed_in_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    adapter = LowRank(torch.randn(3, 7), torch.randn(7, 3), 1.5)
    rows = torch.randn(4, 7).to(dtype)
    exact = fold_rows(rows.double(), adapter)
    assert fold_rows(rows, adapter).dtype == torch.float64
    assert torch.equal(fold_rows(rows, adapter), exact)
