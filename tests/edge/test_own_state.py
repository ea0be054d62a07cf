from pathlib import Path
from typing import Any

import pytest
import torch

from fednano_flwr.config.lineage import PreviousRun, from_config, to_config
from fednano_flwr.edge.local_state import OwnState, StateError


def test_what_was_kept_comes_back_under_its_own_name(tmp_path: Path) -> None:
    state = OwnState(tmp_path / "run" / "client-0", 1)
    assert state.load("adapters") is None
    tensors = {"a": torch.randn(3, 4).T, "b": torch.zeros(2)}
    state.save("adapters", tensors)
    state.save("residual", {"a": torch.ones(1)})
    kept = OwnState(tmp_path / "run" / "client-0", 2).load("adapters")
    assert kept is not None and set(kept) == {"a", "b"}
    assert all(torch.equal(kept[key], tensors[key]) for key in tensors)
    assert OwnState(tmp_path / "run" / "client-1", 2).load("adapters") is None


def value(state: OwnState, name: str = "adapters") -> float | None:
    found = state.load(name)
    return None if found is None else float(found["a"])


def save(folder: Path, server_round: int, number: float, **keys: Any) -> None:
    OwnState(folder, server_round, **keys).save("adapters", {"a": torch.tensor(number)})


def test_training_starts_from_what_was_kept_before_its_round_also_when_repeated(
    tmp_path: Path,
) -> None:
    for server_round, number in ((1, 1.0), (4, 4.0), (4, 4.5)):  # not sampled in 2 and 3
        save(tmp_path, server_round, number)
    found = [value(OwnState(tmp_path, server_round)) for server_round in (1, 2, 3, 4, 5, 9)]
    assert found == [None, 1.0, 1.0, 1.0, 4.5, 4.5]


def test_only_the_last_rounds_are_kept(tmp_path: Path) -> None:
    for server_round in (1, 3, 8, 11):
        save(tmp_path, server_round, float(server_round), most=2)
        OwnState(tmp_path, server_round, most=2).save("residual", {"b": torch.zeros(1)})
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{name}.{number}.safetensors" for name in ("adapters", "residual") for number in (8, 11)
    }


def test_a_resumed_run_finds_what_its_earlier_runs_kept_up_to_where_they_count(
    tmp_path: Path,
) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for server_round in (1, 2, 3):
        save(first, server_round, float(server_round))
    earlier = [(first, 2)]
    assert value(OwnState(second, 3, earlier)) == 2.0
    assert value(OwnState(second, 9, earlier)) == 2.0  # round 3 of the first is undone
    save(second, 4, 24.0, earlier=earlier)
    assert not (first / "adapters.3.safetensors").exists()
    assert (first / "adapters.2.safetensors").exists()
    earlier = [(first, 2), (second, 3)]
    assert value(OwnState(third, 5, earlier)) == 2.0
    assert value(OwnState(third, 5, [(first, 2), (second, 4)])) == 24.0


def test_a_message_says_which_runs_are_continued() -> None:
    earlier = [PreviousRun("17446744073709551615", 2), PreviousRun("5", -1)]
    assert from_config(to_config(earlier)) == earlier
    assert to_config([]) == {} and from_config({}) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1, 1.0)
    (tmp_path / "adapters.1.safetensors").write_bytes(b"nonsense")
    with pytest.raises(StateError, match=r"adapters\.1\.safetensors is damaged"):
        OwnState(tmp_path, 2).load("adapters")
