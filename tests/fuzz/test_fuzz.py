"""Whatever a peer or a file says ends in an answer or a documented error, and harms nobody.

A few thousand inputs, the same each time. Over 100,000, other ones each time:

    python -m pytest -m slow -s tests/fuzz

FEDNANO_FUZZ_SEED repeats a run, FEDNANO_FUZZ_SCALE makes it longer.
"""

from __future__ import annotations

import dataclasses
import os
import random
import secrets
from pathlib import Path

import pytest

from fednano_flwr.config import Adapter, Dataset
from fednano_flwr.exchange.at_host import AtHost, HostLora, LoraPlan
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.llm_half import LLMHalf, load_llm_half
from fednano_flwr.models.lora import fresh_lora
from tests.fuzz import answers, files, replies, wire
from tests.fuzz.messages import HOWS, KINDS, MUTANTS, VICTIMS_KEY, good
from tests.fuzz.running import Tally, no_leak, scale
from tests.fuzz.service import ATTACKER, SIZE, VICTIM, VOCABULARY, Attacked, stub

AT_LEAST = 100_000
DRAWS = {"spoiled": 12_000, "absurd": 6_000, "cut and flipped": 4_200}
ON_THE_LLM = 20
"""One in so many of these goes to a real language model instead of the stub."""


@pytest.fixture
def folders(
    tiny_model: Path,
    tiny_questions: Path,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, files.Folder]:
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dataset = dataclasses.replace(tiny_dataset, path=str(tmp_path / "questions"), max_skipped=1.0)
    return files.folders(tiny_model, tiny_questions, dataset, tmp_path)


def attack_calls(
    tally: Tally, half: LLMHalf, draws: dict[str, int], part: AtHost | None = None
) -> None:
    attacked = Attacked(half, part)
    name = "LLM" if attacked.size != SIZE else "stub"
    for how, count in draws.items():
        tally.run(f"calls, {how} ({name})", count, lambda rng, how=how: attacked.check(how, rng))
    attacked.check_unharmed()


def test_every_call_ends_in_an_answer_and_harms_nobody() -> None:
    tally = Tally()
    with no_leak():
        attack_calls(tally, stub(), {"spoiled": 300, "absurd": 300, "cut and flipped": 60})
    ends = tally.ends["calls, spoiled (stub)"]  # it gets past the first checks
    assert ends["answered"] > 20 and ends["refused"] > 20 and ends["missing"] > 0


def test_the_language_model_itself_is_not_brought_down(llm_half: LLMHalf) -> None:
    attack_calls(Tally(), llm_half, {"spoiled": 30, "absurd": 30, "cut and flipped": 2})


def test_nor_is_one_that_trains_a_lora(tiny_model: Path) -> None:
    adapter = Adapter(4, 8.0, 0.0, "llm", llm_rank=2)
    values = fresh_lora(ModelCheckpoint(str(tiny_model)), adapter, 0)
    part = AtHost(lora=HostLora(values, LoraPlan(0.01, 0.0)))
    half = load_llm_half(str(tiny_model), lora=adapter)
    attack_calls(Tally(), half, {"spoiled": 30, "absurd": 10, "cut and flipped": 2}, part)
    attacked, rng = Attacked(half, part), random.Random(0)
    begun = attacked.ask(good("begin", rng, SIZE, VOCABULARY), ATTACKER).begin.session
    for owner, end in ((VICTIM, "session_gone"), (ATTACKER, "step")):
        call = good("step", random.Random(1), attacked.size, attacked.vocabulary)
        call.step.inputs.turn.CopyFrom(pb.Turn(session=begun, number=1, factor=1.0))
        assert attacked.ask(call, owner).WhichOneof("what") == end


@pytest.mark.parametrize("kind", KINDS)
def test_the_calls_it_starts_from_are_good_ones(kind: str) -> None:
    """Otherwise what is spoiled would be refused for another reason."""
    attacked, rng = Attacked(stub()), random.Random(0)
    made = [good(kind, rng, SIZE, VOCABULARY) for _ in range(60)]
    ends = {attacked.ask(call, ATTACKER).WhichOneof("what") for call in made}
    other = dict.fromkeys(("backward", "prefill", "decode"), "gone")
    other |= dict.fromkeys(("begin", "end"), "refused")  # it trains no LoRA
    assert other.get(kind, kind) in ends


def test_anothers_graph_is_gone_and_anothers_features_are_missing() -> None:
    attacked, rng = Attacked(stub()), random.Random(0)
    made = (good("token_losses", rng, SIZE, VOCABULARY) for _ in range(200))
    named = next(c for c in made if list(c.token_losses.inputs.low_rank.features) == [VICTIMS_KEY])
    assert attacked.ask(named, ATTACKER).WhichOneof("what") == "missing"
    assert attacked.ask(named, VICTIM).WhichOneof("what") == "token_losses"
    graph = good("backward", rng, SIZE, VOCABULARY)
    graph.backward.graph, graph.backward.dtype = attacked.graph.forward.graph, "float32"
    assert attacked.ask(graph, ATTACKER).gone
    attacked.check_unharmed()


def test_nothing_written_to_the_port_is_answered_without_a_token_or_ends_in_a_crash() -> None:
    tally = Tally()
    with no_leak():
        wire.attack(tally, 150)
    (ends,) = tally.ends.values()
    assert ends["UNAUTHENTICATED"] > 40 and ends["OK"] > 20


def test_a_reply_is_taken_whole_and_sound_or_refused() -> None:
    tally = Tally()
    with no_leak():
        replies.attack(tally, 200)
    for ends in tally.ends.values():
        assert ends["refused"] > 20 and ends["taken"] > 5


@pytest.mark.parametrize("ask", answers.ASKS)
def test_true_answers_are_used(ask: str) -> None:
    with answers.client() as remote:
        expected = "HostRefusedError" if "session" in ask else "used"  # it trains no LoRA
        assert answers.answered(ask, "true", random.Random(0), remote) == expected


def test_whatever_a_host_answers_a_client_ends_in_an_error_for_people() -> None:
    tally = Tally()
    with no_leak():
        answers.attack(tally, 200)
    (ends,) = tally.ends.values()
    assert ends["HostRefusedError"] > 50 and ends["used"] > 5


def test_a_damaged_file_ends_in_a_documented_error(folders: dict[str, files.Folder]) -> None:
    tally = Tally()
    with no_leak():
        files.attack(tally, folders, 10)
    for kind, ends in tally.ends.items():
        assert ends.total() - ends["read"] > 0, kind


@pytest.mark.slow
def test_a_hundred_thousand_inputs_end_as_documented_and_leave_nothing_behind(
    llm_half: LLMHalf, folders: dict[str, files.Folder], capsys: pytest.CaptureFixture[str]
) -> None:
    tally = Tally(int(os.environ.get("FEDNANO_FUZZ_SEED", secrets.randbits(32))))
    try:
        with no_leak():
            for half, part in ((stub(), scale()), (llm_half, scale() / ON_THE_LLM)):
                attack_calls(tally, half, {how: int(part * DRAWS[how]) for how in HOWS})
            wire.attack(tally, int(scale() * 3_000))
            replies.attack(tally, int(scale() * 6_000))
            answers.attack(tally, int(scale() * 4_000))
            files.attack(tally, folders, int(scale() * 120))
    finally:
        with capsys.disabled():
            print(f"\nFEDNANO_FUZZ_SEED={tally.start}\n{tally.table()}", flush=True)
    assert tally.inputs >= min(1.0, scale()) * AT_LEAST
    assert DRAWS["cut and flipped"] * MUTANTS > AT_LEAST / 2
