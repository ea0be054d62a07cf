"""Whole runs with differential privacy, of each kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.supercore.differential_privacy import compute_clip_model_update
from safetensors.torch import load_file

from fednano_flwr import client_app, server_app
from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.config import Adapter, ConfigError, RunConfig
from fednano_flwr.privacy import mods
from fednano_flwr.privacy.budget import epsilon_of
from fednano_flwr.rounds.bounds import check_clipped
from fednano_flwr.runs.folder import RunFolder
from tests.local_grid import LocalGrid
from tests.replies import train_reply

pytest.importorskip("dp_accounting")
Config = Callable[..., dict[str, Any]]
FAIR = {"strategy__name": "fedavg", "strategy__weight_by": "equal", "local_epochs": 1}
KINDS = (
    "client-fixed",
    "server-adaptive",
    pytest.param("client-adaptive", marks=pytest.mark.slow),
    pytest.param("server-fixed", marks=pytest.mark.slow),
)


class Watching(LocalGrid):
    """Keeps the norm of each update as it arrives, all tensors together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norms: list[float] = []

    def answer(self, message: Message) -> list[Message]:
        replies = super().answer(message)
        for reply in replies:
            if not reply.has_error() and (got := reply.content.array_records):
                sent = message.content.array_records["arrays"]
                off = [got["arrays"][k].numpy() - sent[k].numpy() for k in sent]
                self.norms.append(float(np.sqrt(sum((one**2).sum() for one in off))))
        return replies


def run(flat: dict[str, Any], **grid: Any) -> tuple[RunFolder, Watching]:
    watching = Watching(client_app.app, flat, 3, **grid)
    return server_app.federate(watching, 1, RunConfig.parse(flat)), watching


