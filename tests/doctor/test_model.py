"""Checkpoints and bundles that lack something."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from fednano_flwr.cli.split import split
from fednano_flwr.config import ConfigError, Model
from fednano_flwr.doctor.model import check_edge_path, check_half, parts_of, rows_of
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.split import write_bundle
from fednano_flwr.models.weights import INDEX
from tests.doctor.found import levels, only, well
from tests.tiny import write_checkpoint

KEY = "the node config's edge-path"
NOWHERE = "nobody/no-such-model"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def files_of(model: Path, part: str) -> set[str]:
    weights = json.loads((model / INDEX).read_text())["weight_map"]
    return {file for name, file in weights.items() if part in name}


def test_a_whole_checkpoint_is_well_for_both_sides(model: Path) -> None:
    assert well(check_half(str(model), "llm")) and well(check_half(str(model), "edge"))
    assert ModelCheckpoint(str(model)).fingerprint in only(check_half(str(model), "llm"), "ok").what


def test_a_missing_file_of_the_language_model_is_named(model: Path) -> None:
    file = min(files_of(model, "language_model.model.layers") - files_of(model, "embed_tokens"))
    (model / file).unlink()
    found = only(check_half(str(model), "llm"), "problem")
    assert file in found.what and "1 of the" in found.what and str(model) in found.what


def test_a_side_does_not_miss_the_other_sides_files(model: Path) -> None:
    language = files_of(model, "language_model") | files_of(model, "lm_head")
    for file in files_of(model, "vision_tower") - language:
        (model / file).unlink()
    assert well(check_half(str(model), "llm"))
    assert "client's half" in only(check_half(str(model), "edge"), "problem").what


def test_a_file_that_was_cut_off_is_damaged(model: Path) -> None:
    file = model / max(files_of(model, "language_model.model.layers"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=file.name):
        check_half(str(model), "llm")


def test_a_file_of_another_checkpoint_lacks_tensors(model: Path) -> None:
    first, second = sorted(files_of(model, "language_model.model.layers"))[:2]
    shutil.copyfile(model / first, model / second)
    with pytest.raises(ConfigError, match=f"{INDEX}.*({first}|{second})"):
        check_half(str(model), "llm")


def test_a_model_that_is_nowhere_is_downloaded_or_not_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "a run downloads it" in only(check_half(NOWHERE, "llm"), "warning").what
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in only(check_half(NOWHERE, "llm"), "problem").what
    with pytest.raises(ConfigError, match=r"no folder.*set it to a model's folder"):
        check_half(str(tmp_path / "nothing"), "llm")


def test_sizes_are_counted_where_the_config_is_here(model: Path) -> None:
    parts = parts_of(str(model))
    assert parts is not None and parts.vocabulary == 64
    assert parts_of(NOWHERE) is None and parts_of("/no/such/folder") is None


def test_a_whole_bundle_of_the_runs_model_is_well(
    bundle: Path, tiny_model: Path, shard_folder: Path
) -> None:
    findings = check_edge_path(KEY, str(bundle), Model(str(tiny_model)), shard_folder)
    assert well(findings) and len(findings) == 4
    assert rows_of(str(bundle)) == 64


def test_a_changed_file_of_a_bundle_is_named(bundle: Path) -> None:
    weights = bundle / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors is not the file that was written"):
        check_edge_path(KEY, str(bundle), None)


def test_a_folder_that_is_no_bundle_is_refused_with_its_key(tiny_model: Path) -> None:
    for path, says in ((str(tiny_model), "has no edge_bundle.json"), ("/nowhere", "is no folder")):
        with pytest.raises(ConfigError, match=f"{KEY} = .*{says}"):
            check_edge_path(KEY, path, None)


def test_a_bundle_of_another_model_will_be_refused_by_the_service(
    bundle: Path, tmp_path: Path
) -> None:
    other = write_checkpoint(tmp_path / "other", seed=1)
    found = only(check_edge_path(KEY, str(bundle), Model(str(other))), "problem")
    manifest = json.loads((bundle / "edge_bundle.json").read_text())
    for fingerprint in (ModelCheckpoint(str(other)).fingerprint, manifest["fingerprint"]):
        assert fingerprint in found.what
    assert "will refuse" in found.what


def test_a_bundle_for_another_shard_lacks_tokens(
    tiny_model: Path, tmp_path: Path, shard_folder: Path
) -> None:
    few = tmp_path / "few"
    write_bundle(ModelCheckpoint(str(tiny_model)), few, ids=[0, 1, 2, 3])
    findings = check_edge_path(KEY, str(few), None, shard_folder)
    assert levels(findings) == ["ok", "ok", "problem"]
    assert "lacks the embeddings" in findings[2].what and rows_of(str(few)) == 4


def test_a_bundle_for_this_shard_has_its_tokens(
    tiny_model: Path, tmp_path: Path, shard_folder: Path
) -> None:
    split(str(tiny_model), tmp_path / "own", shard_folder, dtype=None)
    kept = rows_of(str(tmp_path / "own"))
    assert kept is not None and kept < 64
    findings = check_edge_path(KEY, str(tmp_path / "own"), None, shard_folder)
    assert well(findings) and f"the shard's {kept} tokens" in findings[2].what
