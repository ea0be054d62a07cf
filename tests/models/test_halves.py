"""Each side reads its own half, whichever way the checkpoint was written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

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


def features(half: EdgeHalf, pixels: torch.Tensor) -> torch.Tensor:
    return half.image_features({"pixel_values": pixels})


def test_the_edge_half_loads_where_the_llm_files_are_gone(
    fine_shards: Path, tmp_path: Path
) -> None:
    assert without(fine_shards, tmp_path / "edge", ("language_model", "lm_head")) > 15
    half = load_edge_half(str(tmp_path / "edge"))
    assert features(half, torch.zeros(2, 3, 24, 24)).shape == (18, 48)
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


@pytest.mark.parametrize("style", ["hub", "current"])
def test_names_of_older_and_newer_checkpoints_give_the_same_halves(
    tiny_model: Path, edge_half: EdgeHalf, llm_half: LLMHalf, tmp_path: Path, style: str
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for key, (file, name) in ModelCheckpoint(str(tiny_model)).files.items():
        tensors[key] = load_file(tiny_model / file)[name]
    if style == "hub":
        renamed = {
            key.replace("language_model.", "language_model.model.")
            .replace("vision_tower.", "vision_tower.vision_model.")
            .replace("lm_head", "language_model.lm_head"): value
            for key, value in tensors.items()
        }
        assert "vision_tower.vision_model.post_layernorm.bias" in renamed
        assert "language_model.model.norm.weight" in renamed
    else:
        renamed = {
            key if key.startswith("lm_head") else f"model.{key}": value
            for key, value in tensors.items()
        }
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    pixels = torch.randn(1, 3, 24, 24)
    again = load_edge_half(str(folder))
    assert torch.equal(features(again, pixels), features(edge_half, pixels))
    embeds = torch.randn(1, 4, 48)
    host = load_llm_half(str(folder))
    assert torch.equal(logits(host, embeds), logits(llm_half, embeds))
    assert again.fingerprint == host.fingerprint == llm_half.fingerprint


def test_a_tied_head_is_the_token_embeddings(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {
        key: load_file(tiny_model / file)[name]
        for key, (file, name) in ModelCheckpoint(str(tiny_model)).files.items()
        if key != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    (head,) = [
        m for name, m in load_llm_half(str(folder)).named_modules() if name.endswith("head.head")
    ]
    hidden = torch.randn(2, 48)
    assert torch.equal(head(hidden), hidden @ tensors[EMBEDDINGS].T)


def test_another_model_has_another_fingerprint(tmp_path: Path, llm_half: LLMHalf) -> None:
    other = write_checkpoint(tmp_path / "other", seed=1)
    assert ModelCheckpoint(str(other)).fingerprint != llm_half.fingerprint


def test_an_unknown_family_is_refused_with_those_that_work(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "idefics3"}')
    with pytest.raises(ConfigError, match=r"its family is idefics3.*llava"):
        check_model(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "hint"),
    [
        ("idefics3", "SmolVLM2"),
        ("internvl_chat", "-hf"),
        ("llava_mistral", "-hf"),
        ("mllama", "layers of its own"),
        ("qwen2_vl", "qwen2_5_vl"),
        ("gemma3_text", "no pictures"),
    ],
)
def test_a_family_that_is_not_cut_is_refused_with_its_reason_or_what_to_take(
    tmp_path: Path, family: str, hint: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ConfigError, match=rf"its family is {family};.*{hint}"):
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


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        check_model(str(tmp_path))


def test_a_missing_model_is_refused_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="neither a folder here nor a model"):
        check_model("nobody/no-such-model")


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    some = {EMBEDDINGS: torch.zeros(64, 48), "lm_head.weight": torch.zeros(64, 48)}
    save_file(some, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"has no tensor language_model\.layers\.0"):
        load_llm_half(str(folder))
