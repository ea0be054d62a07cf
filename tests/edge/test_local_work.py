from typing import Any

import pytest

from fednano_flwr.edge.local_work import LocalWork

EVERYTHING = LocalWork(fisher="running", proximal_mu=0.5, adapters="both", local_rank=3, data="all")


@pytest.mark.parametrize("work", [LocalWork(), EVERYTHING, LocalWork(adapters="own")])
def test_work_comes_out_of_a_messages_config_as_it_went_in(work: LocalWork) -> None:
    config = {"llm-address": "127.0.0.1:1", "server-round": 3, **work.to_config()}
    assert LocalWork.from_config(config) == work


def test_only_what_differs_from_plain_training_is_sent() -> None:
    assert LocalWork().to_config() == {}
    assert LocalWork(proximal_mu=0.5).to_config() == {"proximal-mu": 0.5}
    assert set(EVERYTHING.to_config()) == {
        "fisher",
        "proximal-mu",
        "adapters",
        "local-rank",
        "data",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("fisher", "exact"), ("adapters", "local"), ("data", "others"), ("proximal-mu", -0.1)],
)
def test_work_that_no_client_can_do_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=str(value)):
        LocalWork.from_config({key: value})


def test_only_adapters_of_a_clients_own_do_not_come_back() -> None:
    assert [LocalWork(adapters=kind).uploads for kind in ("global", "both", "own")] == [
        True,
        True,
        False,
    ]
