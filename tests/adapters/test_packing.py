from __future__ import annotations

import pytest
import torch

from fednano_flwr.adapters.packing import (
    dequantize_change,
    pack_nibbles,
    quantize_change,
    steps,
    unpack_nibbles,
)


def scales_of(data: torch.Tensor, count: int, bits: int) -> torch.Tensor:
    """One scale a number, float32."""
    blocks = -(-count // 64)
    return data[-2 * blocks :].clone().view(torch.bfloat16).float().repeat_interleave(64)[:count]


def test_a_block_of_4_bits_by_hand() -> None:
    data = quantize_change(torch.tensor([7.0, -7.0, 3.4, -3.6, 0.4]), bits=4)
    # Codes 14 0 10 3 7, two a byte, the first in the low half; then the scale 1.0 in bfloat16.
    assert data.tolist() == [14 + 16 * 0, 10 + 16 * 3, 7, 0x80, 0x3F]
    assert dequantize_change(data, 5, bits=4).tolist() == [7.0, -7.0, 3.0, -4.0, 0.0]


def test_a_block_of_8_bits_by_hand() -> None:
    data = quantize_change(torch.tensor([254.0, -254.0, 3.1]), bits=8)
    assert data.tolist() == [254, 0, 129, 0x00, 0x40]  # scale 2.0
    assert dequantize_change(data, 3, bits=8).tolist() == [254.0, -254.0, 4.0]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000, 4097])
def test_no_number_is_off_by_more_than_half_its_blocks_step(bits: int, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for power in (-44, -38, -30, -8, 0, 5, 30, 36):
        spread = 10.0 ** torch.randint(-6, 1, (count,), generator=generator)
        vector = (torch.randn(count, generator=generator) * spread).clamp(-9, 9).double()
        vector = (vector * 10.0**power).float()
        data = quantize_change(vector, bits)
        assert data.numel() == -(-count * bits // 8) + 2 * -(-count // 64)
        step = scales_of(data, count, bits).double()
        error = (dequantize_change(data, count, bits).double() - vector.double()).abs()
        assert (error <= step / 2 * (1 + 1e-5)).all(), (power, (error / step).max())
        largest = vector.double().abs().max()
        assert step.max() <= max(1.005 * largest / steps(bits), 1.2e-38)


@pytest.mark.parametrize("bits", [8, 4])
def test_zero_stays_zero_and_a_large_block_takes_nothing_from_the_next(bits: int) -> None:
    vector = torch.cat([torch.zeros(64), torch.full((64,), 1e30), torch.full((10,), -1e-20)])
    back = dequantize_change(quantize_change(vector, bits), 138, bits)
    assert torch.equal(back[:64], torch.zeros(64))
    assert ((back[128:] / vector[128:] - 1).abs() < 0.005).all()


def test_the_same_numbers_give_the_same_bytes() -> None:
    vector = torch.randn(1000)
    assert torch.equal(quantize_change(vector, 4), quantize_change(vector.clone(), 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2e37])
def test_what_training_cannot_give_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="infinite, NaN or above 1e37"):
        quantize_change(torch.tensor([1.0, bad]), bits=4)


@pytest.mark.parametrize("bits", [8, 4])
def test_tampered_bytes_are_refused(bits: int) -> None:
    data = quantize_change(torch.randn(100), bits)
    for wrong, says in (
        (data[:-1], "bytes"),
        (torch.cat([data, data[:1]]), "bytes"),
        (data.view(1, -1), "bytes"),
        (data.float(), "bytes"),
        (with_scale(data, float("nan")), "scale"),
        (with_scale(data, float("inf")), "scale"),
        (with_scale(data, -1.0), "scale"),
        (with_scale(data, 0.0), "scale"),
        (torch.cat([data.new_full((1,), 255), data[1:]]), "code above"),
    ):
        with pytest.raises(ValueError, match=says):
            dequantize_change(wrong, 100, bits)


def with_scale(data: torch.Tensor, scale: float) -> torch.Tensor:
    changed = data.clone()
    changed[-2:] = torch.tensor([scale], dtype=torch.bfloat16).view(torch.uint8)
    return changed


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_nibbles_come_back(count: int) -> None:
    codes = torch.randint(0, 16, (count,), dtype=torch.uint8)
    packed = pack_nibbles(codes)
    assert packed.numel() == (count + 1) // 2
    assert torch.equal(unpack_nibbles(packed, count), codes)
