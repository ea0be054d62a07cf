"""Calls that no client of this project makes, against the service itself and no wire."""

from __future__ import annotations

import random

import pytest

from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.models.llm_half import LLMHalf
from tests.fuzz.messages import KINDS, calls, draws, good
from tests.fuzz.running import Tally, no_leak, run
from tests.fuzz.service import ATTACKER, SIZE, VICTIM, VOCABULARY, Attacked, stub

HOWS = ("spoiled", "absurd", "cut and flipped")


def attack(attacked: Attacked, tally: Tally, how: str, examples: int, start: int | None) -> None:
    """`examples` draws of calls."""
    make = calls(attacked.size, attacked.vocabulary, (attacked.graph.forward.graph,))
    name = "LLM" if attacked.size != SIZE else "stub"
    run(tally, f"calls, {how} ({name})", examples, draws(how), attacked.check(make), start)


@pytest.mark.parametrize("how", HOWS)
def test_every_call_ends_in_an_answer_and_harms_nobody(how: str) -> None:
    attacked, tally = Attacked(stub()), Tally()
    with no_leak():
        attack(attacked, tally, how, 200 if how != HOWS[2] else 60, None)
        attacked.check_unharmed()
    assert tally.inputs >= 200
    if how == "spoiled":  # it gets past the first checks
        (ends,) = tally.ends.values()
        assert ends["answered"] > 20 and ends["refused"] > 20 and ends["missing"] > 0


def test_the_language_model_itself_is_not_brought_down(llm_half: LLMHalf) -> None:
    attacked, tally = Attacked(llm_half), Tally()
    for how in HOWS:
        attack(attacked, tally, how, 30 if how != HOWS[2] else 2, None)
    attacked.check_unharmed()


@pytest.mark.parametrize("kind", KINDS)
def test_the_calls_it_starts_from_are_good_ones(kind: str) -> None:
    """Otherwise what is spoiled would be refused for another reason."""
    attacked = Attacked(stub())
    ends = set()
    for seed in range(60):
        call = good(kind, random.Random(seed).randrange(10**9), SIZE, VOCABULARY, ())
        ends.add(attacked.ask(call, ATTACKER).WhichOneof("what"))
    assert ("gone" if kind in ("backward", "decode") else kind) in ends


def test_anothers_graph_is_gone_and_anothers_features_are_missing() -> None:
    attacked = Attacked(stub())
    named = pb.Call()
    for seed in range(200):
        named = good("next_tokens", seed, SIZE, VOCABULARY, ())
        if list(named.next_tokens.inputs.low_rank.features) == [b"the victim's"]:
            break
    assert attacked.ask(named, ATTACKER).WhichOneof("what") == "missing"
    assert attacked.ask(named, VICTIM).WhichOneof("what") == "next_tokens"
    graph = good("backward", 1, SIZE, VOCABULARY, ())
    graph.backward.graph, graph.backward.dtype = attacked.graph.forward.graph, "float32"
    assert attacked.ask(graph, ATTACKER).gone
    attacked.check_unharmed()
