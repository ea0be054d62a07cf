"""A run's tuned model, asked in this process and at a service in another."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fednano_flwr.ask.asker import Asker
from fednano_flwr.ask.opening import (
    PICTURES,
    LocalService,
    Service,
    open_asker,
    shared_questions,
)
from fednano_flwr.ask.serve import llm_config, serving
from fednano_flwr.config import ConfigError
from fednano_flwr.data.sample import Picture, Place, Sample
from fednano_flwr.data.sample import Turn as OfDialogue
from fednano_flwr.exchange.at_host import Turn
from fednano_flwr.exchange.errors import (
    CacheGoneError,
    HostBusyError,
    HostRefusedError,
    HostUnreachableError,
)
from fednano_flwr.exchange.protocol import Generated
from fednano_flwr.exchange.wire.auth import make_token, read_token
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.llm_half import load_llm_half
from tests import tiny
from tests.ask.conftest import CHOICES, QUESTION, Asked, endless
from tests.batches import answered_at_the_end
from tests.certificates import authority
from tests.certificates import certificate as certificate_for
from tests.conftest import REPOSITORY
from tests.opened import recorded


class Counting:
    """An `LLM` that notes which calls it is asked, and may lose caches."""

    def __init__(self, llm: Any, loses: int = 0) -> None:
        self._llm, self._loses = llm, loses
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if name == "decode" and self._loses and self.calls.count("decode") % self._loses == 0:
                raise CacheGoneError("lost")
            return getattr(self._llm, name)(*arguments)

        return call


def answers(asker: Asker, picture: Path) -> list[Any]:
    found: list[Any] = []
    for frozen in (False, True):
        closed = asker.answer(QUESTION, picture, CHOICES, "w23", frozen)
        free = asker.answer(QUESTION, picture, frozen=frozen)
        text = asker.answer(QUESTION, None, (), "w24", frozen)
        assert closed.text in CHOICES and sum(closed.probabilities) == pytest.approx(1)
        assert free.tokens == 8 and free.cut and len(free.text.split()) == 8
        found += [closed.text, [round(p, 5) for p in closed.probabilities], free.text, text.text]
    return found


def test_a_client_with_its_bundle_and_a_service_answer_as_one_process_does(
    asked: Asked, asker: Asker, service: Service
) -> None:
    expected = answers(asker, asked.picture)
    tuned, frozen = expected[:4], expected[4:]
    assert tuned[1] != frozen[1] and tuned[2] != frozen[2]
    with recorded() as opened:
        with open_asker(asked.run, bundle=str(asked.bundle), service=service) as remote:
            assert answers(endless(remote), asked.picture) == expected
    assert opened.inside("vision_tower.") and opened.inside("multi_modal_projector.")
    language = opened.inside("language_model.", "lm_head")
    assert language == {"language_model.embed_tokens.weight"}  # token embeddings: a client's


def test_a_streamed_answer_is_there_token_by_token(asked: Asked, service: Service) -> None:
    with open_asker(asked.run, service=service) as asker:
        counted = endless(asker).llm = Counting(asker.llm)  # type: ignore[assignment]
        pieces = asker.stream(QUESTION, asked.picture)
        first = next(pieces)
        assert first and counted.calls == ["prefill"]
        rest = list(pieces)
        assert counted.calls == ["prefill", *["decode"] * 7, "release"]
        assert (first + "".join(rest)).strip() == asker.answer(QUESTION, asked.picture).text


def test_an_answer_that_nobody_reads_on_is_let_go(asked: Asked, asker: Asker) -> None:
    counted = asker.llm = Counting(asker.llm)  # type: ignore[assignment]
    pieces = asker.stream(QUESTION, asked.picture)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert counted.calls == ["prefill", "release"]


def test_an_answer_whose_cache_was_lost_goes_on_with_the_same_tokens(
    asked: Asked, asker: Asker
) -> None:
    expected = asker.answer(QUESTION, asked.picture)
    forgetful = asker.llm = Counting(asker.llm, loses=2)  # type: ignore[assignment]
    assert asker.answer(QUESTION, asked.picture) == expected
    assert forgetful.calls.count("prefill") > 2


def test_a_token_that_the_model_does_not_have_is_the_hosts_fault(asker: Asker) -> None:
    asker.llm.prefill = lambda *_: Generated(1, torch.tensor([64]))  # type: ignore[method-assign]
    with pytest.raises(HostRefusedError, match="token 64, and the model has 64"):
        asker.answer(QUESTION)


def test_the_prompt_is_the_one_of_training(asked: Asked, asker: Asker) -> None:
    picture, encoder = Picture(path=asked.picture), asker.tuned.encoder
    closed = Sample("u", QUESTION, "", "", CHOICES, answer=2, images=(picture,), context="w23")
    free = Sample("u", QUESTION, "", "", free_answer="w40")
    for sample, image in ((closed, asked.picture), (free, None)):
        trained = encoder.encode(sample)
        put = asker._encoded(asker._sample(QUESTION, image, sample.choices, sample.context))
        assert torch.equal(put.ids, trained.ids) and put.options == trained.options


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("messages", {"turns": (OfDialogue("user", (Place.PICTURE, QUESTION)),)}),
        ("table", {"instruction": "w41 w42"}),
        ("table", {"question": "w41 w42", "instruction": ""}),
    ],
)
def test_a_question_to_a_run_on_ones_own_data_is_written_as_its_rows_were(
    source: str, made: dict[str, Any], asked: Asked, tmp_path: Path
) -> None:
    images = (Picture(path=asked.picture),)
    row = Sample("u", **{"question": QUESTION, "group": "", "subject": "", "images": images} | made)
    run = changed(asked, tmp_path / "run", dataset__name=source, dataset__instruction="w41 w42")
    with open_asker(run) as asker:
        put = asker._encoded(asker._sample(row.question, asked.picture, (), ""))
        trained = asker.tuned.encoder.encode(replace(row, free_answer="w40"))
        assert torch.equal(put.ids, trained.ids)


def test_a_test_question_gets_the_answer_of_the_same_question_typed_in(
    asked: Asked, asker: Asker
) -> None:
    questions = shared_questions(asked.run)
    assert len(questions) == 24
    sample = next(sample for sample in questions if sample.images)
    other = replace(sample, answer=(sample.answer + 1) % sample.num_options)
    for frozen in (True, False):
        typed = asker.answer(
            sample.question, sample.images[0].path, sample.choices, sample.context, frozen
        )
        assert asker.answer_sample(sample, frozen) == typed == asker.answer_sample(other, frozen)


def test_features_of_the_last_pictures_are_kept_for_both_models(asked: Asked, asker: Asker) -> None:
    tuned, frozen = asker.tuned, asker.frozen
    for _ in range(2):
        answers(asker, asked.picture)
    assert (tuned.encoded, frozen.encoded) == (1, 0) and tuned.cache is frozen.cache
    for number in range(2 * PICTURES):
        tuned.cache[str(number)] = torch.ones(1)
    assert len(tuned.cache) == PICTURES and tuned.cache.get("15") is not None


def test_a_refusal_in_this_process_is_the_one_of_a_service() -> None:
    class Refusing:
        def __init__(self, error: Exception) -> None:
            self._error = error

        def reserve(self, tokens: int, owner: bytes) -> None:
            raise self._error

    for error, wanted in (
        (ValueError("too long"), HostRefusedError),
        (HostBusyError("closing"), HostUnreachableError),
        (LookupError("lost"), LookupError),
    ):
        with pytest.raises(wanted, match=str(error)):
            LocalService(Refusing(error)).reserve(1)  # type: ignore[arg-type]


def test_more_tokens_than_the_model_was_made_for_are_noted(asker: Asker) -> None:
    asker.max_tokens = 128
    (cut, long) = asker.answer(QUESTION).notes
    assert "cut after 128" in cut and "max_position_embeddings" in long
    asker.max_tokens = 20
    (cut,) = asker.answer(QUESTION).notes
    (long,) = asker.answer("w20 " * 128, choices=CHOICES).notes
    assert "nonsense" in long


def test_without_the_token_the_service_answers_nobody_and_with_it_it_trains_nobody(
    service: Service, tmp_path: Path
) -> None:
    make_token(tmp_path / "other")
    for token in ("", read_token(tmp_path / "other")):
        with RemoteLLM(service.address, Caller(token=token), retry_seconds=0) as remote:
            with pytest.raises(HostRefusedError, match="--token-file") as refusal:
                remote.describe()
            assert not token or token not in str(refusal.value)
    good = Caller(token=read_token(service.token_file))
    with RemoteLLM(service.address, good, retry_seconds=0) as remote:
        with pytest.raises(HostRefusedError, match="no part in training"):
            remote.step(*answered_at_the_end(0))
        with pytest.raises(HostRefusedError, match="no part in training"):
            remote.forward(answered_at_the_end(0)[0], torch.tensor([13]))
        with pytest.raises(HostRefusedError, match="no part in training"):
            remote.begin(None)
        with pytest.raises(HostRefusedError, match="no part in training"):
            remote.end(Turn(1, 1))


def test_a_token_file_is_for_its_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "token"
    assert make_token(file) and not make_token(file)
    assert file.stat().st_mode & 0o777 == 0o600 and len(read_token(file)) >= 32
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=r"0640.*chmod 600"):
        read_token(file)
    file.chmod(0o600)
    file.write_text("short\n")
    with pytest.raises(ConfigError, match="holds no token"):
        read_token(file)


def test_a_service_without_tls_is_for_this_machine_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llm\.bind = '0\.0\.0\.0'.*llm\.tls-cert"):
        llm_config(REPOSITORY, {"bind": "0.0.0.0"}, [], tmp_path)
    with pytest.raises(ConfigError, match=r"llm\.replicas = 2"):
        llm_config(REPOSITORY, {"port": 0}, ["llm.replicas=2"], tmp_path)
    config = llm_config(REPOSITORY, {"port": 7}, ["llm.max-tokens=99"], tmp_path)
    assert (config.max_tokens, config.port, config.threads) == (99, 7, 0)


def test_a_service_with_tls_is_asked_by_who_trusts_its_ca(
    asked: Asked, asker: Asker, tiny_model: Path, tmp_path: Path
) -> None:
    ca = authority()
    certificate, key = certificate_for(ca).write(tmp_path / "service")
    trusted = ca.write(tmp_path / "ca")[0]
    given = {"tls-cert": certificate, "tls-key": key}
    config = llm_config(REPOSITORY, given, [], tmp_path)
    said: list[str] = []
    with serving(str(tiny_model), config, tmp_path / "token", said.append) as address:
        assert f"{address} (TLS)" in said[1] and "made now" in said[2]
        service = Service(address, tmp_path / "token", str(trusted))
        with open_asker(asked.run, service=service) as remote:
            texts = [one.answer(QUESTION, asked.picture, CHOICES).text for one in (remote, asker)]
            assert texts[0] == texts[1]
        other = authority().write(tmp_path / "other")[0]
        with pytest.raises(HostRefusedError, match="cannot be trusted"):
            with open_asker(asked.run, service=replace(service, ca_cert=str(other))):
                pass


def test_adapters_of_another_model_are_refused_with_both_named(
    asked: Asked, service: Service, tmp_path: Path
) -> None:
    other = tiny.write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"model.*fingerprint.*other.*fingerprint"):
        with open_asker(asked.run, model=str(other)):
            pass
    made = FrozenLLM(load_llm_half(str(other))).describe()
    good = Caller(token=read_token(service.token_file))
    with RemoteLLM(service.address, good, retry_seconds=0) as remote:
        with pytest.raises(HostRefusedError, match=f"host has .* client has .*{made.fingerprint}"):
            remote.register(made.model, made.fingerprint, made.hidden_size)


def changed(asked: Asked, folder: Path, **changes: Any) -> Path:
    """The run with another config (`__` for a dot, `_` for a hyphen)."""
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    folder.mkdir()
    for file in asked.run.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "config.json").unlink()
    config = json.loads((asked.run / "config.json").read_text())
    assert keys.keys() <= config.keys()
    (folder / "config.json").write_text(json.dumps(config | keys))
    return folder


def test_a_run_of_a_gpu_is_asked_without_one_by_options_or_at_a_service(
    asked: Asked, tmp_path: Path, service: Service
) -> None:
    run = changed(asked, tmp_path / "gpu", edge__device="cuda:99", llm__device="cuda:99")
    with pytest.raises(ConfigError, match=r"edge\.device = 'cuda:99'.*-c edge\.device=cpu"):
        with open_asker(run):
            pass
    for config, at in (
        (["edge.device=cpu", "llm.device=cpu"], None),
        (["edge.device=cpu"], service),
    ):
        with open_asker(run, config=config, service=at) as asker:
            assert asker.answer(QUESTION, asked.picture, CHOICES).probabilities


def test_threads_are_pytorchs_own_unless_given_and_afterwards_as_before(
    asked: Asked, tiny_model: Path, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    run = changed(asked, tmp_path / "three", edge__threads=3, llm__threads=3)
    with open_asker(run):
        assert torch.get_num_threads() == before
    for key in ("edge.threads", "llm.threads"):
        with open_asker(run, config=[f"{key}=2"]):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == before
    given = llm_config(REPOSITORY, {}, ["llm.threads=2"], tmp_path)
    with serving(str(tiny_model), given, tmp_path / "token", lambda line: None):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("longest", "config", "wanted"), [(8, [], 64), (99, [], 99), (8, ["max-answer-tokens=5"], 5)]
)
def test_an_answer_may_be_longer_than_the_datas(
    longest: int, config: list[str], wanted: int, asked: Asked, tmp_path: Path
) -> None:
    run = changed(asked, tmp_path / "run", max_answer_tokens=longest)
    with open_asker(run, config=config) as asker:
        assert asker.max_tokens == wanted


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"strategy__name": "feddpa-f"}, "Each client has its own"),
        ({"adapter__ranks": "4,2"}, "ranks 4,2 .* full rank"),
    ],
)
def test_adapters_other_than_those_that_were_scored_are_said_to_be_so(
    changes: dict[str, str], wanted: str, asked: Asked, tmp_path: Path
) -> None:
    said: list[str] = []
    with open_asker(changed(asked, tmp_path / "run", **changes), say=said.append):
        pass
    (caveat,) = said
    assert re.search(wanted, caveat)


def test_a_run_without_adapters_of_its_own_or_shared_questions_is_refused(
    asked: Asked, tmp_path: Path
) -> None:
    local = changed(asked, tmp_path / "locft", strategy__name="locft")
    with pytest.raises(ConfigError, match="locft"), open_asker(local):
        pass
    cut = changed(asked, tmp_path / "cut", dataset__test_fraction=0.2)
    with pytest.raises(ConfigError, match=r"dataset.test-fraction is 0.2"):
        shared_questions(cut)