@pytest.mark.parametrize("dp", KINDS)
def test_a_run_clips_noises_and_says_what_it_has_spent(
    run_config: Config, dp: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"privacy__clip_norm": 0.05, "privacy__noise_multiplier": 1.5, **FAIR}
    folder, grid = run(run_config(privacy__dp=dp, **settings))
    spent = [record["merge"].get("epsilon") for record in folder.rounds]
    assert spent[0] is None
    assert spent[1:] == [epsilon_of(rounds, 1.5, 1e-5) for rounds in (1, 2)]
    lines = (folder.path / "privacy.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]
    said = capsys.readouterr().out
    assert f"ε {spent[1]:.2f}" in said and f"2 round(s) spend ε = {spent[2]:.2f}" in said
    at_client = max(grid.norms[:3]) <= 0.05 * (1 + 1e-4)  # of the first round; float32 rounds
    assert at_client == dp.startswith("client"), grid.norms
    assert folder.rounds[1]["failures"] == {"train": {}, "evaluate": {}}


@pytest.mark.parametrize(
    "dp", ["client-fixed", pytest.param("client-adaptive", marks=pytest.mark.slow)]
)
def test_a_client_that_does_not_clip_as_it_was_asked_to_is_refused_and_named(
    run_config: Config, dp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = mods.MODS[dp]

    def all_but_one(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = clip(message, context, call_next)
        if context.node_config["partition-id"] == 1:
            sent = message.content.array_records["arrays"]
            got = reply.content.array_records["arrays"]
            twice = {k: Array(2 * got[k].numpy() - sent[k].numpy()) for k in sent}
            reply.content["arrays"] = ArrayRecord(twice)
        return reply

    monkeypatch.setitem(mods.MODS, dp, all_but_one)
    settings = {"privacy__clip_norm": 0.05, "num_server_rounds": 1, **FAIR}
    folder, _ = run(run_config(privacy__dp=dp, **settings))
    failures = folder.rounds[1]["failures"]["train"]
    assert list(failures) == ["client 1"]
    assert "norm 0.1," in failures["client 1"] and "clip norm 0.05" in failures["client 1"]
    assert folder.rounds[1]["merge"]["clients"] == 2


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("clip", [1e-3, 1.0, 1e3])
def test_what_rounding_leaves_of_a_clipped_update_is_let_pass(scale: float, clip: float) -> None:
    generator = np.random.default_rng(0)
    sent = [(scale * generator.normal(size=(64, 2000))).astype(np.float32) for _ in range(2)]
    update = [generator.normal(size=(64, 2000)).astype(np.float32) * 10 for _ in range(2)]
    got = [a + b for a, b in zip(sent, update, strict=True)]
    compute_clip_model_update(got, sent, clip)
    theta, start = ({str(i): torch.from_numpy(a) for i, a in enumerate(s)} for s in (got, sent))
    check_clipped(theta, start, clip)
    if scale * 500 * 1e-5 < clip:  # else float32 cannot tell
        with pytest.raises(ValueError, match=r"the clip norm"):
            check_clipped(theta, start, 0.99 * clip)


def test_a_client_that_is_not_told_whether_to_clip_replies_with_no_update(
    defaults: dict[str, Any],
) -> None:
    without = {key: value for key, value in defaults.items() if key != "privacy.dp"}
    context = Context(1, 1, {}, RecordDict(), without)
    ask = train_reply(ArrayRecord({}))
    with pytest.raises(ConfigError, match=r"privacy\.dp"):
        mods.clip_as_asked(ask, context, lambda *_: ask)


@pytest.mark.slow
def test_noise_is_in_the_adapters_that_are_kept(run_config: Config) -> None:
    loud = {"privacy__clip_norm": 1e-3, "privacy__noise_multiplier": 3e4, "num_server_rounds": 1}
    flat = run_config(privacy__dp="server-fixed", **loud, **FAIR)
    folder, _ = run(flat)
    kept = load_file(folder.path / "adapters" / "last" / "adapter_model.safetensors")
    shape = Adapter(flat["adapter.rank"], flat["adapter.alpha"], 0.0, flat["adapter.sites"])
    start = adapter_state(build_adapters(48, shape, flat["seed"]))
    noise = torch.cat([(kept[name] - value).flatten() for name, value in start.items()])
    assert float(noise.std()) == pytest.approx(3e4 * 1e-3 / 3, rel=0.15)


@pytest.mark.slow
def test_the_noise_is_scaled_by_those_who_replied(run_config: Config) -> None:
    short = {"num_server_rounds": 1, "round_timeout": 1.0}
    folder, _ = run(run_config(privacy__dp="server-fixed", **short, **FAIR), gone=[1])
    assert folder.rounds[1]["merge"]["clients"] == 2
    assert folder.rounds[1]["merge"]["noise stddev"] == 0.5


@pytest.mark.slow
def test_a_resumed_run_goes_on_counting_and_counts_the_round_that_was_lost(
    run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"privacy__dp": "server-adaptive", "resume": "auto", "run__name": "r", **FAIR}
    flat = run_config(**settings)
    append = RunFolder.append

    def full(self: RunFolder, record: dict[str, Any], *rest: Any) -> None:
        if record["round"] == 2:
            raise OSError("the disk is full")
        append(self, record, *rest)

    monkeypatch.setattr(RunFolder, "append", full)
    with pytest.raises(OSError, match="full"):
        run(flat)
    monkeypatch.undo()
    folder, _ = run(flat)
    assert [record["round"] for record in folder.rounds] == [0, 1, 2]
    assert folder.rounds[2]["merge"]["epsilon"] == epsilon_of(3, 1.0, 1e-5)
    first, lost, again = map(json.loads, (folder.path / "privacy.jsonl").read_text().splitlines())
    assert (first["round"], lost["round"], again["round"]) == (1, 2, 2)
    assert again["clip norm"] == lost["clip norm"] != first["clip norm"]


@pytest.mark.slow
def test_a_client_that_trains_nothing_is_no_failure(run_config: Config) -> None:
    still = {"learning_rate_schedule": "linear", "learning_rate_end": 0.0, **FAIR}
    folder, grid = run(run_config(privacy__dp="client-adaptive", **still))
    assert grid.norms[-3:] == [0.0, 0.0, 0.0]
    assert not folder.rounds[2]["failures"]["train"]
