"""Halves of two checkpoints are told apart, also where each side has no more than its own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fednano_flwr.exchange.errors import HostRefusedError
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models import fingerprint as module
from fednano_flwr.models.bundle import MANIFEST
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import EdgeHalf, load_edge_half
from fednano_flwr.models.fingerprint import same_checkpoint
from fednano_flwr.models.llm_half import LLMHalf
from fednano_flwr.models.split import write_bundle
from fednano_flwr.runs.results import other_model
from tests.models.test_layouts import newest
from tests.tiny import write_checkpoint

PARTS = {
    "projector": "multi_modal_projector.linear_2.weight",
    "encoder": "encoder.layers.0.mlp.fc1.weight",
    "language model": "layers.1.mlp.down_proj.weight",
    "head": "lm_head.weight",
}


def tuned(model: Path, folder: Path, part: str) -> Path:
    """A copy of which one tensor is changed a little everywhere, as by fine-tuning."""
    shutil.copytree(model, folder)
    changed = 0
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors:
            if name.endswith(part):
                tensors[name] = tensors[name] * 1.01
                changed += 1
        save_file(tensors, file, metadata={"format": "pt"})
    assert changed == 1
    return folder


def registered(half: EdgeHalf, host: LLMHalf) -> None:
    with serve(FrozenLLM(host)) as address, RemoteLLM(address, retry_seconds=0) as remote:
        remote.register(half.model, half.fingerprint, half.hidden_size, half.hub_id)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("split", [False, True], ids=["checkpoint", "bundle"])
def test_a_client_whose_checkpoint_differs_only_in_one_part_is_refused(
    part: str, split: bool, tiny_model: Path, llm_half: LLMHalf, tmp_path: Path
) -> None:
    other = tuned(tiny_model, tmp_path / "other", PARTS[part])
    if split:
        write_bundle(ModelCheckpoint(str(other)), tmp_path / "bundle")
        other = tmp_path / "bundle"
    half = load_edge_half(str(other))
    with pytest.raises(HostRefusedError) as refusal:
        registered(half, llm_half)
    assert half.fingerprint in str(refusal.value) and llm_half.fingerprint in str(refusal.value)
    environment = {"model": {"name": "m", "fingerprint": llm_half.fingerprint}}
    assert half.fingerprint in other_model(environment, "n", half.fingerprint, "")


@pytest.fixture(scope="module")
def fine_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with about one tensor a file."""
    return write_checkpoint(tmp_path_factory.mktemp("fine"), shard_size="1KB")


def half_of(model: Path, folder: Path, language: bool) -> str:
    """Fingerprint where only one half's files are, and the token embeddings."""
    checkpoint = ModelCheckpoint(str(model))
    shutil.copytree(model, folder)
    for name, (file, _) in checkpoint.files.items():
        own = name.startswith(module.LANGUAGE) == language
        if not own and name != checkpoint.token_embeddings:
            (folder / file).unlink(missing_ok=True)
    return ModelCheckpoint(str(folder)).fingerprint


def test_halves_are_compared_by_what_both_sides_know(fine_shards: Path, tmp_path: Path) -> None:
    whole = ModelCheckpoint(str(fine_shards)).fingerprint
    edge, llm = (half_of(fine_shards, tmp_path / str(own), own) for own in (False, True))
    assert whole.split("-") == [edge.split("-")[0], edge.split("-")[1], llm.split("-")[2]]
    assert edge.endswith("-") and "--" in llm
    for one, other in ((edge, llm), (edge, whole), (llm, whole), (whole.split("-")[0], whole)):
        assert same_checkpoint(one, other) and same_checkpoint(other, one)
    projector = tuned(fine_shards, tmp_path / "projector", PARTS["projector"])
    head = tuned(fine_shards, tmp_path / "head", PARTS["head"])
    assert not same_checkpoint(half_of(projector, tmp_path / "p", False), whole)
    assert not same_checkpoint(half_of(head, tmp_path / "h", True), whole)
    # This client's half is the same, whatever the language model is that it came with.
    assert same_checkpoint(half_of(head, tmp_path / "h2", False), whole)


def test_a_copy_in_other_files_under_other_names_has_the_same_fingerprint(
    tiny_model: Path, tmp_path: Path
) -> None:
    whole = ModelCheckpoint(str(tiny_model))
    tensors = {key: load_file(tiny_model / file)[key] for file, key in whole.files.values()}
    for size, names in (
        ("one", [sorted(tensors)]),
        ("two", [sorted(tensors)[:9], sorted(tensors)[9:]]),
    ):
        ignored = shutil.ignore_patterns("*.safetensors*")
        folder = Path(shutil.copytree(tiny_model, tmp_path / size, ignore=ignored))
        weight_map = {}
        for number, part in enumerate(names):
            file = "model.safetensors" if size == "one" else f"model-{number}.safetensors"
            named = {newest(name) if size == "one" else name: tensors[name] for name in part}
            save_file(named, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(named, file)
        if size == "two":
            index = {"metadata": {}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert ModelCheckpoint(str(folder)).fingerprint == whole.fingerprint


def test_no_more_than_samples_of_large_tensors_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": torch.randn(1000, 1000), "b": torch.randn(3)}, tmp_path / "m.safetensors")
    read, healthy = [], os.pread

    def pread(*arguments: Any) -> bytes:
        read.append(healthy(*arguments))
        return read[-1]

    monkeypatch.setattr(os, "pread", pread)
    files = {f"lm_head.{name}": ("m.safetensors", name) for name in "ab"}
    _, llm = module.digests_of_halves(tmp_path, files)
    assert llm and sum(map(len, read)) == module.PIECES * module.PIECE_BYTES + 3 * 4


@pytest.mark.parametrize("size", [0, 7, 20, -1])
def test_a_damaged_file_of_the_other_half_leaves_that_half_unknown(
    size: int, fine_shards: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(fine_shards, tmp_path / "model"))
    checkpoint = ModelCheckpoint(str(folder))
    file = folder / checkpoint.files["lm_head.weight"][0]
    file.write_bytes(file.read_bytes()[:size])
    _, edge, llm = ModelCheckpoint(str(folder)).fingerprint.split("-")
    assert edge and not llm


def test_a_bundle_of_an_earlier_version_is_compared_by_what_it_recorded(
    tiny_model: Path, llm_half: LLMHalf, tmp_path: Path
) -> None:
    write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "bundle")
    file = tmp_path / "bundle" / MANIFEST
    manifest = json.loads(file.read_text())
    assert manifest["fingerprint"] == llm_half.fingerprint
    manifest["fingerprint"] = manifest["fingerprint"].partition("-")[0]
    file.write_text(json.dumps(manifest))
    registered(load_edge_half(str(tmp_path / "bundle")), llm_half)
