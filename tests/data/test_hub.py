import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from fednano_flwr.data.defects import MISSING_PICTURE
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import check_dataset, commit_of, load_questions
from fednano_flwr.data.parquet import UNREADABLE_ROW
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.sources.scienceqa import HUB_ID
from tests import files
from tests.data.conftest import png, settings

MAIN, V1 = "a" * 40, "b" * 40


@pytest.fixture
def hub_files(tmp_path: Path) -> Callable[..., Path]:
    """Writes parquet files of one question each, the file's name, and a whole one a split beside.

    Columns given are instead of the usual ones, as long as they are; one that is None is left out.
    """

    def write(*names: str, **columns: Any) -> Path:
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        (tmp_path / "data").mkdir()
        for split in {"train", "validation", "test"} - {name.split("-")[0] for name in names}:
            write_file(f"{split}-whole.parquet", {})
        for name in names:
            write_file(name, columns)
        return tmp_path

    def write_file(name: str, columns: dict[str, Any]) -> None:
        rows = next((len(column) for column in columns.values() if column is not None), 1)
        usual: dict[str, list[Any]] = {
            "question": [name] * rows,
            "choices": [["a", "b"]] * rows,
            "answer": [1] * rows,
            "image": pyarrow.nulls(rows),
        }
        kept = {key: value for key, value in (usual | columns).items() if value is not None}
        pyarrow.parquet.write_table(pyarrow.table(kept), tmp_path / "data" / name)

    return write


def test_a_copy_of_the_hub_s_repository_is_read_with_every_field(write_hub):
    picture = {"bytes": png(), "path": "image.png"}
    path = write_hub(
        train=[{"image": picture, "hint": "Look.", "topic": "biology"}, {"answer": 0}],
        validation=[{"question": "Valid?"}],
        test=[{"question": "Tested?"}],
    )
    questions = load_questions(settings(path=str(path)))
    first, second = questions.train
    assert [picture.read() for picture in first.images] == [png()]
    assert [replace(first, images=()), second] == [
        Sample(
            uid="train-0",
            question="Which is it?",
            group="biology",
            subject="natural science",
            choices=("this", "that"),
            answer=1,
            context="Look.",
        ),
        Sample(
            uid="train-1",
            question="Which is it?",
            group="physics",
            subject="natural science",
            choices=("this", "that"),
            answer=0,
        ),
    ]
    assert [sample.uid for sample in questions.test] == ["test-0"]
    validated = load_questions(settings(path=str(path), test_split="val"))
    assert [(sample.uid, sample.question) for sample in validated.test] == [("val-0", "Valid?")]


def test_a_split_that_only_the_original_layout_has_is_refused(write_hub):
    path = write_hub(train=[{}], test=[{}])
    with pytest.raises(DataError, match="'minitest'"):
        check_dataset(settings(path=str(path), test_split="minitest"))
    with pytest.raises(DataError, match=r"no validation-\*\.parquet"):
        check_dataset(settings(path=str(path), test_split="val"))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, offline: `main` is commit aa…, `v1` is bb…; each has its name to ask for."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commits = {MAIN: tmp_path / "main", V1: tmp_path / "v1"}
    for copy in commits.values():
        rows = {"question": [copy.name], "choices": [["a", "b"]], "answer": [0]}
        (copy / "data").mkdir(parents=True)
        for split in ("train", "test"):
            file = copy / "data" / f"{split}-00000-of-00001.parquet"
            pyarrow.parquet.write_table(pyarrow.table(rows), file)
    refs = {"main": MAIN, "v1": V1}
    return files.hub_cache(tmp_path / "hub", HUB_ID, commits, "datasets", **refs)


@pytest.mark.parametrize(
    ("revision", "ref", "commit"),
    [("", "main", MAIN), ("main", "main", MAIN), ("v1", "v1", V1), (V1, "v1", V1)],
)
def test_the_hub_id_reads_a_revision_from_the_hub_s_cache_without_a_connection(
    hub_cache, revision, ref, commit
):
    load_questions(settings(path=HUB_ID))  # another revision's table is not taken
    dataset = settings(path=HUB_ID, revision=revision)
    check_dataset(dataset)
    found = load_questions(dataset)
    assert [(sample.uid, sample.question) for sample in found.train] == [("train-0", ref)]
    assert found.revision == commit_of(dataset, here=True) == commit


def test_what_the_cache_has_is_read_where_the_connection_fails(hub_cache, monkeypatch):
    whole = huggingface_hub.snapshot_download

    def broken(*args, local_files_only, **options):
        if not local_files_only:
            raise OSError("no route to host")
        return whole(*args, local_files_only=True, **options)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    assert load_questions(settings(path=HUB_ID, revision=V1)).revision == V1
    with pytest.raises(DataError, match="no route to host"):
        load_questions(settings(path=HUB_ID, revision="v2"))


