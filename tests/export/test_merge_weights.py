"""Merging, with numbers worked out by hand and by forming the d × d matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fednano_flwr.adapters.product import Factors
from fednano_flwr.export import merge_weights
from fednano_flwr.export.merge_weights import Rounding, merge, merge_lora

ADAPTER = Factors(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5], [-0.5]]))


def test_a_row_becomes_what_the_adapter_makes_of_it() -> None:
    # A h = 1·4 + 2·1 = 6; B A h = (1.5·6, -0.5·6) = (9, -3)
    for row in (torch.tensor([[4.0, 1.0]]), torch.tensor([4.0, 1.0])):
        expected = (row + torch.tensor([9.0, -3.0])).tolist()
        assert merge(row, ADAPTER, torch.float32).tolist() == expected


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_linear_layer_with_merged_weight_and_bias_gives_the_adapted_output(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_weights, "PIECE_BYTES", 8 * 7 * 5 // pieces)
    torch.manual_seed(0)
    layer = nn.Linear(5, 7, dtype=torch.float64)
    adapter = Factors(torch.randn(3, 7), torch.randn(7, 3))
    inputs = torch.randn(4, 5, dtype=torch.float64)
    expected = layer(inputs) @ (torch.eye(7) + adapter.b @ adapter.a).double().T
    weight = merge(layer.weight.detach(), adapter, torch.float64, outputs_first=True)
    bias = merge(layer.bias.detach(), adapter, torch.float64)
    assert weight.is_contiguous()
    torch.testing.assert_close(inputs @ weight.T + bias, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_linear_layer_with_a_merged_lora_gives_the_layers_and_the_loras_output(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_weights, "PIECE_BYTES", 8 * 7 * 5 // pieces)
    torch.manual_seed(0)
    layer = nn.Linear(5, 7, dtype=torch.float64)
    lora = Factors(torch.randn(3, 5), torch.randn(7, 3))
    inputs = torch.randn(4, 5, dtype=torch.float64)
    expected = layer(inputs) + inputs @ lora.a.double().T @ lora.b.double().T
    rounding = Rounding()
    layer.weight.data = merge_lora(layer.weight.detach(), lora, torch.float64, rounding)
    torch.testing.assert_close(layer(inputs), expected, rtol=0, atol=1e-12)
    changed = (lora.b.double() @ lora.a.double()).square().sum()
    assert (rounding.changed, rounding.lost) == (pytest.approx(float(changed)), 0.0)


def test_rounding_is_what_the_stored_dtype_loses_relative_to_the_change() -> None:
    # 4 + 9 = 13 and 1 - 3 = -2 are bfloat16 numbers; 257 + 9·257/6 is not
    rounding = Rounding()
    assert merge(torch.tensor([4.0, 1.0]), ADAPTER, torch.bfloat16, rounding=rounding).sum() == 11
    assert (rounding.changed, rounding.lost, rounding.relative) == (90.0, 0.0, 0.0)
    merge(torch.tensor([257.0, 0.0]), ADAPTER, torch.bfloat16, rounding=rounding)
    exact = torch.tensor([257 + 1.5 * 257, -0.5 * 257], dtype=torch.float64)
    lost = (exact.bfloat16() - exact).square().sum()
    assert rounding.lost == lost > 0
    assert rounding.relative == (lost / rounding.changed) ** 0.5
