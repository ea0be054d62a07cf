"""What language models take beside input embeddings: it counts, it is checked, it is sent once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fednano_flwr.config import ConfigError
from fednano_flwr.edge.client import EXCHANGES
from fednano_flwr.edge.questions import next_token_labels, teacher_forced
from fednano_flwr.exchange.errors import HostRefusedError
from fednano_flwr.exchange.protocol import (
    IGNORE,
    PROTOCOL_VERSION,
    AdaptedBatch,
    Feature,
    NewTokens,
)
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.dispatch import Dispatcher
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from tests.models.test_families import Setting, make_setting

PARTS = {"qwen3_vl": "deep", "gemma4": "token_ids", "gemma4-large": "token_type_ids"}
"""Of `Layout`: what each checkpoint is there for."""
D, DEEP = 48, 2 * 48
EVERY = torch.arange(96)
HEADER = pb.Header(protocol=PROTOCOL_VERSION)


@pytest.fixture(scope="module")
def settings(family_folder: Callable[[str], Path]) -> dict[str, Setting]:
    return {name: make_setting(family_folder(name), "float32") for name in PARTS}


def batch(setting: Setting) -> tuple[AdaptedBatch, Tensor]:
    """All questions with their answers, and the places of the answers' tokens."""
    setting.edge.adapters.float()
    labels = next_token_labels(setting.questions, IGNORE)
    with torch.no_grad():
        made = setting.edge(setting.questions, teacher_forced(setting.questions))
    return made, (labels != IGNORE).nonzero().squeeze(1)


@pytest.mark.parametrize("family", PARTS)
def test_leaving_out_what_goes_past_the_embeddings_changes_the_logits(
    settings: dict[str, Setting], family: str
) -> None:
    setting, part = settings[family], PARTS[family]
    whole, places = batch(setting)
    llm = EXCHANGES["embeddings"](setting.host, "server")
    layout = whole.layout._replace(**{part: torch.zeros_like(getattr(whole.layout, part))})
    expected, got = (
        llm.score(one, places, EVERY) for one in (whole, replace(whole, layout=layout))
    )
    changed = (got - expected).abs().amax(1) > 1e-2
    assert changed.any() and bool(changed[0])  # the first question has a picture


@pytest.mark.parametrize("family", PARTS)
def test_what_is_missing_is_refused(settings: dict[str, Setting], family: str) -> None:
    setting, part = settings[family], PARTS[family]
    whole, places = batch(setting)
    llm = EXCHANGES["embeddings"](setting.host, "server")
    lacking = replace(whole, layout=whole.layout._replace(**{part: None}))
    with pytest.raises(ValueError, match="features for deeper layers" if part == "deep" else part):
        llm.score(lacking, places, EVERY)


def test_a_token_that_the_layers_do_not_know_is_refused(settings: dict[str, Setting]) -> None:
    setting = settings["gemma4"]
    whole, places = batch(setting)
    llm = EXCHANGES["lowrank"](setting.host, "server")
    begun = llm.prefill(setting.edge(setting.questions[1:2]), 4)
    ids = whole.token_ids.clone()
    ids[0] = 96
    layout = whole.layout._replace(token_ids=ids)
    with pytest.raises(ValueError, match="token 96"):
        EXCHANGES["embeddings"](setting.host, "server").score(
            replace(whole, layout=layout), places, EVERY
        )
    first = torch.tensor([0])
    with pytest.raises(ValueError, match="token 96"):
        setting.host.decode(begun.cache, NewTokens(first, first + 96, torch.zeros(1, 4)))


def test_deep_features_are_kept_with_their_picture_and_sent_once(
    settings: dict[str, Setting],
) -> None:
    setting = settings["qwen3_vl"]
    whole, places = batch(setting)
    assert all(feature.rows.shape[1] == D + DEEP for feature in whole.features)
    with serve(setting.host) as address, RemoteLLM(address) as remote:
        plain = EXCHANGES["embeddings"](remote, "server").score(whole, places, EVERY)
        sizes = []
        for _ in range(2):
            before = remote.traffic.bytes_up
            kept = EXCHANGES["lowrank"](remote, "server").score(whole, places, EVERY)
            sizes.append(remote.traffic.bytes_up - before)
    assert (plain - kept).abs().max() < 1e-5
    numbers = sum(feature.rows.numel() for feature in whole.features)
    assert sizes[0] - sizes[1] > 4 * numbers


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", EXCHANGES)
def test_codecs_carry_deep_features(settings: dict[str, Setting], dtype: str, kind: str) -> None:
    setting = settings["qwen3_vl"]
    whole, places = batch(setting)
    exact = EXCHANGES[kind](setting.host, "server").score(whole, places, EVERY)
    with serve(setting.host) as address, RemoteLLM(address, dtype=dtype) as remote:
        if kind == "lowrank":
            remote.keep_features(whole.features)  # those of the test before are exact
        got = EXCHANGES[kind](remote, "server").score(whole, places, EVERY)
    assert 0 < (got - exact).abs().max() < 0.3


