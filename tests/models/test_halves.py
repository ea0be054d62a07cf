"""Each side reads its own half, whichever way the checkpoint was written."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from fednano_flwr.cli.split import split
from fednano_flwr.config import ConfigError, Model
from fednano_flwr.models.bundle import check_half
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import EdgeHalf, load_edge_half
from fednano_flwr.models.llm_half import LLMHalf, load_llm_half
from fednano_flwr.models.size import read_size_config
from fednano_flwr.models.source import check_model, read_config
from tests.tiny import write_checkpoint

EMBEDDINGS = "language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def fine_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with about one tensor a file."""
    return write_checkpoint(tmp_path_factory.mktemp("fine"), shard_size="1KB")


def without(model: Path, target: Path, parts: tuple[str, ...], keep: str = EMBEDDINGS) -> int:
    """Copy a checkpoint without the files of some parts; returns how many are gone."""
    shutil.copytree(model, target)
    files = ModelCheckpoint(str(model)).files
    doomed = {file for key, (file, _) in files.items() if key.startswith(parts) and key != keep}
    doomed -= {file for key, (file, _) in files.items() if not key.startswith(parts) or key == keep}
    for file in doomed:
        (target / file).unlink()
    return len(doomed)


def logits(half: LLMHalf, embeds: torch.Tensor) -> torch.Tensor:
    """Logits (T, vocabulary) after every token of one sample (1, T, d)."""
    count = embeds.shape[1]
    return half.logits(embeds, torch.arange(count), torch.ones(1, count).bool())


def test_the_edge_half_loads_where_the_llm_files_are_gone(
    fine_shards: Path, tmp_path: Path
) -> None:
    assert without(fine_shards, tmp_path / "edge", ("language_model", "lm_head")) > 15
    half = load_edge_half(str(tmp_path / "edge"))
    assert half.features("image", {"pixel_values": torch.zeros(2, 3, 24, 24)}).shape == (18, 48)
    assert half.token_table()(torch.tensor([1, 5])).shape == (2, 48)
    with pytest.raises(ConfigError, match="is missing"):
        load_llm_half(str(tmp_path / "edge"))


def test_the_llm_half_loads_where_the_vision_files_are_gone(
    fine_shards: Path, tmp_path: Path
) -> None:
    vision = ("vision_tower", "multi_modal_projector")
    assert without(fine_shards, tmp_path / "llm", vision) >= 20
    half = load_llm_half(str(tmp_path / "llm"))
    assert logits(half, torch.zeros(1, 3, 48)).shape == (3, 64)
    with pytest.raises(ConfigError, match="is missing"):
        load_edge_half(str(tmp_path / "llm"))


def test_halves_hold_each_parameter_once_but_the_token_embeddings(
    tiny_model: Path, edge_half: EdgeHalf, llm_half: LLMHalf
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for file in tiny_model.glob("*.safetensors"):
        tensors |= load_file(file)
    whole = sum(tensor.numel() for tensor in tensors.values())
    parts = (edge_half, edge_half.token_table(), llm_half)
    held = sum(p.numel() for part in parts for p in part.parameters())
    unused = sum(t.numel() for key, t in tensors.items() if "encoder.layers.1." in key)
    assert unused > 0  # LLaVA takes the second-last layer's output
    assert held == whole - unused + 64 * 48
    assert not any(p.requires_grad for part in parts for p in part.parameters())
    assert not any(t.is_meta for part in parts for t in part.state_dict().values())


@pytest.mark.parametrize(
    ("family", "hint"),
    [
        ("ovis", "-hf"),
        ("internvl_chat", "-hf"),
        ("llava_mistral", "-hf"),
        ("llava_qwen2", "FastVLM"),
        ("mllama", "cross-attention"),
        ("qwen2_5_omni", "qwen2_5_vl"),
        ("qwen3_5_moe", "experts.*qwen3_5"),
        ("gemma3_text", "no pictures"),
    ],
)
def test_a_family_that_is_not_cut_is_refused_with_its_reason_or_what_to_take(
    tmp_path: Path, family: str, hint: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ConfigError, match=rf"its family is {family};.*llava.*{hint}"):
        check_model(str(tmp_path))


AUTHORS_LLAVA = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "vocab_size": 32000,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
}


@pytest.mark.parametrize("architectures", [["LlavaLlamaForCausalLM"], None])
def test_a_config_in_another_format_is_refused_by_all_who_read_it(
    tmp_path: Path, architectures: list[str] | None
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(AUTHORS_LLAVA | {"architectures": architectures}))
    readers = (
        check_model,  # `fednano run` and `compare`
        read_size_config,
        lambda name: split(name, tmp_path / "out", shard=None, dtype=None),
        lambda name: check_half(Model(name), "llm"),
        lambda name: check_half(Model(name), "edge"),
        load_llm_half,
    )
    for read in readers:
        with pytest.raises(ConfigError, match=r"config\.json.*llava-hf/llava-1\.5-13b-hf"):
            read(str(model))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["LlavaModel"]}, "LlavaModel"),
        ({"vision_config": None}, "vision_config missing"),
        ({"text_config": None}, "text_config missing"),
    ],
)
def test_a_config_that_transformers_would_fill_with_its_own_defaults_is_refused(
    tiny_model: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    config = json.loads((tiny_model / "config.json").read_text()) | change
    file = tmp_path / "config.json"
    file.write_text(json.dumps({key: value for key, value in config.items() if value}))
    with pytest.raises(ConfigError, match=rf"config\.json.*{says}"):
        read_config(str(tmp_path), file)


@pytest.mark.parametrize("family", ["InstructBlipConfig", "Blip2Config"])
def test_an_encoder_decoder_language_model_is_refused(tmp_path: Path, family: str) -> None:
    config = getattr(transformers, family)(text_config=transformers.T5Config(d_model=32))
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"\(t5\) is an encoder-decoder.*Vicuna or OPT"):
        check_model(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("AyaVisionConfig", transformers.Cohere2MoeConfig),
        ("Cohere2VisionConfig", transformers.Cohere2MoeConfig),
        ("InternVLConfig", transformers.Qwen3MoeConfig),
    ],
)
def test_experts_whose_weights_would_have_to_be_joined_are_refused(
    tmp_path: Path, family: str, text: Any
) -> None:
    getattr(transformers, family)(text_config=text()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"model {text.model_type}\. Its experts.*not done here"):
        check_model(str(tmp_path))


@pytest.mark.parametrize("family", ["perception_lm", "fast_vlm"])
@pytest.mark.parametrize("chosen", ["", "auto"])
def test_without_the_package_of_its_encoder_a_family_is_refused_by_name(
    family: str, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    parts = {"text_config": {}, "vision_config": {"model_type": "timm_wrapper"}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **parts}))
    with pytest.raises(ConfigError, match=rf"family is {family}, .*timm.*pip install .*\[timm\]"):
        read_config("model", tmp_path, chosen)


def test_features_that_would_be_drawn_at_random_are_refused(tmp_path: Path) -> None:
    vision = transformers.Ovis2VisionConfig(tokenize_function="gumbel_argmax")
    transformers.Ovis2Config(vision_config=vision).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"tokenize_function is gumbel_argmax"):
        check_model(str(tmp_path))


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        check_model(str(tmp_path))


def test_a_missing_model_is_refused_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="neither a folder here nor a model"):
        check_model("nobody/no-such-model")
