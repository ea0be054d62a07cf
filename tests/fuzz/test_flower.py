"""What a node replies to the ServerApp, and what a host answers a client."""

from __future__ import annotations

import pytest

from tests.fuzz import answers, replies
from tests.fuzz.running import Tally, no_leak


def test_a_reply_is_taken_whole_and_sound_or_refused() -> None:
    tally = Tally()
    with no_leak():
        replies.attack(tally, 200, None)
    for ends in tally.ends.values():
        assert ends["refused"] > 20 and ends["taken"] > 5


@pytest.mark.parametrize("ask", answers.ASKS)
def test_true_answers_are_used(ask: str) -> None:
    with answers.client() as remote:
        assert list(answers.answered((ask, "true", 0), remote)) == ["used"]


def test_whatever_a_host_answers_a_client_ends_in_an_error_for_people() -> None:
    tally = Tally()
    with no_leak():
        answers.attack(tally, 200, None)
    ends = tally.ends["answers to a client"]
    assert ends["HostRefusedError"] > 50 and ends["used"] > 10
