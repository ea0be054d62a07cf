"""What is particular of a family takes part in what its tiny model computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from fednano_flwr.data.sample import Sample
from fednano_flwr.edge.client import EXCHANGES
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.questions import last_positions
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from tests.families import TINY
from tests.models.test_families import SAMPLES, Setting, error, make_setting
from tests.sounds import noise, sound

Folders = Callable[[str], Path]
SEEN = 1e-3
"""A relative difference that is not one of rounding."""


@torch.no_grad()
def logits(setting: Setting) -> Tensor:
    """After the prompt of a question with a picture."""
    chosen = setting.questions[:1]
    llm = EXCHANGES["lowrank"](setting.host, "server")
    every = torch.arange(setting.host.describe().vocabulary)
    return llm.score(setting.edge(chosen), last_positions(chosen), every)


@pytest.mark.parametrize("family", [name for name in TINY if TINY[name].family.position_axes])
def test_positions_on_each_axis_change_the_logits(family: str, family_folder: Folders) -> None:
    setting = make_setting(family_folder(family), "float32")
    own = type(TINY[family].family).position_ids
    whole = logits(setting)
    for axis in range(3):

        def in_a_row(*given: Any, axis: int = axis) -> Tensor:
            found = own(*given)
            assert found is not None
            found[axis] = torch.arange(found.shape[1])
            return found

        with mock.patch.object(type(TINY[family].family), "position_ids", in_a_row):
            assert error(logits(setting), whole) > SEEN


def test_tiles_and_the_whole_of_an_lfm2_picture_are_each_encoded_in_their_own_size(
    family_folder: Folders,
) -> None:
    folder = str(family_folder("lfm2_vl"))
    pictures = load_encoder(ModelCheckpoint(folder)).vision_inputs(SAMPLES[0])
    high, wide = pictures["spatial_shapes"].T
    assert len(high) == 3 and len(set(zip(high.tolist(), wide.tolist(), strict=True))) == 2
    own = (high * wide // 4).tolist()  # two by two patches are a token
    half = load_edge_half(folder)
    features = half.features("image", pictures)
    assert len(features) == sum(own)
    for piece, part in enumerate(features.split(own)):
        changed = pictures["pixel_values"].clone()
        changed[piece] *= -1
        others = half.features("image", {**pictures, "pixel_values": changed}).split(own)
        same = [torch.equal(a, b) for a, b in zip(others, features.split(own), strict=True)]
        assert same == [place != piece for place in range(3)]
        assert error(others[piece], part) > SEEN


def heard(seconds: float, seed: int = 0) -> Sample:
    return replace(SAMPLES[1], sounds=(sound(noise(seed, seconds)),))


def test_qwen2_audio_does_not_hear_the_silence_after_a_sound(family_folder: Folders) -> None:
    folder = str(family_folder("qwen2_audio"))
    encoder, half = load_encoder(ModelCheckpoint(folder)), load_edge_half(folder)
    inputs = encoder.vision_inputs(heard(0.5))
    frames, mask = inputs["input_features"], inputs["feature_attention_mask"]
    assert 0 < int(mask.sum()) < mask.numel()
    features = half.features("audio", inputs)
    far = torch.arange(frames.shape[2]) > int(mask.sum()) + 4  # beyond what convolutions reach
    louder = half.features("audio", {**inputs, "input_features": frames.masked_fill(far, 9.0)})
    assert error(louder, features) < 1e-5
    open_ = half.features("audio", {**inputs, "feature_attention_mask": torch.ones_like(mask)})
    assert len(open_) == 25 and error(open_[: len(features)], features) > SEEN


def test_voxtral_hears_a_long_sound_in_pieces_each_by_itself(family_folder: Folders) -> None:
    folder = str(family_folder("voxtral"))
    encoder, half = load_encoder(ModelCheckpoint(folder)), load_edge_half(folder)
    assert [int((encoder.encode(heard(s)).ids == 24).sum()) for s in (0.4, 1.0, 2.1)] == [
        10,
        10,
        30,
    ]
    inputs = encoder.vision_inputs(heard(2.1))["input_features"]
    features = half.features("audio", {"input_features": inputs}).split(10)
    changed = inputs.clone()
    changed[1] *= -1
    others = half.features("audio", {"input_features": changed}).split(10)
    same = [error(a, b) < 1e-5 for a, b in zip(others, features, strict=True)]
    assert same == [True, False, True]


def test_gemma_4_hears_as_many_tokens_as_a_sound_is_long(family_folder: Folders) -> None:
    folder = str(family_folder("gemma4"))
    encoder, half = load_encoder(ModelCheckpoint(folder)), load_edge_half(folder)
    token, counts = half.placeholders["audio"][0], []
    for seconds in (0.2, 0.4, 0.8):
        counts.append(int((encoder.encode(heard(seconds)).ids == token).sum()))
        assert len(half.features("audio", encoder.vision_inputs(heard(seconds)))) == counts[-1]
    assert counts[0] < counts[1] < counts[2]
