"""Block-wise int8: its bound, its outliers, its shapes."""

import math

import pytest
import torch
from torch import Tensor

from fednano_flwr.base import int8
from fednano_flwr.base.int8 import BLOCK, THRESHOLD, dequantize, quantize


def normal(rows: int = 40, width: int = 1024, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def with_large_channels(share: float = 0.01, times: float = 300.0) -> tuple[Tensor, Tensor]:
    """Normal numbers with some columns `times` larger, and which columns are not."""
    matrix = normal()
    large = torch.randperm(matrix.shape[1], generator=torch.Generator().manual_seed(1))
    large = large[: round(share * len(large))]
    matrix[:, large] *= times
    ordinary = torch.ones(matrix.shape[1], dtype=torch.bool)
    ordinary[large] = False
    return matrix, ordinary


def plain(matrix: Tensor) -> Tensor:
    """Block-wise absmax int8 without outliers, worked out separately; d divides into blocks."""
    blocks = matrix.unfold(1, BLOCK, BLOCK)
    scales = blocks.abs().max(dim=2, keepdim=True).values / 127
    return ((blocks / scales).round().clamp(-127, 127) * scales).flatten(1)


def rms(values: Tensor) -> float:
    return values.pow(2).mean().sqrt().item()


def assert_within_bounds(matrix: Tensor) -> None:
    quantized = quantize(matrix)
    error = (dequantize(quantized) - matrix.float()).abs().flatten()
    half = quantized.scales.float().repeat_interleave(BLOCK, 1)[:, : matrix.shape[1]] / 2
    bound = half.flatten().clone()
    large = matrix.float().flatten()[quantized.places].abs()
    bound[quantized.places] = large * 2**-8
    assert (error <= bound * (1 + 1e-5)).all()
    assert len(quantized.places) <= matrix.numel() / THRESHOLD


@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 130, 1023])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-6, 1.0, 1e6, 1e36])
def test_every_number_is_within_half_a_step_of_its_block(width: int, magnitude: float) -> None:
    assert_within_bounds(normal(width=width) * magnitude)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05])
def test_the_bounds_hold_with_channels_300_times_larger(share: float) -> None:
    assert_within_bounds(with_large_channels(share)[0])


def test_the_bounds_hold_for_heavy_tails() -> None:
    """Cauchy: entries of all magnitudes, several in a block."""
    assert_within_bounds(normal(seed=2) / normal(seed=3))


def test_a_scale_rounded_down_by_bfloat16_does_not_wrap_around() -> None:
    """Largest entries in steps finer than bfloat16 tells apart, with and without outliers."""
    largest = torch.linspace(1.0, 2.0, 3000)
    matrix = torch.linspace(-1, 1, BLOCK)[None, :] * largest[:, None]
    assert_within_bounds(matrix)
    assert quantize(matrix).codes.abs().max() <= 127
    assert (dequantize(quantize(matrix))[:, -1] > 0).all()


def test_plain_blocks_are_plain_absmax_quantization() -> None:
    matrix = normal()
    assert len(quantize(matrix).places) == 0
    # Scales differ by bfloat16's rounding only.
    assert rms(dequantize(quantize(matrix)) - matrix) < 1.01 * rms(plain(matrix) - matrix)


def test_large_channels_do_not_take_resolution_from_ordinary_ones() -> None:
    matrix, ordinary = with_large_channels()
    got = dequantize(quantize(matrix)) - matrix
    crushed = plain(matrix) - matrix
    without = plain(normal()) - normal()
    assert rms(got[:, ordinary]) < rms(crushed[:, ordinary]) / 50
    assert rms(got[:, ordinary]) < 1.05 * rms(without[:, ordinary])
    assert rms(got[:, ~ordinary]) < 0.01 * rms(matrix[:, ~ordinary])


def test_a_huge_outlier_does_not_hide_a_smaller_one() -> None:
    matrix = torch.ones(1, BLOCK)
    matrix[0, 3], matrix[0, 40] = 1e6, -12.0
    quantized = quantize(matrix)
    assert quantized.places.tolist() == [3, 40]
    assert quantized.outliers.tolist() == [matrix[0, 3].bfloat16().item(), -12.0]
    assert quantized.codes[0, [3, 40]].tolist() == [0, 0]
    assert quantized.scales.item() == pytest.approx(1 / 127, rel=2**-8)


def test_outliers_are_looked_for_in_a_block_and_not_in_its_padding() -> None:
    """Two numbers of a last block: one is far above the other, but not 8 times their mean."""
    matrix = torch.ones(1, BLOCK + 2)
    matrix[0, -1] = 100.0
    assert len(quantize(matrix).places) == 0


def test_a_row_does_not_depend_on_the_rows_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_large_channels()[0] * torch.logspace(-6, 6, 40)[:, None]
    whole = dequantize(quantize(matrix))
    assert all(torch.equal(dequantize(quantize(matrix[i : i + 1]))[0], whole[i]) for i in range(40))
    monkeypatch.setattr(int8, "AT_ONCE", 3 * matrix.shape[1])
    assert torch.equal(dequantize(quantize(matrix)), whole)


def test_zeros_and_a_single_number_are_exact_enough() -> None:
    assert torch.equal(dequantize(quantize(torch.zeros(3, 100))), torch.zeros(3, 100))
    alone = torch.zeros(2, 100)
    alone[1, 7] = 5.5  # all there is in its block: an outlier, exact in bfloat16
    assert torch.equal(dequantize(quantize(alone)), alone)
    assert dequantize(quantize(torch.tensor([[3.7]]))).item() == pytest.approx(3.7, rel=2**-8)


def test_numbers_too_small_for_a_scale_become_zero() -> None:
    matrix = torch.full((1, BLOCK), 1e-42)
    assert (dequantize(quantize(matrix)) - matrix).abs().max() <= torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices_stay_empty(shape: tuple[int, int]) -> None:
    assert dequantize(quantize(torch.empty(shape))).shape == shape


def test_a_transposed_matrix_is_read_by_its_rows() -> None:
    matrix = normal(rows=70, width=90)
    assert torch.equal(dequantize(quantize(matrix.T)), dequantize(quantize(matrix.T.contiguous())))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_quantized_as_their_float32_values(dtype: torch.dtype) -> None:
    matrix = normal(rows=3).to(dtype)
    assert torch.equal(dequantize(quantize(matrix)), dequantize(quantize(matrix.float())))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("others", [0.0, 1.0])
def test_what_is_not_finite_is_refused(bad: float, others: float) -> None:
    matrix = normal(2, 100) * others
    matrix[1, 99] = bad
    with pytest.raises(ValueError, match="finite"):
        quantize(matrix)


def test_what_would_overflow_on_the_way_back_is_refused() -> None:
    assert dequantize(quantize(torch.full((1, 100), 3.3e38))).isfinite().all()
    with pytest.raises(ValueError, match="finite"):
        quantize(torch.full((1, 100), 3.4e38))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same_outliers_and_nearly_the_same_codes() -> None:
    matrix = with_large_channels()[0]
    near, far = quantize(matrix), quantize(matrix.cuda())
    assert far.codes.device.type == "cuda"
    assert torch.equal(near.places, far.places.cpu())
    assert (near.codes.int() - far.codes.cpu().int()).abs().max() <= 1
