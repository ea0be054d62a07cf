"""A family of one's own: a `Family` that an installed package names as an entry point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoProcessor, VipLlavaConfig, VipLlavaForConditionalGeneration

from fednano_flwr.adapters.site import build_adapters
from fednano_flwr.config import Adapter, ConfigError
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import load_encoder, next_token_labels, teacher_forced
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models import families
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.models.source import check_model
from tests.models.test_families import SAMPLES, error
from tests.models.unsplit import Unsplit

MODULE = """
from fednano_flwr.models.families import Connector, Family

FAMILY = Family(
    "vipllava",
    "VipLlavaForConditionalGeneration",
    other_processors=("LlavaProcessor",),
    picture_keys=("patch_size", "num_additional_image_tokens"),
    connector=Connector("multi_modal_projector.linear_2"),
)
"""


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


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that brings the family, as pip leaves it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "vipllava_family.py").write_text(MODULE)
    info = tmp_path / "site" / "vipllava_family-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vipllava-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{families.ENTRY_POINTS}]\nvipllava = vipllava_family:FAMILY\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    families._register_installed.cache_clear()
    yield
    families.FAMILIES.pop("vipllava", None)
    families._register_installed.cache_clear()


def test_a_family_of_another_package_gives_the_whole_models_logits(
    vipllava: Path, installed: None
) -> None:
    edge_half = load_edge_half(str(vipllava))
    encoder = load_encoder(edge_half.checkpoint)
    adapters = build_adapters(48, Adapter(4, 8.0, 0.0, "image,text"), seed=0)
    edge = NanoEdge(edge_half, edge_half.token_table(), adapters, encoder)
    questions = [encoder.encode(sample) for sample in SAMPLES[:3]]
    labels = next_token_labels(questions, IGNORE)
    rows = (labels != IGNORE).nonzero().squeeze(1)
    llm = LowRankExchange(FrozenLLM(load_llm_half(str(vipllava))), "server")
    inputs = edge(questions, teacher_forced(questions))
    got = llm.score(inputs, rows, torch.arange(64))
    expected = Unsplit(vipllava, "vipllava", "float32").logits(
        questions, encoder, adapters, "right"
    )
    assert error(got, expected.detach()) < 1e-6
    assert llm.loss(inputs, labels).item() == pytest.approx(
        F.cross_entropy(expected, labels[labels != IGNORE]).item(), rel=1e-6
    )


def test_without_the_package_the_family_is_refused_and_two_of_a_name_are(vipllava: Path) -> None:
    with pytest.raises(ConfigError, match="its family is vipllava"):
        check_model(str(vipllava))
    with pytest.raises(ValueError, match="llava"):
        families.register(families.Family("llava", "AnotherForConditionalGeneration"))
