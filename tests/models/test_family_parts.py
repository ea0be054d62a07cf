"""What is particular of a family takes part in its tiny checkpoint: without it, logits change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.models.checkpoint import ModelCheckpoint
from tests.models.test_families import SAMPLES, error
from tests.models.unsplit import Unsplit


def scaled_by_position(model: Any) -> None:
    model.config.text_config.rope_parameters["llama_4_scaling_beta"] = 0.0


def merged_patches(model: Any) -> None:
    """Only one of four neighbours is read; `unfold` lays them out within each channel."""
    weight = model.model.multi_modal_projector.patch_merger.merging_layer.weight
    weight.view(len(weight), -1, 4)[..., 1:] = 0


def shuffled_pixels(model: Any) -> None:
    """Only one of four neighbours is read."""
    weight = model.model.connector.modality_projection.proj.weight
    weight[:, weight.shape[1] // 4 :] = 0


def windows(model: Any) -> None:
    model.config.text_config.sliding_window = 512


def gate(model: Any) -> None:
    """What the gate is made of: the second half of the first layer's output."""
    layer = model.model.multi_modal_projector.linear_1
    layer.weight[len(layer.weight) // 2 :] = 0


def line_ends(model: Any) -> None:
    model.model.image_newline.zero_()


def marks_by_the_visual_table(model: Any) -> None:
    """They are embedded as text then."""
    model.model.visual_indicator_token_ids = ()


LEFT_OUT: list[tuple[str, Callable[[Any], None]]] = [
    ("mistral3", scaled_by_position),
    ("mistral3", merged_patches),
    ("idefics3", shuffled_pixels),
    ("aya_vision", windows),
    ("aya_vision", gate),
    ("cohere2_vision", windows),
    ("cohere2_vision", gate),
    ("llava_next_video", line_ends),
    ("ovis2", marks_by_the_visual_table),
]


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "part"), LEFT_OUT, ids=[f"{family}: {part.__name__}" for family, part in LEFT_OUT]
)
def test_without_what_is_particular_of_a_family_its_logits_are_others(
    family: str, part: Callable[[Any], None], family_folder: Callable[[str], Path]
) -> None:
    folder = family_folder(family)
    encoder = load_encoder(ModelCheckpoint(str(folder)))
    questions = [encoder.encode(sample) for sample in SAMPLES]
    whole = Unsplit(folder, family, "float32")
    expected = whole.logits(questions, encoder, None, "right")
    part(whole.model)
    assert error(whole.logits(questions, encoder, None, "right"), expected) > 1e-3
