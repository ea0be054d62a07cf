from __future__ import annotations

import pytest
import torch

from fednano_flwr.adapters import pack_fisher as fisher


def test_a_block_of_4_bits_by_hand() -> None:
    vector = torch.tensor([1.0, 2.0**-14, 0.0, 2.0**-3.4, 2.0**-7.6])
    data = fisher.encode(vector)
    # 15 codes over 14 powers of two: one a power. Ends -14 and 0, in 128ths, as int16.
    assert data.tolist() == [15 + 16 * 1, 0 + 16 * 12, 7, 0x00, 0xF9, 0, 0]
    assert fisher.decode(data, 5).tolist() == [1.0, 2.0**-14, 0.0, 2.0**-3, 2.0**-8]


@pytest.mark.parametrize("count", [1, 64, 65, 5000])
def test_the_logarithm_is_within_half_a_step_whatever_the_values(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for power, spread in ((-20, 1), (-130, 10), (0, 6), (110, 8), (-60, 40)):
        logs = power + spread * torch.randn(count, generator=generator).double()
        vector = torch.exp2(logs.clamp(-149, 127.9)).float()
        vector[torch.rand(count, generator=generator) < 0.2] = 0
        data = fisher.encode(vector)
        assert data.numel() == -(-count // 2) + 4 * -(-count // 64)
        back = fisher.decode(data, count)
        assert (back[vector == 0] == 0).all()
        assert (back[vector > 2.0**-140] > 0).all()  # float32 has no more than nine bits below
        for block, original in zip(back.split(64), vector.split(64), strict=True):
            block, original = block.double(), original.double()
            largest = original.max()
            near = original >= 2.0 ** -(fisher.RANGE - 1 / 64) * largest
            assert (block[~near] <= 2.0 ** -(fisher.RANGE - 1 / 64) * largest).all()
            normal = near & (original > 2.0**-120)
            if not normal.any():
                continue
            off = (block[normal].log2() - original[normal].log2()).abs()
            width = (largest / original[original > 0].min()).log2() + 2 / 128
            half_step = min(float(width), fisher.RANGE) / (2 * (fisher.CODES - 1))
            assert (off <= half_step + 1e-6).all(), (power, off.max(), half_step)


def test_a_block_of_equal_values_comes_back_nearly_exactly() -> None:
    for value in (1e-44, 3e-12, 1.0, fisher.LARGEST):
        back = fisher.decode(fisher.encode(torch.full((70,), value)), 70)
        assert torch.isfinite(back).all()
        assert ((back / torch.tensor(value) - 1).abs() < 0.006).all(), value


def test_a_block_of_zeros_stays_zero() -> None:
    vector = torch.cat([torch.zeros(64), torch.ones(3)])
    back = fisher.decode(fisher.encode(vector), 67)
    assert torch.equal(back, vector)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e-9])
def test_what_is_no_fisher_value_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="negative, infinite or NaN"):
        fisher.encode(torch.tensor([1.0, bad]))


def test_tampered_bytes_are_refused() -> None:
    data = fisher.encode(torch.rand(100))
    upside_down = data.clone()
    upside_down[-8:] = torch.tensor([5, 5, 4, 4], dtype=torch.int16).view(torch.uint8)
    for wrong, says in ((data[1:], "bytes"), (data.float(), "bytes"), (upside_down, "low")):
        with pytest.raises(ValueError, match=says):
            fisher.decode(wrong, 100)
