"""A family that no installed package brings; tests/test_extending.py has one that is brought."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoProcessor, VipLlavaConfig, VipLlavaForConditionalGeneration

from fednano_flwr.config import ConfigError
from fednano_flwr.models import families
from fednano_flwr.models.source import check_model


@pytest.fixture
def vipllava(tiny_model: Path, tmp_path: Path) -> Path:
    """A random checkpoint with the tiny LLaVA's parts and processor."""
    tiny = AutoConfig.from_pretrained(tiny_model)
    config = VipLlavaConfig(
        vision_config=tiny.vision_config,
        text_config=tiny.text_config,
        image_token_index=tiny.image_token_id,
        vision_feature_layers=[-2, -1],
    )
    torch.manual_seed(0)
    VipLlavaForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    AutoProcessor.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_without_the_package_the_family_is_refused_and_two_of_a_name_are(vipllava: Path) -> None:
    with pytest.raises(ConfigError, match="its family is vipllava"):
        check_model(str(vipllava))
    with pytest.raises(ValueError, match="llava"):
        families.register(families.Family("llava", "AnotherForConditionalGeneration"))
