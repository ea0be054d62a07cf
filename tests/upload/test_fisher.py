from __future__ import annotations

import pytest
import torch

from fednano_flwr.adapters import pack_fisher as fisher
from fednano_flwr.adapters.product import Factors
from fednano_flwr.strategies.fisher_product import product_fisher

A, B = "image.lora_A.weight", "image.lora_B.weight"


def test_a_block_of_4_bits_by_hand() -> None:
    vector = torch.tensor([1.0, 2.0**-14, 0.0, 2.0**-3.4, 2.0**-7.6])
    data = fisher.encode(vector, bits=4)
    # 15 codes over 14 powers of two: one a power. Ends -14 and 0, in 128ths, as int16.
    assert data.tolist() == [15 + 16 * 1, 0 + 16 * 12, 7, 0x00, 0xF9, 0, 0]
    assert fisher.decode(data, 5, bits=4).tolist() == [1.0, 2.0**-14, 0.0, 2.0**-3, 2.0**-8]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("count", [1, 64, 65, 5000])
def test_the_logarithm_is_within_half_a_step_whatever_the_values(bits: int, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for power, spread in ((-20, 1), (-130, 10), (0, 6), (110, 8), (-60, 40)):
        logs = power + spread * torch.randn(count, generator=generator).double()
        vector = torch.exp2(logs.clamp(-149, 127.9)).float()
        vector[torch.rand(count, generator=generator) < 0.2] = 0
        data = fisher.encode(vector, bits)
        assert data.numel() == -(-count * bits // 8) + 4 * -(-count // 64)
        back = fisher.decode(data, count, bits)
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
            half_step = min(float(width), fisher.RANGE) / (2 * (2**bits - 2))
            assert (off <= half_step + 1e-6).all(), (power, off.max(), half_step)


def test_a_block_of_equal_values_comes_back_nearly_exactly() -> None:
    for value in (1e-44, 3e-12, 1.0, fisher.LARGEST):
        back = fisher.decode(fisher.encode(torch.full((70,), value), 4), 70, 4)
        assert torch.isfinite(back).all()
        assert ((back / torch.tensor(value) - 1).abs() < 0.006).all(), value


@pytest.mark.parametrize("bits", [8, 4])
def test_a_block_of_zeros_stays_zero(bits: int) -> None:
    vector = torch.cat([torch.zeros(64), torch.ones(3)])
    back = fisher.decode(fisher.encode(vector, bits), 67, bits)
    assert torch.equal(back, vector)


def test_rows_by_hand() -> None:
    state = {A: torch.tensor([[1.0, 2.0, 6.0], [3.0, 4.0, 0.0]])}  # r = 2, d = 3
    state[B] = torch.tensor([[2.0, 4.0], [0.0, 0.0], [1.0, 5.0]])
    data = fisher.encode_rows(state)
    assert data.view(torch.float32).tolist() == [2.0, 3.0, 3.0, 3.0, 0.0, 3.0]
    back = fisher.decode_rows(data, {A: (2, 3), B: (3, 2)})
    assert back[A].tolist() == [[2.0, 3.0, 3.0]] * 2
    assert back[B].tolist() == [[3.0, 3.0], [0.0, 0.0], [3.0, 3.0]]


def test_rows_lose_nothing_that_fisher_product_asks_for() -> None:
    state = {A: torch.rand(4, 50) ** 4, B: torch.rand(50, 4) ** 4}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    back = fisher.decode_rows(fisher.encode_rows(state), shapes)
    whole, rows = (product_fisher(Factors(each[A], each[B])) for each in (state, back))
    assert not torch.equal(state[A], back[A])
    for each, other in zip(rows, whole, strict=True):
        assert torch.allclose(each, other, rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e-9])
def test_what_is_no_fisher_value_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="negative, infinite or NaN"):
        fisher.encode(torch.tensor([1.0, bad]), 4)
    with pytest.raises(ValueError, match="negative, infinite or NaN"):
        fisher.encode_rows({A: torch.tensor([[1.0, bad]])})


def test_rows_of_what_has_no_rank_are_refused() -> None:
    with pytest.raises(ValueError, match="bias is no LoRA factor"):
        fisher.encode_rows({"bias": torch.ones(3, 3)})


@pytest.mark.parametrize("bits", [8, 4])
def test_tampered_bytes_are_refused(bits: int) -> None:
    data = fisher.encode(torch.rand(100), bits)
    upside_down = data.clone()
    upside_down[-8:] = torch.tensor([5, 5, 4, 4], dtype=torch.int16).view(torch.uint8)
    for wrong, says in ((data[1:], "bytes"), (data.float(), "bytes"), (upside_down, "low")):
        with pytest.raises(ValueError, match=says):
            fisher.decode(wrong, 100, bits)
    with pytest.raises(ValueError, match="bytes"):
        fisher.decode_rows(data[:11], {A: (2, 3)})
