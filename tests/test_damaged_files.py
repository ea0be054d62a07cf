"""Each damaged file that once ended in a crash instead of an error for people."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fednano_flwr.config import ConfigError
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import read_json_object
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.shard import Shard
from fednano_flwr.data.shard_folder import MANIFEST as SHARD_MANIFEST
from fednano_flwr.data.shard_folder import TRAIN_FILE, load_shard, write_shard
from fednano_flwr.data.table import in_memory, read_table, write_table
from fednano_flwr.models.bundle import MANIFEST, EdgeBundle
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.families import AUTO
from fednano_flwr.models.processor import load_processor
from fednano_flwr.models.split import write_bundle
from fednano_flwr.models.weights import INDEX
from fednano_flwr.runs import checkpoint as checkpoints
from fednano_flwr.runs.checkpoint import CheckpointError
from tests.files import checkpoint_in

NO_OBJECTS = ["", "[", "[]", "{}", "null", "[" * 100_000]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize("text", [*NO_OBJECTS, '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_named(model: Path, text: str) -> None:
    (model / INDEX).write_text(text)
    with pytest.raises(ConfigError, match=INDEX):
        ModelCheckpoint(str(model)).files  # noqa: B018


def test_weights_that_are_no_safetensors_are_named(model: Path) -> None:
    file = sorted(model.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:100])
    checkpoint = ModelCheckpoint(str(model))
    with pytest.raises(ConfigError, match=f"{file.name} is no safetensors file"):
        list(checkpoint.read(checkpoint.files))


@pytest.mark.parametrize("family", ["", AUTO])
@pytest.mark.parametrize("text", NO_OBJECTS)
def test_a_config_that_is_none_is_named(model: Path, text: str, family: str) -> None:
    (model / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is no config|its family is none"):
        ModelCheckpoint(str(model), family=family)


@pytest.mark.parametrize("kind", [["llava"], {"a": 1}])
def test_a_family_that_is_no_name_is_refused(model: Path, kind: object) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ConfigError, match="its family is"):
        ModelCheckpoint(str(model))


@pytest.mark.parametrize("name", ["AutoModel", "logging", 7, ["x"]])
def test_a_processors_class_that_is_none_is_an_error_for_people(model: Path, name: object) -> None:
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (model / file).is_file():
            content = json.loads((model / file).read_text())
            (model / file).write_text(json.dumps({**content, "processor_class": name}))
    try:
        load_processor(model)  # the config may still say which it is
    except ConfigError as error:
        assert str(model) in str(error)


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_a_bundles_manifest_that_is_none_is_named(
    tiny_model: Path, tmp_path: Path, text: str
) -> None:
    write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "bundle")
    (tmp_path / "bundle" / MANIFEST).write_text(text)
    with pytest.raises(ConfigError, match="edge bundle"):
        EdgeBundle(str(tmp_path / "bundle"))


def test_a_bundles_manifest_without_its_files_is_incomplete(
    tiny_model: Path, tmp_path: Path
) -> None:
    write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "bundle")
    (tmp_path / "bundle" / MANIFEST).write_text('{"format": 1, "model": "m"}')
    with pytest.raises(ConfigError, match=f"{MANIFEST} cannot be used"):
        EdgeBundle(str(tmp_path / "bundle"))


def test_a_bundles_manifest_without_a_fingerprint_is_incomplete(
    tiny_model: Path, tmp_path: Path
) -> None:
    write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "bundle")
    manifest = tmp_path / "bundle" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "fingerprint": ""}))
    with pytest.raises(ConfigError, match=f"{MANIFEST} cannot be used"):
        EdgeBundle(str(tmp_path / "bundle"))


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.arrow").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"t\.arrow is no table"):
        read_table(tmp_path / "t.arrow")


def test_a_table_with_a_damaged_byte_is_read_or_named(tmp_path: Path) -> None:
    file = tmp_path / "t.arrow"
    texts = [f"question {number}" for number in range(3)]
    write_table(file, [Sample(text, text, "g", "s", ("a", "b"), answer=0) for text in texts])
    whole, refused = file.read_bytes(), 0
    for place in range(3, len(whole), 8):  # the highest byte of offsets among them
        file.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        try:
            questions = read_table(file)
            assert len(list(questions)) == len(questions)
        except DataError:
            refused += 1
    assert refused > 20


def test_a_value_that_a_table_cannot_hold_is_an_error_of_the_data(tmp_path: Path) -> None:
    huge = Sample("1", 10**400, "g", "s", ("a", "b"), answer=0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a value that cannot be stored"):
        write_table(tmp_path / "t.arrow", [huge])


def test_a_shards_manifest_that_says_nothing_of_a_file_is_named(tmp_path: Path) -> None:
    questions = in_memory([Sample("1", "?", "g", "s", choices=("a", "b"), answer=0)])
    write_shard(tmp_path / "shard", Shard(questions, questions), {})
    file = tmp_path / "shard" / SHARD_MANIFEST
    manifest = json.loads(file.read_text())
    manifest["files"][TRAIN_FILE] = None
    file.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=f"{TRAIN_FILE} is damaged"):
        load_shard(tmp_path / "shard")


def test_json_of_too_many_brackets_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"x\.json is not valid JSON"):
        read_json_object(tmp_path / "x.json")


@pytest.mark.parametrize("text", [*NO_OBJECTS, '{"files": ["adapters.safetensors"]}'])
def test_a_runs_state_that_is_none_is_damage(tmp_path: Path, text: str) -> None:
    place = checkpoint_in(tmp_path)
    (place / checkpoints.STATE).write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoints.read(place)
