from pathlib import Path

import pytest
import torch

from fednano_flwr.edge.own_state import OwnState, StateError


def test_what_was_kept_comes_back_under_its_own_name(tmp_path: Path) -> None:
    state = OwnState(tmp_path / "run" / "client-0")
    assert state.load("adapters") is None
    tensors = {"a": torch.randn(3, 4).T, "b": torch.zeros(2)}
    state.save("adapters", tensors)
    state.save("residual", {"a": torch.ones(1)})
    kept = OwnState(tmp_path / "run" / "client-0").load("adapters")
    assert kept is not None and set(kept) == {"a", "b"}
    assert all(torch.equal(kept[key], tensors[key]) for key in tensors)
    assert OwnState(tmp_path / "run" / "client-1").load("adapters") is None


def test_later_tensors_replace_earlier_ones(tmp_path: Path) -> None:
    state = OwnState(tmp_path)
    state.save("adapters", {"a": torch.zeros(2), "b": torch.zeros(2)})
    state.save("adapters", {"a": torch.ones(2)})
    kept = state.load("adapters")
    assert kept is not None and list(kept) == ["a"] and torch.equal(kept["a"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["adapters.safetensors"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    state = OwnState(tmp_path)
    state.save("adapters", {"a": torch.zeros(2)})
    (tmp_path / "adapters.safetensors").write_bytes(b"nonsense")
    with pytest.raises(StateError, match=r"adapters\.safetensors is damaged"):
        state.load("adapters")
