from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from fednano_flwr.adapters.site import LOCAL, adapter_state, build_adapters, load_adapter_state
from fednano_flwr.config import Adapter
from fednano_flwr.edge.local_state import OwnState
from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.edge.own_adapters import begin, keep

CONFIG = Adapter(rank=4, alpha=6.0, dropout=0.0, sites="image,text")
SENT = {key: value + 1 for key, value in adapter_state(build_adapters(8, CONFIG, 0)).items()}


def started(work: LocalWork, own: OwnState, seed: int = 5) -> PeftModel:
    adapters = build_adapters(8, CONFIG, 0)
    begin(adapters, SENT, work, own, CONFIG, seed)
    return adapters


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_plain_work_takes_the_servers_adapters_and_keeps_nothing(tmp_path: Path) -> None:
    own = OwnState(tmp_path, 1)
    adapters = started(LocalWork(), own)
    keep(adapters, LocalWork(), own)
    assert same(adapter_state(adapters), SENT) and not list(tmp_path.iterdir())


def test_own_adapters_start_as_the_servers_and_go_on_from_what_was_kept(tmp_path: Path) -> None:
    own, work = OwnState(tmp_path, 1), LocalWork(adapters="own")
    adapters = started(work, own)
    assert same(adapter_state(adapters), SENT)
    trained = {key: value * 2 for key, value in SENT.items()}
    load_adapter_state(adapters, trained)
    keep(adapters, work, own)
    assert same(adapter_state(started(work, OwnState(tmp_path, 2))), trained)


def test_a_local_adapter_has_the_others_scale_and_goes_on_from_what_was_kept(
    tmp_path: Path,
) -> None:
    own, work = OwnState(tmp_path, 1), LocalWork(adapters="both", local_rank=2)
    adapters = started(work, own)
    sites: Any = adapters.base_model.model
    layer = sites.image_adapter
    assert layer.scaling == {"default": 1.5, LOCAL: 1.5} and layer.r[LOCAL] == 2
    local = {key: value + 3 for key, value in adapter_state(adapters, LOCAL).items()}
    load_adapter_state(adapters, local, LOCAL)
    keep(adapters, work, own)
    again = started(work, OwnState(tmp_path, 2), seed=6)
    assert same(adapter_state(again, LOCAL), local) and same(adapter_state(again), SENT)


def test_a_local_adapter_starts_from_its_clients_seed_and_without_effect(tmp_path: Path) -> None:
    work = LocalWork(adapters="both")
    first, second, third = (
        adapter_state(started(work, OwnState(tmp_path, 2), seed), LOCAL) for seed in (5, 5, 6)
    )
    assert same(first, second) and not same(first, third)
    assert all(value.any() == ("lora_A" in key) for key, value in first.items())
    assert {value.shape for value in first.values()} == {(4, 8), (8, 4)}
