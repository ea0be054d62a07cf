"""Sizes from the config alone are those of the checkpoint and of what each side loads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fednano_flwr.config import ConfigError
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.models import skeleton
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half, placeholders
from fednano_flwr.models.families import of
from fednano_flwr.models.llm_half import HeadAtRows, load_llm_half
from fednano_flwr.models.size import Parts, Setting, Sizes, count, read_size_config
from fednano_flwr.models.source import read_config
from fednano_flwr.models.split import write_bundle
from tests.families import every, write

FIXED_PICTURES = {"llava", "paligemma", "gemma3", "instructblip", "blip-2"}
PARTS = Parts(
    encoder=100,
    encoder_used=80,
    layers_unused=1,
    connector=10,
    vocabulary=50,
    hidden_size=4,
    language_model=3000,
    head=200,
    tied=False,
    picture_tokens=6,
    sites=("image", "text"),
)
SETTING = Setting(rank=2, rows=5, dtype_bytes=2, tokens=16, batch_size=8, file_bytes=7)
SIZES = Sizes(PARTS, SETTING)


@pytest.fixture(params=every())
def saved(request: pytest.FixtureRequest, family_folder: Callable[[str], Path]) -> Path:
    """A tiny checkpoint of each family."""
    return family_folder(request.param)


def numel(module: torch.nn.Module) -> int:
    return sum({id(t): t.numel() for t in skeleton.stored(module).values()}.values())


def counted(folder: Path) -> Parts:
    return count(read_size_config(str(folder)).config)


def test_the_model_is_as_large_as_its_saved_checkpoint(saved: Path) -> None:
    numbers = 0
    for path in saved.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(key)
                numbers += tensor.numel() * tensor.is_floating_point()  # the rest are counts
    assert counted(saved).model == numbers


def test_each_side_is_as_large_as_what_it_loads(saved: Path) -> None:
    parts, edge, host = counted(saved), load_edge_half(str(saved)), load_llm_half(str(saved))
    assert parts.encoder_used + parts.connector == numel(edge)
    assert parts.token_embeddings == edge.token_table().weight.numel()
    assert parts.server == numel(host)
    assert parts.tied == ("lm_head.weight" not in ModelCheckpoint(str(saved)).files)
    assert (parts.head == 0) == parts.tied
    heads = [module.head for module in host.modules() if isinstance(module, HeadAtRows)]
    head = sum(p.numel() for module in heads for p in module.parameters())
    assert parts.head == (0 if parts.tied else head)


def test_the_encoder_is_what_checkpoints_call_so_and_the_connector_the_rest(saved: Path) -> None:
    checkpoint, parts = ModelCheckpoint(str(saved)), counted(saved)
    encoder = connector = 0
    for name, tensor in checkpoint.read(checkpoint.files):
        if name.startswith(("language_model.", "lm_head.")) or not tensor.is_floating_point():
            continue
        of_encoder = name.startswith(("vision_tower.", "vision_model.", "visual.", "audio_tower."))
        if of_encoder and "merger" not in name:
            encoder += tensor.numel()
        else:
            connector += tensor.numel()
    assert (parts.encoder, parts.connector) == (encoder, connector)


def test_a_clients_bytes_are_those_of_its_bundle(saved: Path, tmp_path: Path) -> None:
    ids = [1, 4, 5, 9]
    bundle = write_bundle(ModelCheckpoint(str(saved)), tmp_path / "bundle", ids)
    parts = counted(saved)
    setting = Setting(rank=1, rows=len(ids), dtype_bytes=4, tokens=1, batch_size=1)
    stored = 0
    with safe_open(bundle.folder / "model.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            stored += file.get_tensor(key).nbytes
    sizes = Sizes(parts, setting)
    assert sizes.client_bytes - sizes.adapter_bytes == stored


def test_a_picture_takes_as_many_tokens_as_its_prompt_has_placeholders(
    saved: Path, tmp_path: Path
) -> None:
    checkpoint, parts = ModelCheckpoint(str(saved)), counted(saved)
    assert (parts.picture_tokens is None) == (checkpoint.config.model_type not in FIXED_PICTURES)
    if parts.picture_tokens is None:
        return
    Image.new("RGB", (24, 24)).save(tmp_path / "one.png")
    sample = Sample(
        "s", "what is it", "g", "g", ("w1", "w2"), answer=0, images=(Picture(tmp_path / "one.png"),)
    )
    ids = load_encoder(checkpoint).encode(sample).ids
    assert int((ids == placeholders(checkpoint)["image"][0]).sum()) == parts.picture_tokens


def test_llava_7b_takes_a_client_less_than_5_percent_with_everything_counted() -> None:
    parts = count(read_size_config("llava-1.5-7b").config)
    sizes = Sizes(parts, Setting(rank=64, rows=5_481, dtype_bytes=2, tokens=704, batch_size=8))
    assert parts.layers_unused == 1
    assert sizes.adapter_parameters == 1_048_576
    assert sizes.client_bytes == 2 * (290_911_232 + 20_979_712) + 5_481 * (8192 + 8) + 4 * 2**20
    assert sizes.client_bytes / sizes.model_bytes < 0.05
    assert sizes.client_bytes_without_options / sizes.model_bytes > 0.06
    most = sizes.most_rows(0.05)
    assert most is not None
    for rows, within in ((most, True), (most + 1, False)):
        changed = replace(sizes, setting=replace(sizes.setting, rows=rows))
        assert (changed.client_bytes <= 0.05 * sizes.model_bytes) is within


def test_counts_worked_out_by_hand() -> None:
    assert PARTS.model == 100 + 10 + 200 + 3000 + 200
    assert SIZES.model_bytes == 2 * 3510
    assert SIZES.adapter_parameters == 2 * 2 * 2 * 4
    assert SIZES.client_bytes == 2 * (80 + 10 + 5 * 4) + 5 * 8 + 4 * 32 + 7
    assert SIZES.client_bytes_without_options == 2 * (100 + 10 + 200) + 4 * 32 + 7
    assert sum(item.bytes for item in SIZES.training_memory()) == 3 * 4 * 32


def test_step_traffic_worked_out_by_hand() -> None:
    plain, low = SIZES.embeddings_step(), SIZES.lowrank_step()
    assert plain.up == plain.down == 16 * 4 * 2
    assert low.up == low.down == (16 * 2 + 2 * 4 * 2 / 8) * 2
    assert (plain.once, low.once) == (0, 6 * 4 * 2)


def test_features_for_deeper_layers_go_up_with_a_picture_or_with_each_step() -> None:
    sizes = Sizes(replace(PARTS, deep_layers=3), replace(SETTING, picture_tokens=6))
    plain, low = sizes.embeddings_step(), sizes.lowrank_step()
    assert (plain.up, plain.down) == ((16 + 3 * 6) * 4 * 2, 16 * 4 * 2)
    assert low.up == SIZES.lowrank_step().up and low.once == 6 * 4 * 4 * 2


def test_a_bundle_of_all_rows_needs_no_ids_of_them() -> None:
    whole = replace(SIZES, setting=replace(SETTING, rows=50))
    assert {item.name: item.bytes for item in whole.client()}["ids of the kept rows"] == 0


def test_where_the_share_is_never_or_always_kept_there_is_no_row_at_which_it_ends() -> None:
    assert SIZES.most_rows(0.01) is None
    assert SIZES.most_rows(1.0) == 50


def test_a_config_file_and_its_folder_are_the_same_model(tmp_path: Path) -> None:
    folder = write("llava", tmp_path / "model")
    found = read_size_config(str(folder / "config.json"))
    assert count(found.config) == counted(folder)
    assert found.folder is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"model_type": "idefics"}',
        '{"model_type": "llava", "text_config": 7}',
        '{"model_type": "llava", "text_config": {"model_type": "nonsense"}}',
        '{"model_type": "llava", "text_config": {"model_type": "llama", "hidden_size": "x"}}',
    ],
)
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(str(file), file)


def test_a_picture_of_llava_1_5_is_576_features_counted_by_its_own_code() -> None:
    config = read_size_config("llava-1.5-7b").config
    pictures = {"pixel_values": torch.zeros(2, 3, 336, 336)}
    assert (
        skeleton.count_features(of(config).build(config), "image", pictures)
        == 2 * count(config).picture_tokens
        == 1152
    )
