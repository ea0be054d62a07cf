"""Owners are spread evenly, stay where their features are, and do not fill a replica for ever."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from fednano_flwr.llm.homes import Homes


@dataclass
class Spot:
    number: int
    busy: int = 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def names(count: int) -> list[bytes]:
    return [b"owner %d" % i for i in range(count)]


def spread(homes: Homes[Spot], owners: list[bytes], up: list[Spot]) -> Counter[int]:
    return Counter(homes.of(owner, up).number for owner in owners)


def test_new_owners_are_spread_evenly_and_stay() -> None:
    homes, up = Homes[Spot](600.0, Clock()), [Spot(0), Spot(1), Spot(2)]
    first = {owner: homes.of(owner, up).number for owner in names(9)}
    assert Counter(first.values()) == {0: 3, 1: 3, 2: 3}
    up[0].busy = 50
    for owner in reversed(names(9)):
        assert homes.of(owner, up).number == first[owner]


def test_among_equals_a_new_owner_goes_where_fewer_calls_wait() -> None:
    homes, up = Homes[Spot](600.0, Clock()), [Spot(0, busy=2), Spot(1, busy=1)]
    assert homes.of(b"a", up).number == 1


def test_owners_of_a_lost_replica_move_and_some_return_when_it_is_back() -> None:
    homes, up = Homes[Spot](600.0, Clock()), [Spot(0), Spot(1)]
    spread(homes, names(6), up)
    assert spread(homes, names(6), up[:1]) == {0: 6}
    assert spread(homes, names(6), up) == {0: 3, 1: 3}
    before = {owner: homes.of(owner, up).number for owner in names(6)}
    assert {owner: homes.of(owner, up).number for owner in names(6)} == before


def test_owners_that_have_left_do_not_unbalance_for_ever() -> None:
    clock = Clock()
    homes, up = Homes[Spot](600.0, clock), [Spot(0), Spot(1)]
    spread(homes, names(4), up)  # 0 and 2 on the first, 1 and 3 on the second
    clock.now = 500.0
    stayed = [names(4)[1], names(4)[3]]
    assert spread(homes, stayed, up) == {1: 2}  # the others count: nobody moves
    clock.now = 700.0
    assert spread(homes, stayed, up) == {0: 1, 1: 1}


def test_the_second_half_of_a_step_goes_where_the_first_was() -> None:
    homes, up = Homes[Spot](600.0, Clock()), [Spot(0), Spot(1)]
    assert spread(homes, names(3), up[:1]) == {0: 3}
    assert homes.of(names(3)[0], up, stay=True).number == 0
    assert homes.of(names(3)[0], up).number == 1
    assert homes.of(names(3)[1], up[1:], stay=True).number == 1  # the first is lost


def test_owners_are_forgotten_when_there_are_far_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fednano_flwr.llm.homes.REMEMBERED_OWNERS", 100)
    homes, up = Homes[Spot](600.0, Clock()), [Spot(0)]
    for i in range(150):
        homes.of(b"%d" % i, up)
    assert len(homes._homes) == 100
