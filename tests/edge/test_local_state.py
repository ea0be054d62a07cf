from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from fednano_flwr.adapters.site import LOCAL, adapter_state, build_adapters, load_adapter_state
from fednano_flwr.config import Adapter
from fednano_flwr.config.lineage import PreviousRun, from_config, to_config
from fednano_flwr.edge.local_state import LocalState, StateError, load_adapters, save_adapters
from fednano_flwr.edge.local_work import LocalWork

CONFIG = Adapter(rank=4, alpha=6.0, dropout=0.0, sites="image,text")
SENT = {key: value + 1 for key, value in adapter_state(build_adapters(8, CONFIG, 0)).items()}


def test_what_was_kept_comes_back_under_its_own_name(tmp_path: Path) -> None:
    state = LocalState(tmp_path / "run" / "client-0", 1)
    assert state.load("adapters") is None
    tensors = {"a": torch.randn(3, 4).T, "b": torch.zeros(2)}
    state.save("adapters", tensors)
    state.save("residual", {"a": torch.ones(1)})
    kept = LocalState(tmp_path / "run" / "client-0", 2).load("adapters")
    assert kept is not None and set(kept) == {"a", "b"}
    assert all(torch.equal(kept[key], tensors[key]) for key in tensors)
    assert LocalState(tmp_path / "run" / "client-1", 2).load("adapters") is None


def value(state: LocalState, name: str = "adapters") -> float | None:
    found = state.load(name)
    return None if found is None else float(found["a"])


def save(folder: Path, server_round: int, number: float, **keys: Any) -> None:
    LocalState(folder, server_round, **keys).save("adapters", {"a": torch.tensor(number)})


def test_training_starts_from_what_was_kept_before_its_round_also_when_repeated(
    tmp_path: Path,
) -> None:
    for server_round, number in ((1, 1.0), (4, 4.0), (4, 4.5)):  # not sampled in 2 and 3
        save(tmp_path, server_round, number)
    found = [value(LocalState(tmp_path, server_round)) for server_round in (1, 2, 3, 4, 5, 9)]
    assert found == [None, 1.0, 1.0, 1.0, 4.5, 4.5]


def test_only_the_last_rounds_are_kept(tmp_path: Path) -> None:
    for server_round in (1, 3, 8, 11):
        save(tmp_path, server_round, float(server_round), most=2)
        LocalState(tmp_path, server_round, most=2).save("residual", {"b": torch.zeros(1)})
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
    assert value(LocalState(second, 3, earlier)) == 2.0
    assert value(LocalState(second, 9, earlier)) == 2.0  # round 3 of the first is undone
    save(second, 4, 24.0, earlier=earlier)
    assert not (first / "adapters.3.safetensors").exists()
    assert (first / "adapters.2.safetensors").exists()
    earlier = [(first, 2), (second, 3)]
    assert value(LocalState(third, 5, earlier)) == 2.0
    assert value(LocalState(third, 5, [(first, 2), (second, 4)])) == 24.0


def test_a_message_says_which_runs_are_continued() -> None:
    earlier = [PreviousRun("17446744073709551615", 2), PreviousRun("5", -1)]
    assert from_config(to_config(earlier)) == earlier
    assert to_config([]) == {} and from_config({}) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1, 1.0)
    (tmp_path / "adapters.1.safetensors").write_bytes(b"nonsense")
    with pytest.raises(StateError, match=r"adapters\.1\.safetensors is damaged"):
        LocalState(tmp_path, 2).load("adapters")


def started(work: LocalWork, own: LocalState, seed: int = 5) -> PeftModel:
    adapters = build_adapters(8, CONFIG, 0)
    load_adapters(adapters, SENT, work, own, CONFIG, seed)
    return adapters


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_plain_work_takes_the_servers_adapters_and_keeps_nothing(tmp_path: Path) -> None:
    own = LocalState(tmp_path, 1)
    adapters = started(LocalWork(), own)
    save_adapters(adapters, LocalWork(), own)
    assert same(adapter_state(adapters), SENT) and not list(tmp_path.iterdir())


def test_own_adapters_start_as_the_servers_and_go_on_from_what_was_kept(tmp_path: Path) -> None:
    own, work = LocalState(tmp_path, 1), LocalWork(adapters="own")
    adapters = started(work, own)
    assert same(adapter_state(adapters), SENT)
    trained = {key: value * 2 for key, value in SENT.items()}
    load_adapter_state(adapters, trained)
    save_adapters(adapters, work, own)
    assert same(adapter_state(started(work, LocalState(tmp_path, 2))), trained)


def test_a_local_adapter_has_the_others_scale_and_goes_on_from_what_was_kept(
    tmp_path: Path,
) -> None:
    own, work = LocalState(tmp_path, 1), LocalWork(adapters="both", local_rank=2)
    adapters = started(work, own)
    sites: Any = adapters.base_model.model
    layer = sites.image_adapter
    assert layer.scaling == {"default": 1.5, LOCAL: 1.5} and layer.r[LOCAL] == 2
    local = {key: value + 3 for key, value in adapter_state(adapters, LOCAL).items()}
    load_adapter_state(adapters, local, LOCAL)
    save_adapters(adapters, work, own)
    again = started(work, LocalState(tmp_path, 2), seed=6)
    assert same(adapter_state(again, LOCAL), local) and same(adapter_state(again), SENT)


def test_a_local_adapter_starts_from_its_clients_seed_and_without_effect(tmp_path: Path) -> None:
    work = LocalWork(adapters="both")
    first, second, third = (
        adapter_state(started(work, LocalState(tmp_path, 2), seed), LOCAL) for seed in (5, 5, 6)
    )
    assert same(first, second) and not same(first, third)
    assert all(value.any() == ("lora_A" in key) for key, value in first.items())
    assert {value.shape for value in first.values()} == {(4, 8), (8, 4)}
