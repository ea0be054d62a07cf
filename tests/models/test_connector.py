"""The connector at the host: features of what it reads, to the same bits, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fednano_flwr.adapters.site import train_only
from fednano_flwr.config import ConfigError, Model
from fednano_flwr.edge.client import EXCHANGES
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import next_token_labels, teacher_forced
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.connector import HostConnectors, check_connectors
from fednano_flwr.models.edge_half import load_edge_half
from tests import families, opened
from tests.families import TINY
from tests.models.test_families import gradients, make_setting, samples_of

WHOLE = {
    *("aya_vision", "blip-2", "cohere2_vision", "fast_vlm", "idefics3", "instructblip"),
    *("internvl", "llava", "paligemma", "qwen2_5_vl", "qwen2_vl", "qwen3_5"),
    *(
        "smolvlm",
        "voxtral",
        "glm4v",
        "glm46v",
        "gemma4",
        "gemma4-large",
        "lfm2_vl",
        "perception_lm",
    ),
}
"""Whose features are the connector's output alone."""


@pytest.mark.parametrize("family", TINY)
def test_the_host_makes_a_familys_features_to_the_bit_where_they_are_the_connectors_output(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    folder = str(family_folder(family))
    half = load_edge_half(folder)
    encoder = load_encoder(half.checkpoint)
    with opened.recorded() as read_here:
        host = HostConnectors(ModelCheckpoint(folder), torch.device("cpu"), torch.float32)
    assert host.digest == half.connector_digest
    found = set()
    for sample in samples_of(encoder):
        for site in sample.media:
            rows, read = half.features_and_read(site, encoder.vision_inputs(sample))
            assert torch.equal(rows, half.features(site, encoder.vision_inputs(sample)))
            if read is not None:
                found.add(family)
                assert torch.equal(host.features(site, read), rows)
    assert (family in found) == (family in WHOLE)
    assert not read_here.inside("language_model", "lm_head")
    assert len(read_here) <= 12


def test_another_version_of_the_connector_has_another_digest(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, device = str(family_folder("llava")), torch.device("cpu")
    other = str(families.write("llava", tmp_path / "other", seed=1))
    digests = {
        HostConnectors(ModelCheckpoint(where), device, dtype).digest
        for where in (folder, other)
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(digests) == 4


def test_what_no_connector_reads_is_refused(family_folder: Callable[[str], Path]) -> None:
    checkpoint = ModelCheckpoint(str(family_folder("llava")))
    host = HostConnectors(checkpoint, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match=r"\(1, 2, 3\)"):
        host.features("image", torch.ones(1, 2, 3))
    with pytest.raises(ValueError, match="'audio'"):
        host.features("audio", torch.ones(1, 2, 3))


def test_a_small_input_becomes_no_large_one(family_folder: Callable[[str], Path]) -> None:
    """A norm's weight would be added as an axis: of Qwen2.5-VL, 1,280 times the memory."""
    checkpoint = ModelCheckpoint(str(family_folder("qwen2_5_vl")))
    host = HostConnectors(checkpoint, torch.device("cpu"), torch.float32)
    assert host.features("image", torch.ones(16, 32)).shape == (4, 48)
    with pytest.raises(ValueError, match=r"\(16, 1\): rows of one number"):
        host.features("image", torch.ones(16, 1))


def test_a_model_whose_connector_is_not_known_is_refused_before_it_is_loaded(
    family_folder: Callable[[str], Path],
) -> None:
    assert "image" in check_connectors(Model(str(family_folder("llava"))))
    with pytest.raises(ConfigError, match=r"exchange\.connector-at.*gemma3"):
        check_connectors(Model(str(family_folder("gemma3"))))


@pytest.mark.parametrize("labels_at", ["server", "client"])
@pytest.mark.parametrize("family", families.every())
def test_a_family_whose_rounds_train_one_factor_has_the_same_gradients_with_the_least_sent(
    family: str, labels_at: str, family_folder: Callable[[str], Path]
) -> None:
    """Named factors, and what connectors read: the bits of a step that sends z, B and features."""
    setting = make_setting(family_folder(family), "float32")
    setting.edge.adapters.float()
    connectors = HostConnectors(setting.edge.frozen.checkpoint, torch.device("cpu"), torch.float32)
    edge = NanoEdge(
        setting.edge.frozen,
        setting.edge.tokens,
        setting.edge.adapters,
        setting.encoder,
        names_factors=True,
        connector_at_host=True,
    )
    host = FrozenLLM(setting.host._half, connectors=connectors)
    chosen, labels = setting.questions, next_token_labels(setting.questions, IGNORE)
    for factor in "AB":
        train_only(edge.adapters, factor)
        found = []
        for own, service in ((setting.edge, setting.host), (edge, host)):
            batch = own(chosen, teacher_forced(chosen))
            assert bool(batch.named) == (own is edge)
            loss = EXCHANGES["lowrank"](service, labels_at).loss(batch, labels)
            loss.backward()
            found.append([loss.detach(), *(g for g in gradients(setting) if g is not None)])
        assert len(found[0]) == len(found[1]) > 2
        assert all(map(torch.equal, *found))