def test_a_revision_that_cannot_be_had_is_refused_before_anything_is_read(hub_cache):
    for use in (check_dataset, load_questions):
        with pytest.raises(DataError, match=r"dataset\.revision = 'v2'") as caught:
            use(settings(path=HUB_ID, revision="v2"))
        assert f"dataset {HUB_ID} --revision v2" in str(caught.value)


def test_a_file_that_the_cache_lacks_is_refused_before_anything_is_read(hub_cache):
    folder = hub_cache / "snapshots" / V1 / "data"
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00002.parquet")
    with pytest.raises(DataError, match="missing: 1"):
        check_dataset(settings(path=HUB_ID, revision="v1"))


def test_any_data_set_on_the_hub_is_read_with_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    blobs, copy = tmp_path / "blobs", tmp_path / "main"
    blobs.mkdir()
    (copy / "photos").mkdir(parents=True)
    for split in ("train", "test"):
        row = {"photo": f"photos/{split}.png", "question": "Which?", "answer": split}
        (blobs / split).write_bytes(png())
        (copy / "photos" / f"{split}.png").symlink_to(blobs / split)  # as the hub's cache has them
        (copy / f"{split}.jsonl").write_text(json.dumps(row))
    files.hub_cache(tmp_path / "hub", "someone/photos-1.0", {MAIN: copy}, "datasets", main=MAIN)
    dataset = settings(name="table", path="someone/photos-1.0")
    check_dataset(dataset)
    found = load_questions(dataset)
    assert (found.revision, commit_of(dataset, here=True)) == (MAIN, MAIN)
    assert [s.images[0].read() for s in (*found.train, *found.test)] == [png()] * 2
    for changes, says in (
        ({"path": "someone/else"}, "no path on this machine; as a hub id"),
        ({"revision": "v9"}, "dataset.revision = 'v9'"),
        ({"path": "someone/photos.jsonl"}, "there is no .*photos.jsonl on this machine"),
        ({"path": "someone/photos.jsonl", "revision": "v9"}, "has no revision"),
    ):
        with pytest.raises(DataError, match=says):
            check_dataset(settings(**{"name": "table", "path": dataset.path} | changes))


def test_where_clients_are_elsewhere_the_commit_is_known_only_if_it_is_named(hub_cache, tmp_path):
    for revision, commit in {"": "", "v1": "", V1: V1, "c" * 40: "c" * 40, "c" * 39: ""}.items():
        assert commit_of(settings(path=HUB_ID, revision=revision), here=False) == commit
    with pytest.raises(DataError, match="'v2'"):
        commit_of(settings(path=HUB_ID, revision="v2"), here=True)
    assert commit_of(settings(path=str(tmp_path)), here=True) == ""


def test_a_hub_id_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        load_questions(settings(path=HUB_ID))
    assert "hf download --repo-type dataset derek-thomas/ScienceQA" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["1-of-3", "2-of-3"], ["missing: 0"]),
        (["0-of-3", "2-of-3"], ["missing: 1"]),
        (["0-of-2", "1-of-2", "2-of-2"], ["train-2-of-2.parquet"]),
        (["0-of-1", "00-of-1"], ["train-0-of-1.parquet", "train-00-of-1.parquet"]),
        (["0-of-2", "1-of-2", "2-of-3"], ["-of-2.parquet", "train-2-of-3.parquet"]),
        (["0-of-2", "1-of-2", "0-of-3", "1-of-3", "2-of-3"], ["-of-2.parquet", "-of-3.parquet"]),
        (["0-of-1", "0-of-1 (1)"], ["train-0-of-1.parquet", "train-0-of-1 (1).parquet"]),
        (["0-of-1", "more"], ["train-0-of-1.parquet", "train-more.parquet"]),
        (["00-of-02-ab12"], ["missing: 1"]),
        (["0-of-1-ab", "0-of-1-cd"], ["train-0-of-1-ab.parquet", "train-0-of-1-cd.parquet"]),
        (["0", "1", "3"], ["missing: 2"]),
    ],
)
def test_files_that_are_not_one_whole_split_are_refused_by_name(hub_files, names, says):
    path = hub_files(*(f"train-{name}.parquet" for name in names))
    with pytest.raises(DataError) as caught:
        check_dataset(settings(path=str(path)))
    assert all(text in str(caught.value) for text in [str(path / "data"), *says])


