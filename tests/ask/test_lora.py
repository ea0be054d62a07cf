"""Runs that trained a LoRA inside the language model, asked in one process and at a service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

from fednano_flwr import client_app, server_app
from fednano_flwr.ask.asker import Asker
from fednano_flwr.ask.opening import Service, open_asker, shared_questions
from fednano_flwr.ask.serve import AnswersOnly, llm_config, serving
from fednano_flwr.check.unsplit import Unsplit
from fednano_flwr.cli.app import cli
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.data.sample import Sample
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.lora import digest_of
from fednano_flwr.runs.results import load_run
from tests import tiny
from tests.ask.conftest import QUESTION, Asked, endless, served
from tests.conftest import REPOSITORY, tiny_config
from tests.local_grid import LocalGrid

SITES = ("all,llm", "llm")


@pytest.fixture(scope="module")
def runs(
    defaults: dict[str, Any],
    tiny_model: Path,
    tiny_questions: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A run of two rounds with each of `SITES`."""

    def run(sites: str) -> Path:
        make = tiny_config(defaults, tiny_model, tiny_questions, tmp_path_factory.mktemp("runs"))
        flat = make(adapter__sites=sites, adapter__llm_rank=3, learning_rate=0.02)
        grid = LocalGrid(client_app.app, flat, 3, 0)
        return server_app.federate(grid, 1, RunConfig.parse(flat)).path

    return {sites: run(sites) for sites in SITES}


@pytest.fixture(scope="module")
def lora_service(
    runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """`fednano serve --run` of the first."""
    token = tmp_path_factory.mktemp("serve") / "token"
    with served(["--run", str(runs[SITES[0]]), "--which", "last"], token) as service:
        yield service


def some(run: Path) -> list[Sample]:
    """Questions with and without pictures, all with as many options."""
    questions = shared_questions(run)
    most = max(sample.num_options for sample in questions)
    found = [sample for sample in questions if sample.num_options == most]
    return found[:6]


def shares(asker: Asker, samples: Sequence[Sample], frozen: bool) -> torch.Tensor:
    return torch.tensor([asker.answer_sample(s, frozen).probabilities for s in samples])


@torch.no_grad()
def shares_unsplit(whole: Unsplit, asker: Asker, samples: Sequence[Sample]) -> torch.Tensor:
    found = []
    for sample in samples:
        question = asker._encoded(sample)
        logits = whole.next_logits(question, asker.tuned.encoder)
        found.append(logits[torch.tensor(question.options)].softmax(0))
    return torch.stack(found)


@pytest.mark.parametrize("sites", SITES)
def test_an_answer_is_that_of_the_whole_model_with_pefts_lora_and_the_frozen_one_without(
    sites: str, runs: dict[str, Path], tiny_model: Path
) -> None:
    run = runs[sites]
    samples = some(run)
    with open_asker(run, "last") as asker:
        tuned, frozen = shares(asker, samples, False), shares(asker, samples, True)
        again = shares(asker, samples, False)
        whole = Unsplit(tiny_model, ModelCheckpoint(str(tiny_model)).family)
        torch.testing.assert_close(shares_unsplit(whole, asker, samples), frozen)
        PeftModel.from_pretrained(whole.model, str(run / "adapters" / "last" / "llm"))
        with whole.adapted(asker.tuned.adapters):
            torch.testing.assert_close(shares_unsplit(whole, asker, samples), tuned)
    assert torch.equal(again, tuned) and (tuned - frozen).abs().max() > 0.01


def test_a_service_of_the_run_answers_as_one_process_does_frozen_and_tuned(
    runs: dict[str, Path], lora_service: Service, asked: Asked
) -> None:
    run = runs[SITES[0]]
    samples, found = some(run), []
    for service in (None, lora_service):
        with open_asker(run, "last", service=service) as asker:
            endless(asker)
            closed = [shares(asker, samples, frozen) for frozen in (False, True)]
            free = [
                "".join(asker.stream(QUESTION, asked.picture, frozen=frozen)).strip()
                for frozen in (False, True)
            ]
            assert free == [
                asker.answer(QUESTION, asked.picture, frozen=frozen).text
                for frozen in (False, True)
            ]
            found.append((closed, free))
    (here, text_here), (there, text_there) = found
    torch.testing.assert_close(there, here)
    assert text_there == text_here and text_here[0] != text_here[1]


def test_a_service_with_another_lora_or_none_is_refused_and_so_is_one_for_a_run_without(
    runs: dict[str, Path], lora_service: Service, service: Service, asked: Asked
) -> None:
    own, other = (digest_of(load_run(runs[sites]).lora("last")) for sites in SITES)
    for run, at, theirs, ours in (
        (runs["all,llm"], service, "no LoRA", f"LoRA {own}"),
        (runs["llm"], lora_service, f"LoRA {own}", f"LoRA {other}"),
        (asked.run, lora_service, f"LoRA {own}", "no LoRA"),
    ):
        wanted = f"has {theirs} inside.* has {ours}: .*fednano serve --run {run} --which last"
        with pytest.raises(ConfigError, match=wanted), open_asker(run, "last", service=at):
            pass


def test_a_run_whose_lora_alone_has_learned_is_not_called_frozen(runs: dict[str, Path]) -> None:
    said: list[str] = []
    with open_asker(runs["llm"], "last", say=said.append):
        assert not said


def test_a_service_takes_model_and_lora_from_its_run_and_refuses_another_model(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    config, said = llm_config(REPOSITORY, {}, [], tmp_path), list[str]()
    run, token = load_run(runs["llm"]), tmp_path / "token"
    with serving("", config, token, said.append, run=run):
        pass
    assert digest_of(run.lora("best")) in said[1] and "best round" in said[1]
    other = tiny.write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"the run was trained on .*fingerprint"):
        with serving(str(other), config, token, said.append, run=run):
            pass


def test_serve_needs_a_model_or_a_run_whose_revision_is_its_own(runs: dict[str, Path]) -> None:
    for arguments, wanted in (
        ([], "MODEL"),
        (["--run", str(runs["llm"]), "--revision", "main"], "--revision"),
    ):
        found = CliRunner().invoke(cli, ["serve", *arguments])
        assert found.exit_code == 2 and wanted in found.output


def test_sessions_are_not_forgotten_by_a_service_that_has_none() -> None:
    with pytest.raises(ValueError, match="no part in training"):
        AnswersOnly(None).forget_sessions()  # type: ignore[arg-type]
