"""Names that come with a folder of data lead nowhere else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fednano_flwr.base.files import describe_file, inside
from fednano_flwr.config import ConfigError
from fednano_flwr.data.defects import UNNAMED_PICTURE
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.shard import Shard
from fednano_flwr.data.shard_folder import MANIFEST as SHARD_MANIFEST
from fednano_flwr.data.shard_folder import TRAIN_FILE, load_shard, write_shard
from fednano_flwr.data.sources.scienceqa import ScienceQA
from fednano_flwr.data.table import in_memory, write_table
from fednano_flwr.models.bundle import MANIFEST, EdgeBundle
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.split import write_bundle
from fednano_flwr.models.weights import INDEX
from fednano_flwr.runs import checkpoint as checkpoints
from fednano_flwr.runs.checkpoint import CheckpointError
from tests.files import checkpoint_in

LEADING_OUT = ["../outside", "a/../../outside", "/etc/passwd", "C:\\x", "..\\outside", "C:/x"]
NO_NAMES = ["", "a\0b", None, 3, ["a"]]


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leads out of its folder") as error:
        inside(tmp_path, name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(ValueError, match="no file's name"):
        inside(tmp_path, name)


def test_a_name_inside_is_taken_whether_or_not_the_file_is_there(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b.bin") == tmp_path / "a" / "b.bin"
    assert inside(tmp_path, "..a") == tmp_path / "..a"


def test_a_link_that_leads_out_is_refused_and_one_that_stays_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    (folder / "in").symlink_to(folder / "file")
    (folder / "round").symlink_to(folder / "round")
    for name in ("out", "up/secret"):
        with pytest.raises(ValueError, match="a link that leads out"):
            inside(folder, name)
    with pytest.raises(ValueError, match="cannot be followed"):
        inside(folder, "round")
    assert inside(folder, "in") == folder / "in"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def rewrite(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", 7])
def test_a_checkpoints_index_cannot_name_a_file_elsewhere(model: Path, name: object) -> None:
    shutil.copy(next(model.glob("*.safetensors")), model.parent / "outside.safetensors")
    key = next(iter(json.loads((model / INDEX).read_text())["weight_map"]))
    rewrite(model / INDEX, lambda index: index["weight_map"].__setitem__(key, name))
    with pytest.raises(ConfigError, match=re.escape(str(model / INDEX))) as error:
        ModelCheckpoint(str(model)).files  # noqa: B018
    assert str(name) in str(error.value)


def test_a_checkpoints_index_with_a_name_that_no_file_can_have_is_refused(model: Path) -> None:
    key = next(iter(json.loads((model / INDEX).read_text())["weight_map"]))
    rewrite(model / INDEX, lambda index: index["weight_map"].__setitem__(key, "é" * 200))
    checkpoint = ModelCheckpoint(str(model))
    with pytest.raises(ConfigError, match=f"{INDEX} .*é"):
        list(checkpoint.read(checkpoint.files))


def test_weights_may_lie_on_another_disk_behind_a_link(model: Path) -> None:
    file = sorted(model.glob("*.safetensors"))[0]
    file.rename(model.parent / "elsewhere.safetensors")
    file.symlink_to(model.parent / "elsewhere.safetensors")
    checkpoint = ModelCheckpoint(str(model))
    assert len(list(checkpoint.read(checkpoint.files))) == len(checkpoint.files)


def test_links_of_the_hubs_cache_are_followed(model: Path) -> None:
    """Its snapshots are links to ../../blobs."""
    snapshot, blobs = model.parent / "snapshots" / "abc", model.parent / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    checkpoint = ModelCheckpoint(str(snapshot))
    assert len(list(checkpoint.read(checkpoint.files))) == len(checkpoint.files)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_a_bundles_manifest_cannot_name_a_file_elsewhere(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "bundle")
    (tmp_path / "outside").write_bytes(b"x")
    known = describe_file(tmp_path / "outside")
    rewrite(tmp_path / "bundle" / MANIFEST, lambda m: m["files"].__setitem__(name, known))
    with pytest.raises(ConfigError, match=f"{MANIFEST}: the name '{name}' leads out"):
        EdgeBundle(str(tmp_path / "bundle"))


def question(uid: str, image: Picture | None = None) -> Sample:
    images = () if image is None else (image,)
    return Sample(uid, "?", "g", "s", choices=("a", "b"), answer=0, images=images)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    questions = in_memory([question("1"), question("2")])
    write_shard(tmp_path / "shard", Shard(questions, questions), {})
    return tmp_path / "shard"


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_a_shards_manifest_cannot_name_a_file_elsewhere(written: Path, name: str) -> None:
    (written.parent / "outside").write_bytes(b"x")
    known = describe_file(written.parent / "outside")
    rewrite(written / SHARD_MANIFEST, lambda m: m["files"].__setitem__(name, known))
    with pytest.raises(DataError, match=f"{SHARD_MANIFEST}: the name '{name}' leads out"):
        load_shard(written)


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "images/link.png"])
def test_a_shards_table_cannot_name_a_picture_elsewhere(written: Path, name: str) -> None:
    (written.parent / "outside.png").write_bytes(b"x")
    (written / "images" / "link.png").symlink_to(written.parent / "outside.png")
    write_table(written / TRAIN_FILE, [question("77", Picture(Path(name)))])
    known = describe_file(written / TRAIN_FILE)
    rewrite(written / SHARD_MANIFEST, lambda m: m["files"].__setitem__(TRAIN_FILE, known))
    shard = load_shard(written)
    for take in (lambda: shard.train[0], lambda: list(shard.train), lambda: shard.train[:1][0]):
        with pytest.raises(DataError, match=f"question 77 in .*{name}.*leads out"):
            take()


@pytest.mark.parametrize("where", ["id", "picture"])
def test_a_question_of_scienceqa_cannot_name_a_picture_elsewhere(
    tiny_questions: Path, tmp_path: Path, where: str
) -> None:
    folder = Path(shutil.copytree(tiny_questions, tmp_path / "scienceqa"))
    problems = json.loads((folder / "problems.json").read_text())
    pid = next(pid for pid, problem in problems.items() if problem["image"])
    problem = dict(problems[pid])
    (tmp_path / "image.png").write_bytes(b"x")
    elsewhere = "../../../.." if where == "id" else pid
    if where == "picture":
        problem["image"] = "../../../../image.png"
    (folder / "problems.json").write_text(json.dumps({elsewhere: problem}))
    (folder / "pid_splits.json").write_text(json.dumps({"train": [elsewhere]}))
    assert list(ScienceQA(folder).read("train").problems) == [(elsewhere, UNNAMED_PICTURE)]


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_a_runs_checkpoint_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    place = checkpoint_in(tmp_path)
    (tmp_path / "outside").write_bytes(b"x")
    rewrite(place / checkpoints.STATE, lambda state: state["files"].__setitem__(name, "0"))
    with pytest.raises(CheckpointError, match=f"the name '{name}' leads out"):
        checkpoints.read(place)