@pytest.mark.parametrize(
    "names",
    [
        *(["0-of-1"], ["00000-of-00002", "00001-of-00002"], ["0", "1"], ["1", "2"], ["a", "b"]),
        *(["0-of-2-ab12", "1-of-2-cd34"], ["0123456789abcdef"]),
        [f"{number}-of-12" for number in range(12)],
    ],
)
def test_files_that_are_a_whole_split_are_read(hub_files, names):
    path = hub_files(*(f"train-{name}.parquet" for name in names))
    found = load_questions(settings(path=str(path))).train
    assert [sample.question for sample in found] == [f"train-{name}.parquet" for name in names]


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()])
def test_a_column_of_image_files_bytes_is_read_as_pictures(hub_files, kind, encoder):
    path = hub_files("train-0-of-1.parquet", image=pyarrow.array([png(), None, b""], kind))
    questions = load_questions(settings(path=str(path), max_skipped=1))
    first, second = questions.train
    assert [picture.read() for picture in first.images] == [png()] and not second.images
    assert questions.skipped == {MISSING_PICTURE: 1}
    (picture,) = encoder.encode(first).sample.pictures
    assert picture.data is None  # a client holds none in memory


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_column_that_has_no_value_at_all_counts_as_absent(hub_files, value):
    empty = pyarrow.array([value] * 2)
    columns = {"hint": empty, "topic": empty, "subject": empty}
    path = hub_files("train-0-of-1.parquet", image=pyarrow.nulls(2), **columns)
    for sample in load_questions(settings(path=str(path))).train:
        assert (sample.context, sample.group, sample.subject) == ("", "no topic", "no subject")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("image", ["image.png"]),
        ("image", [[{"bytes": png()}]]),
        ("image", [{"path": "image.png"}]),
        ("image", [1]),
        ("question", [5]),
        ("question", [b"bytes"]),
        ("question", None),
        ("choices", ["a,b"]),
        ("choices", None),
        ("answer", [1.0]),
        ("answer", ["B"]),
        ("answer", [True]),
        ("answer", None),
    ],
)
def test_a_column_that_cannot_be_read_is_refused_by_name_before_anything_is_read(
    hub_files, column, values
):
    given = None if values is None else pyarrow.array(values)
    path = hub_files("train-0-of-1.parquet", **{column: given})
    for use in (check_dataset, load_questions):
        with pytest.raises(DataError, match=f"column '{column}'") as caught:
            use(settings(path=str(path)))
        assert str(path / "data" / "train-0-of-1.parquet") in str(caught.value)


def test_pictures_in_a_column_of_another_name_are_not_passed_over(hub_files):
    picture = pyarrow.array([{"bytes": png(), "path": "p"}])
    path = hub_files("train-0-of-1.parquet", image=None, img=picture)
    with pytest.raises(DataError, match=r"no column 'image'.*img"):
        check_dataset(settings(path=str(path)))


def test_a_row_that_cannot_be_read_or_asked_costs_itself(hub_files):
    raw = pyarrow.array([b"one", b"\xff\xfe", b"three", b"four"]).view(pyarrow.string())
    path = hub_files("train-0-of-1.parquet", question=raw, answer=[1, 1, 0, 2], image=None)
    questions = load_questions(settings(path=str(path), max_skipped=1))
    assert questions.train.uids == ["train-0", "train-2"]
    assert not any(sample.images for sample in questions.train)
    assert questions.skipped == {UNREADABLE_ROW: 1, "answer is not one of the choices": 1}


def test_a_file_that_is_not_parquet_is_refused_before_anything_is_read(hub_files):
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", b"PAR1junkPAR1"):
        path = hub_files("train-0-of-1.parquet")
        (path / "data" / "train-0-of-1.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"train-0-of-1\.parquet cannot be read as parquet"):
            check_dataset(settings(path=str(path)))


def test_damage_that_only_a_checksum_shows_is_refused(hub_files):
    path = hub_files("train-0-of-1.parquet")
    file = path / "data" / "train-0-of-1.parquet"
    table = pyarrow.parquet.read_table(file)
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pyarrow.parquet.write_table(table, file, write_page_checksum=True, **options)
    file.write_bytes(file.read_bytes().replace(b"train-0-of-1", b"train-0-of-9"))
    with pytest.raises(DataError, match=r"train-0-of-1\.parquet cannot be read"):
        load_questions(settings(path=str(path)))


def test_a_damaged_part_of_a_file_is_refused_by_its_name(hub_files):
    texts = [f"question {number} of many" for number in range(2000)]
    path = hub_files("train-0-of-1.parquet", question=pyarrow.array(texts))
    file = path / "data" / "train-0-of-1.parquet"
    content = bytearray(file.read_bytes())
    content[2000:4000] = bytes(2000)
    file.write_bytes(content)
    check_dataset(settings(path=str(path)))  # its end, with the columns' names, is whole
    with pytest.raises(DataError, match=r"train-0-of-1\.parquet cannot be read as parquet"):
        load_questions(settings(path=str(path)))
