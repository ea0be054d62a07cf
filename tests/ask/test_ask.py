"""A run's tuned model, asked in this process and at a service in another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fednano_flwr.ask import opening
from fednano_flwr.ask.opening import Service, open_asker
from fednano_flwr.ask.serve import llm_config, serving
from fednano_flwr.ask.session import Asker, _sample
from fednano_flwr.cli.app import cli
from fednano_flwr.config import ConfigError
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.exchange.protocol import CacheGoneError, Generated, HostRefusedError
from fednano_flwr.exchange.wire.auth import make_token, read_token
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.llm_half import load_llm_half
from tests import tiny
from tests.ask.conftest import Asked
from tests.batches import answered_at_the_end as batch
from tests.certificates import authority
from tests.certificates import certificate as certificate_for
from tests.conftest import REPOSITORY
from tests.opened import recorded

CHOICES = ("w30", "w31", "w32")
QUESTION = "w20 w21 w22 ?"


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


def endless(asker: Asker) -> None:
    """Answers are as long as they may be, 8 tokens."""
    asker.tuned.encoder.ends = set()
    asker.max_tokens = 8


def answers(asker: Asker, picture: Path) -> list[Any]:
    endless(asker)
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
    asked: Asked, service: Service
) -> None:
    with open_asker(asked.run) as asker:
        expected = answers(asker, asked.picture)
    tuned, frozen = expected[:4], expected[4:]
    assert tuned[1] != frozen[1] and tuned[2] != frozen[2]
    with recorded() as opened:
        with open_asker(asked.run, bundle=str(asked.bundle), service=service) as asker:
            assert answers(asker, asked.picture) == expected
    assert opened.inside("vision_tower.") and opened.inside("multi_modal_projector.")
    language = opened.inside("language_model.", "lm_head")
    assert language == {"language_model.embed_tokens.weight"}  # token embeddings: a client's


def test_a_streamed_answer_is_there_token_by_token(asked: Asked, service: Service) -> None:
    with open_asker(asked.run, service=service) as asker:
        endless(asker)
        counted = asker.llm = Counting(asker.llm)  # type: ignore[assignment]
        pieces = asker.stream(QUESTION, asked.picture)
        first = next(pieces)
        assert first and counted.calls == ["prefill"]
        rest = list(pieces)
        assert counted.calls == ["prefill", *["decode"] * 7]
        assert (first + "".join(rest)).strip() == asker.answer(QUESTION, asked.picture).text


def test_an_answer_whose_cache_was_lost_goes_on_with_the_same_tokens(asked: Asked) -> None:
    with open_asker(asked.run) as asker:
        endless(asker)
        expected = asker.answer(QUESTION, asked.picture)
        forgetful = asker.llm = Counting(asker.llm, loses=2)  # type: ignore[assignment]
        assert asker.answer(QUESTION, asked.picture) == expected
        assert forgetful.calls.count("prefill") > 2


def test_a_token_that_the_model_does_not_have_is_the_hosts_fault(asked: Asked) -> None:
    with open_asker(asked.run) as asker:
        asker.llm.prefill = lambda batch: Generated(1, 64)  # type: ignore[method-assign]
        with pytest.raises(HostRefusedError, match="token 64, and the model has 64"):
            asker.answer(QUESTION)


def test_the_prompt_is_the_one_of_training(asked: Asked) -> None:
    with open_asker(asked.run) as asker:
        picture, encoder = Picture(path=asked.picture), asker.tuned.encoder
        closed = Sample("u", QUESTION, "", "", CHOICES, answer=2, images=(picture,), context="w23")
        free = Sample("u", QUESTION, "", "", free_answer="w40")
        for sample, image in ((closed, asked.picture), (free, None)):
            trained = encoder.encode(sample)
            put = asker._encoded(_sample(QUESTION, image, sample.choices, sample.context))
            assert torch.equal(put.ids, trained.ids) and put.options == trained.options


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
            remote.step(*batch(0))
        with pytest.raises(HostRefusedError, match="no part in training"):
            remote.forward(batch(0)[0], torch.tensor([13]))


def test_a_token_file_is_for_its_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "token"
    assert make_token(file) and not make_token(file)
    assert file.stat().st_mode & 0o777 == 0o600 and len(read_token(file)) >= 32
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 0640.*chmod 600"):
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
    assert llm_config(REPOSITORY, {"port": 7}, ["llm.max-tokens=99"], tmp_path).max_tokens == 99


def test_a_service_with_tls_is_asked_by_who_trusts_its_ca(
    asked: Asked, tiny_model: Path, tmp_path: Path
) -> None:
    ca = authority()
    certificate, key = certificate_for(ca).write(tmp_path / "service")
    trusted = ca.write(tmp_path / "ca")[0]
    given = {"tls-cert": certificate, "tls-key": key}
    config = llm_config(REPOSITORY, given, [], tmp_path)
    said: list[str] = []
    with serving(str(tiny_model), config, tmp_path / "token", said.append) as address:
        assert f"{address} (TLS)" in said[1] and "made now" in said[2]
        with open_asker(asked.run) as here:
            expected = here.answer(QUESTION, asked.picture, CHOICES)
        service = Service(address, tmp_path / "token", str(trusted))
        with open_asker(asked.run, service=service) as asker:
            assert asker.answer(QUESTION, asked.picture, CHOICES).text == expected.text
        other = authority().write(tmp_path / "other")[0]
        with pytest.raises(HostRefusedError, match="cannot be trusted"):
            with open_asker(asked.run, service=replace(service, ca_cert=str(other))):
                pass


def test_adapters_of_another_model_are_refused_with_both_named(
    asked: Asked, service: Service, tmp_path: Path
) -> None:
    other = tiny.write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(
        ConfigError, match=r"trained on .*model.*fingerprint.*model here is .*other"
    ):
        with open_asker(asked.run, model=str(other)):
            pass
    half = load_llm_half(str(other))
    made = FrozenLLM(half).describe()
    good = Caller(token=read_token(service.token_file))
    with RemoteLLM(service.address, good, retry_seconds=0) as remote:
        with pytest.raises(HostRefusedError, match=f"host has .* client has .*{made.fingerprint}"):
            remote.register(made.model, made.fingerprint, made.hidden_size)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ((" ",), 2, "the question is empty"),
        (("which <image> ?",), 2, "its text holds <image>"),
        (("--image", "missing.png", "w20"), 2, "image missing.png: there is no such file"),
        (("--image", "RUN/config.json", "w20"), 2, "cannot be read as a picture"),
        (("--choices", "w30", "w20"), 2, "1 choices; there can be 2 to 10"),
        (("--choices", "w30;", "w20"), 2, "one of the choices is empty"),
        (("caf\udce9?",), 2, "the question is not UTF-8 after 'caf'"),
        (("--choices", "w30;\udce9", "w20"), 2, "the text of a choice is not UTF-8"),
        (("--hint", "\udce9", "w20"), 2, "the context is not UTF-8"),
        (("-c", "edge.device=cuda:99", "w20"), 2, "-c edge.device=cpu -c llm.device=cpu"),
        (("-c", "llm.device=cuda:99", "w20"), 2, "llm.device = 'cuda:99'"),
        (("-c", "llm.max-tokens=4", "w20"), 1, "the host takes 4 (llm.max-tokens)"),
        (("-c", "adapter.rank=9", "w20"), 2, "adapter.rank"),
        (("--token-file", "x", "w20"), 2, "give its --llm"),
        (("--llm", "192.0.2.1:99", "--token-file", "TOKEN", "w20"), 2, "--ca-cert"),
        (("--llm", "127.0.0.1", "--token-file", "TOKEN", "w20"), 2, "must be HOST:PORT"),
        (("--llm", "127.0.0.1:9", "--token-file", "TOKEN", "w20"), 1, "127.0.0.1:9 did not answer"),
        (("--llm", "127.0.0.1:9", "--token-file", "none", "w20"), 2, "none: cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(
    asked: Asked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    status: int,
    says: str,
) -> None:
    monkeypatch.setattr(opening, "RETRY_SECONDS", 0.2)
    make_token(tmp_path / "token")
    named = {"RUN/config.json": str(asked.run / "config.json"), "TOKEN": str(tmp_path / "token")}
    found = CliRunner().invoke(
        cli, ["ask", str(asked.run), *(named.get(one, one) for one in arguments)]
    )
    assert found.exit_code == status, found.output
    error = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and says in error[0]


def test_a_run_without_adapters_is_said_to_have_none(asked: Asked, tmp_path: Path) -> None:
    for name in ("config.json", "environment.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((asked.run / name).read_bytes())
    found = CliRunner().invoke(cli, ["ask", str(tmp_path), "w20"])
    assert found.exit_code == 2 and "adapter_model.safetensors cannot be read" in found.stderr
    nowhere = CliRunner().invoke(cli, ["ask", str(tmp_path / "none"), "w20"])
    assert nowhere.exit_code == 2 and "is no run's folder" in nowhere.stderr


def test_the_command_shows_a_choice_with_its_probabilities(asked: Asked) -> None:
    found = CliRunner().invoke(
        cli,
        ["ask", str(asked.run), "--image", str(asked.picture), "--choices", "w30;w31", QUESTION],
    )
    lines = found.stdout.splitlines()
    assert found.exit_code == 0 and lines[0] in ("w30", "w31")
    assert lines[1].split()[:2] == ["A.", "w30"] and lines[2].endswith("%")
