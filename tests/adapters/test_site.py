import json
from pathlib import Path

import pytest
import torch
from peft import PeftConfig

from fednano_flwr.adapters.site import (
    LOCAL,
    adapter_state,
    add_adapter,
    build_adapters,
    load_adapter_state,
    low_rank,
    named_trainable,
)
from fednano_flwr.config import Adapter

CONFIG = Adapter(rank=2, alpha=6.0, dropout=0.0, sites="image,text")


def test_the_formula_by_hand() -> None:
    adapters = build_adapters(3, CONFIG, seed=0)
    a = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    state = adapter_state(adapters)
    for name in state:
        state[name] = (a if "lora_A" in name else b) * (1 if "image" in name else -1)
    load_adapter_state(adapters, state)
    # h = (1, 2, 3): A h = (7, 2); B (A h) = (7, 2, 4); s = 6 / 2; the signs of −A and −B cancel
    h = torch.tensor([1.0, 2.0, 3.0])
    for site in (adapters.image_adapter, adapters.text_adapter):
        assert site(h).tolist() == [22.0, 8.0, 15.0]


def test_at_the_start_an_adapter_is_the_identity_to_the_bit() -> None:
    adapters = build_adapters(48, CONFIG, seed=0)
    h = torch.randn(5, 48)
    assert torch.equal(adapters.image_adapter(h), h)


def test_only_the_four_low_rank_matrices_are_there_to_train() -> None:
    parameters = named_trainable(build_adapters(48, CONFIG, seed=0))
    assert sum(p.numel() for p in parameters.values()) == 4 * 2 * 48
    assert list(parameters) == sorted(adapter_state(build_adapters(48, CONFIG, seed=0)))
    one = named_trainable(build_adapters(48, Adapter(2, 6.0, 0.0, "text"), seed=0))
    assert all("text_adapter" in name for name in one) and len(one) == 2


def test_a_seed_fixes_the_start_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = adapter_state(build_adapters(48, CONFIG, seed=1))
    assert torch.equal(torch.rand(1), expected)
    same = adapter_state(build_adapters(48, CONFIG, seed=1))
    other = adapter_state(build_adapters(48, CONFIG, seed=2))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_states_that_do_not_fit_are_refused() -> None:
    adapters = build_adapters(48, CONFIG, seed=0)
    state = adapter_state(adapters)
    name = next(iter(state))
    with pytest.raises(ValueError, match="has shape"):
        load_adapter_state(adapters, state | {name: torch.zeros(1)})
    del state[name]
    with pytest.raises(ValueError, match="adapter has parameters"):
        load_adapter_state(adapters, state)


def test_saved_adapters_are_in_pefts_format(tmp_path: Path) -> None:
    adapters = build_adapters(48, CONFIG, seed=0, model="some/model")
    adapters.save_pretrained(str(tmp_path))
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert (config.r, config.base_model_name_or_path) == (2, "some/model")
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(saved["target_modules"]) == ["image_adapter", "text_adapter"]


def test_two_adapters_add_up_by_hand() -> None:
    adapters = build_adapters(3, Adapter(1, 2.0, 0.0, "image,text"), seed=0)
    add_adapter(adapters, LOCAL, Adapter(2, 6.0, 0.0, "image,text"), seed=1)
    ones = {name: torch.ones_like(value) for name, value in adapter_state(adapters).items()}
    load_adapter_state(adapters, ones)
    halves = {
        name: torch.full_like(value, 0.5) for name, value in adapter_state(adapters, LOCAL).items()
    }
    load_adapter_state(adapters, halves, LOCAL)
    # h = (1, 2, 3): 2 · 1 · 6 from the one, 3 · (½ · 3 + ½ · 3) from the other
    h = torch.tensor([[1.0, 2.0, 3.0]])
    assert adapters.image_adapter(h).tolist() == [[22.0, 23.0, 24.0]]
    factors = low_rank(adapters, "image", h)
    assert factors is not None
    z, b = factors
    assert (z.shape, b.shape) == ((1, 3), (3, 3))
    assert (h + z @ b.T).tolist() == [[22.0, 23.0, 24.0]]


def test_an_added_adapter_changes_nothing_at_first_and_is_trained_beside_the_other() -> None:
    adapters = build_adapters(48, CONFIG, seed=0)
    before = adapter_state(adapters)
    names = set(named_trainable(adapters))
    for _ in range(2):  # the second time it is there already
        add_adapter(adapters, LOCAL, Adapter(3, 9.0, 0.0, "image,text"), seed=1)
    h = torch.randn(5, 48)
    assert torch.equal(adapters.image_adapter(h), h)
    both = named_trainable(adapters)
    assert names < set(both) and sum(p.numel() for p in both.values()) == 4 * (2 + 3) * 48
    after, local = adapter_state(adapters), adapter_state(adapters, LOCAL)
    assert all(torch.equal(after[key], before[key]) for key in before) and len(after) == len(before)
    assert set(local) == set(after) and local[min(local)].shape == (3, 48)


def test_a_state_goes_into_the_adapter_it_is_meant_for_only() -> None:
    adapters = build_adapters(48, CONFIG, seed=0)
    add_adapter(adapters, LOCAL, CONFIG, seed=1)
    shared = adapter_state(adapters)
    load_adapter_state(adapters, {key: value + 1 for key, value in shared.items()}, LOCAL)
    assert all(torch.equal(adapter_state(adapters)[key], shared[key]) for key in shared)
    local = adapter_state(adapters, LOCAL)
    assert all(torch.equal(local[key], shared[key] + 1) for key in shared)
