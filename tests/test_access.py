"""Who may use the LLM service in a whole run: every client with its own token, and over TLS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from safetensors.torch import load_file

from fednano_flwr import client_app, server_app
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.rounds.records import with_tokens
from fednano_flwr.runs.folder import RunFolder
from tests.certificates import authority, certificate
from tests.local_grid import LocalGrid

Config = Callable[..., dict[str, Any]]
Change = Callable[[ConfigRecord], None]


class ChangedMail(LocalGrid):
    """Changes the config of the messages to one partition's node on their way.

    Attributes:
        tokens: of all messages, as they were sent.
    """

    def __init__(self, *args: Any, partition: int, change: Change, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._partition, self._change = partition, change
        self.tokens: list[str] = []

    def answer(self, message: Message) -> list[Message]:
        task = message.content.config_records["config"]
        self.tokens.append(str(task["llm-token"]))
        if self.nodes[message.metadata.dst_node_id] == self._partition:
            self._change(task)
        return super().answer(message)


def run(flat: dict[str, Any], grid: LocalGrid | None = None) -> RunFolder:
    grid = grid or LocalGrid(client_app.app, flat, 3)
    return server_app.federate(grid, 1, RunConfig.parse(flat))


def adapters(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.path / "adapters" / "last" / "adapter_model.safetensors")


def put(key: str, value: str) -> Change:
    def change(task: ConfigRecord) -> None:
        task[key] = value

    return change


def test_a_changed_token_fails_its_client_only_and_no_token_is_ever_written(
    run_config: Config, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    flat = run_config(num_server_rounds=1)
    change = put("llm-token", "0" * 64)
    grid = ChangedMail(client_app.app, flat, 3, partition=1, change=change)
    folder = run(flat, grid)
    assert sorted(folder.rounds[1]["train_loss_per_client"]) == ["0", "2"]
    assert sorted(folder.rounds[1]["accuracy_per_client"]) == ["0", "2"]
    (why,) = folder.rounds[1]["failures"]["evaluate"].values()
    assert "HostRefusedError" in why and "the token is not the one of this node" in why
    # Who failed in round 0 has said which client it is, and is asked to train.
    assert len(set(grid.tokens)) == len(grid.tokens) == 3 + 3 + 3
    said = capfd.readouterr()
    written = said.out + said.err + caplog.text
    for file in (path for path in folder.path.rglob("*") if path.is_file()):
        written += file.read_text(encoding="utf-8", errors="replace")
    assert "round 0" in written and not [token for token in grid.tokens if token in written]


def test_a_kept_token_of_the_first_round_is_refused_in_the_next(run_config: Config) -> None:
    flat = run_config(num_server_rounds=2)
    kept: dict[int, str] = {}

    def reuse(task: ConfigRecord) -> None:
        task["llm-token"] = kept.setdefault(0, str(task["llm-token"]))

    folder = run(flat, ChangedMail(client_app.app, flat, 3, partition=1, change=reuse))
    assert sorted(folder.rounds[0]["accuracy_per_client"]) == ["0", "1", "2"]
    for later in folder.rounds[1:]:
        assert sorted(later["train_loss_per_client"]) == ["0", "2"]


def test_a_run_over_tls_gives_the_same_adapters_and_a_client_without_a_ca_fails_alone(
    run_config: Config, tmp_path: Path
) -> None:
    plain = adapters(run(run_config(run__name="plain", num_server_rounds=1)))
    ca = authority()
    trusted, _ = ca.write(tmp_path / "ca")
    foreign, _ = authority("another").write(tmp_path / "other")
    cert, key = certificate(ca).write(tmp_path / "own")
    paths = {"llm__tls_cert": cert, "llm__tls_key": key, "num_server_rounds": 1}

    flat = run_config(run__name="tls", exchange__ca_cert=trusted, **paths)
    encrypted = run(flat)
    assert not encrypted.rounds[1]["failures"]["evaluate"]
    for name, value in plain.items():
        assert torch.equal(adapters(encrypted)[name], value), name

    def node(partition: int) -> dict[str, str]:
        own: dict[str, Any] = {"partition-id": partition, "num-partitions": 3}
        return own | ({"ca-cert": trusted} if partition else {})

    flat = run_config(run__name="own", **paths)
    mixed = run(flat, LocalGrid(client_app.app, flat, 3, node_config=node))
    (why,) = mixed.rounds[1]["failures"]["evaluate"].values()
    assert (
        "ConfigError" in why and "exchange.ca-cert" in why and "ca-cert in the node config" in why
    )
    assert sorted(mixed.rounds[1]["train_loss_per_client"]) == ["1", "2"]

    flat = run_config(run__name="first", exchange__ca_cert=foreign, **paths)
    first = run(flat, LocalGrid(client_app.app, flat, 3, node_config=node))
    (why,) = first.rounds[1]["failures"]["evaluate"].values()
    assert "HostRefusedError" in why and "cannot be trusted" in why
    assert sorted(first.rounds[1]["train_loss_per_client"]) == ["1", "2"]


def test_a_certificate_that_cannot_be_used_ends_a_run_before_anything_is_loaded(
    run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: Any) -> None:
        raise AssertionError("the model was opened")

    monkeypatch.setattr("fednano_flwr.rounds.service.open_host", loaded)
    cert, key = certificate(authority(), end=-0.5).write(tmp_path / "own")
    flat = run_config(llm__tls_cert=cert, llm__tls_key=key)
    with pytest.raises(ConfigError, match=r"llm\.tls-cert = .*expired on"):
        run(flat)
    assert not Path(flat["run.dir"]).exists()


def test_messages_that_share_a_content_get_a_token_each_and_share_their_arrays() -> None:
    shared = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord({"server-round": 1})})
    messages = [Message(shared, node, "train") for node in (7, 8)]
    tokens = Tokens(1)
    with tokens.open(1, "train") as token:
        sent = with_tokens(messages, token)
        assert [m.content.config_records["config"]["llm-token"] for m in sent] == [
            token(7),
            token(8),
        ]
    assert sent[0].content["arrays"] is sent[1].content["arrays"] is shared["arrays"]
    assert all(m.content.config_records["config"]["server-round"] == 1 for m in sent)
    assert "llm-token" not in shared.config_records["config"]
