"""A whole audit: a run's folder or a config in, what a host could read out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.audit.__main__ import cli
from benchmarks.audit.attack import candidates
from benchmarks.audit.command import audit, from_folder
from benchmarks.audit.results import AuditOptions, Subject, audit_one, text_factors, times_sent
from benchmarks.audit.tables import COLUMNS, console_table, markdown
from fednano_flwr.adapters.site import adapter_state, build_adapters, load_adapter_state
from fednano_flwr.config import Adapter, ConfigError, RunConfig
from fednano_flwr.data.sample import Sample
from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question
from fednano_flwr.in_process import run_in_process
from fednano_flwr.models.edge_half import EdgeHalf

Config = Callable[..., dict[str, Any]]
ASKED = AuditOptions(questions=12, seed=0, observations=2)


def audited(flat: dict[str, Any], asked: AuditOptions = ASKED) -> dict[str, Any]:
    """With adapters that change something: B is not zero."""
    config = RunConfig.parse(flat)
    theta = adapter_state(build_adapters(48, config.adapter, seed=1))
    theta = {name: value + 0.02 for name, value in theta.items()}
    return audit_one(Subject("test", config, theta, 3, 1, 0.5, 0.25), asked)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_embeddings_without_noise_are_read_whatever_crosses_the_wire(
    run_config: Config, dtype: str
) -> None:
    row = audited(run_config(exchange__kind="embeddings", exchange__dtype=dtype))
    assert row["questions"] == 12 and row["observations"] == [2, 2]
    assert row["read_once"]["all"] > 0.95 and row["read_often"]["content"] > 0.95
    assert row["most_frequent"]["all"] < 0.5
    assert row["image_rows_left_out"] > 0 and 0 < row["template"] < 20
    assert (row["accuracy"], row["frozen_accuracy"]) == (0.5, 0.25)


def test_token_ids_and_labels_are_read_as_they_are(run_config: Config) -> None:
    row = audited(run_config())
    assert row["exchange"] == "lowrank"
    assert row["read_once"] == {"all": 1.0, "content": 1.0, "distinct": 1.0}
    assert row["answers"] == 1.0 > row["most_frequent_answer"]


def test_labels_that_stay_at_the_client_are_read_from_the_gradient(run_config: Config) -> None:
    row = audited(run_config(exchange__labels_at="client"))
    assert row["labels_at"] == "client" and row["answers"] == 1.0


def test_the_same_seed_plays_the_same_questions(run_config: Config) -> None:
    first, again, other = (
        audited(run_config(), AuditOptions(6, seed, 1))["text_tokens"] for seed in (0, 0, 5)
    )
    assert first == again != other


def test_how_often_a_run_sends_a_question_counts_rounds_epochs_and_fisher_passes(
    run_config: Config,
) -> None:
    def times(**keys: Any) -> int:
        return times_sent(RunConfig.parse(run_config(num_server_rounds=3, local_epochs=2, **keys)))

    assert times() == 6
    assert times(strategy__name="fednano", strategy__fisher_estimate="pass") == 9
    assert times(strategy__name="fednano", strategy__fisher_estimate="running") == 6
    with pytest.raises(ConfigError, match="locft"):
        times(strategy__name="locft")


def test_a_runs_folder_is_audited_with_its_own_adapters_and_accuracy(
    run_config: Config, tmp_path: Path
) -> None:
    flat = run_config(num_server_rounds=1, local_epochs=1, exchange__kind="embeddings")
    folder = run_in_process(RunConfig.parse(flat), clients=3)
    subject = from_folder(folder.path)
    assert subject.clients == 3 and subject.accuracy == folder.rounds[-1]["accuracy"]
    out = tmp_path / "new" / "audit.json"
    arguments = [str(folder.path), "--questions", "9", "--out", str(out)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(out.read_text())["rows"]
    assert row["observations"] == [1, 1] and row["read_once"]["all"] > 0.95
    assert f"{100 * subject.accuracy:.1f}" in done.output


def test_what_is_no_run_is_refused_before_anything_is_played(
    run_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="is no run's folder"):
        audit([tmp_path], ASKED, 3, None, tmp_path, "", print)
    done = CliRunner().invoke(cli, [str(tmp_path / "there-is-none.json")])
    assert done.exit_code == 2 and "ends in .toml" in done.output


def test_the_hosts_candidates_are_what_a_client_sends(
    edge_half: EdgeHalf, encoder: QuestionEncoder
) -> None:
    adapters = build_adapters(48, Adapter(4, 12.0, 0.0, "image,text"), seed=0)
    theta = {
        name: torch.randn(value.shape, generator=torch.Generator().manual_seed(i))
        for i, (name, value) in enumerate(adapter_state(adapters).items())
    }
    load_adapter_state(adapters, theta)
    tokens = edge_half.token_table()
    edge = NanoEdge(edge_half, tokens, adapters, encoder)
    question = Question(
        Sample("1", "?", "g", "s"),
        torch.arange(10, 20),
        (1,),
        (),
        {},
        torch.zeros(10, dtype=torch.bool),
    )
    sent = edge([question]).embedded().detach()
    rows = torch.cat(list(candidates(tokens, 64, text_factors(theta), 3.0, at_once=9)))
    assert torch.allclose(rows[10:20], sent, atol=1e-5)
    assert (rows[10:20] - tokens(torch.arange(10, 20))).abs().max() > 1


def test_a_run_with_a_lora_inside_the_language_model_is_refused(
    run_config: Config, tmp_path: Path
) -> None:
    run_in_process(RunConfig.parse(run_config(adapter__sites="all,llm", num_server_rounds=0)), 2)
    with pytest.raises(ConfigError, match=r"test: adapter\.sites = 'all,llm': .* have no llm"):
        audit([tmp_path / "runs" / "test"], ASKED, 2, None, tmp_path, "", print)


def test_the_tables_hold_every_row(run_config: Config) -> None:
    row = audited(run_config())
    assert "100.0" in console_table([row]) and "50.0" in console_table([row])
    assert markdown([row]).count("\n") == 3
    assert markdown([row]).splitlines()[2].count("|") == len(COLUMNS) + 1