def features(width: int) -> pb.Call:
    entry = pb.FeatureEntry(key=b"k", rows=codec.encode(torch.zeros(2, width), "float32"))
    return pb.Call(keep_features=pb.KeepFeaturesRequest(header=HEADER, features=[entry]))


def losses(deep: tuple[int, int] | None, types: tuple[int, ...] = (0, 1, 1, 0)) -> pb.Call:
    inputs: dict[str, Any] = {
        "lengths": [4],
        "embeddings": codec.encode(torch.zeros(4, D), "float32"),
        "position_ids": [0, 1, 2, 3] * 3,
        "token_type_ids": types,
    }
    if deep is not None:
        inputs["deep"] = codec.encode(torch.zeros(deep), "float32")
    asked = pb.TokenLossesRequest(header=HEADER, inputs=inputs, positions=[3], tokens=[5])
    return pb.Call(token_losses=asked)


REFUSED = {
    "kept features without their deep part": (features(D), f"(2, {D}), not (n, {D + DEEP})"),
    "of another width": (losses((2, D)), f"(2, {D}), not (2, {DEEP})"),
    "of fewer rows": (losses((1, DEEP)), f"(1, {DEEP}), not (2, {DEEP})"),
    "of more rows": (losses((2, DEEP), (0, 1, 0, 0)), f"(2, {DEEP}), not (1, {DEEP})"),
    "none": (losses(None), f"(0, {DEEP})"),
    "of types that there are not": (losses((4, DEEP), (0, 2, 2, 0)), "token type 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_deep_features_of_another_shape_are_refused(
    settings: dict[str, Setting], case: str
) -> None:
    call, says = REFUSED[case]
    answer = Dispatcher(settings["qwen3_vl"].host).answer(call.SerializeToString())
    assert says in answer.refused


def test_the_messages_that_were_spoilt_are_good_ones(settings: dict[str, Setting]) -> None:
    dispatcher = Dispatcher(settings["qwen3_vl"].host)
    for call in (features(D + DEEP), losses((2, DEEP)), losses(None, (0, 0, 0, 0))):
        kind = call.WhichOneof("what")
        assert dispatcher.answer(call.SerializeToString()).WhichOneof("what") == kind


def test_kept_features_of_another_width_are_refused_in_this_process_too(
    settings: dict[str, Setting],
) -> None:
    setting = settings["qwen3_vl"]
    whole, places = batch(setting)
    narrow = tuple(Feature(b"narrow" + f.key[:8], f.rows[:, :D]) for f in whole.features)
    llm = EXCHANGES["lowrank"](setting.host, "server")
    with pytest.raises((ValueError, HostRefusedError), match="features for deeper layers"):
        llm.score(replace(whole, features=narrow), places, EVERY)


def test_an_encoder_of_sound_is_the_clients_alone(family_folder: Callable[[str], Path]) -> None:
    folder = str(family_folder("gemma4"))
    checkpoint = ModelCheckpoint(folder)
    assert any(name.startswith("audio_tower.") for name in checkpoint.files)
    client, server = (
        [name for name, _ in half.named_parameters() if "audio" in name]
        for half in (load_edge_half(folder), load_llm_half(folder))
    )
    assert client and not server


def test_scales_that_are_no_parameters_are_loaded_too(family_folder: Callable[[str], Path]) -> None:
    """Each layer of Gemma 4 has one, as a buffer."""
    folder = str(family_folder("gemma4"))
    stored = {
        name: value
        for name, value in ModelCheckpoint(folder).read(
            [name for name in ModelCheckpoint(folder).files if name.endswith("layer_scalar")]
        )
    }
    loaded = dict(load_llm_half(folder).named_buffers())
    assert len(stored) == 4 and all(bool(value != 1) for value in stored.values())
    for name, value in stored.items():
        (found,) = (b for n, b in loaded.items() if n.endswith(name))
        assert torch.equal(found, value)


def test_experts_that_are_stored_the_other_way_round_are_read_as_transformers_reads_them(
    family_folder: Callable[[str], Path],
) -> None:
    folder = family_folder("qwen3_vl_moe")
    checkpoint, name = ModelCheckpoint(str(folder)), "language_model.layers.0.mlp.experts"
    half = load_llm_half(str(folder))
    for leaf, shape in {"gate_up_proj": (4, 64, 48), "down_proj": (4, 48, 32)}.items():
        loaded = half.get_parameter(f"_host.model.{name}.{leaf}")
        assert tuple(loaded.shape) == shape
    with pytest.raises(ConfigError, match="down_proj"):
        checkpoint.check({f"{name}.down_proj": torch.Size((4, 32, 47))})
