"""Data sets that the project does not bring itself."""

import csv
import sys
from pathlib import Path

import pytest

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import check_dataset, load_questions
from fednano_flwr.data.sources import ENTRY_POINTS, find_source, register, source_names
from tests.data.conftest import png, settings

TOY = """
import csv
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.sources import Reading, Source


class Toy:
    settings = ""

    def __init__(self, root):
        self.root = root

    def check_split(self, split):
        if not self.files(split)[0].is_file():
            raise DataError(f"there is no {split}.csv in {self.root}")

    def files(self, split):
        return [self.root / f"{split}.csv", self.root / "photos"]

    def read(self, split):
        with self.files(split)[0].open(newline="") as file:
            rows = list(csv.DictReader(file))
        return Reading(len(rows), ((row["id"], self._sample(row)) for row in rows))

    def _sample(self, row):
        if not row["answer"]:
            return "answer has no text"
        pictures = tuple(Picture(self.root / "photos" / name) for name in row["photos"].split())
        return Sample(
            row["id"], row["question"], row["kind"], row["kind"],
            free_answer=row["answer"], images=pictures,
        )


SOURCE = Source(
    open=lambda path, dataset: Toy(path) if (path / "train.csv").is_file() else None,
    layout="  <dataset.path>/<split>.csv",
)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the toy's layout; its module `toy_source` can be imported."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "toy_source.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "toy_source", raising=False)
    folder = tmp_path / "toys"
    (folder / "photos").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (folder / "photos" / name).write_bytes(png())
    fields = ["id", "question", "kind", "answer", "photos"]
    for split, rows in {
        "train": [["1", "How many?", "count", "two", "a.png b.png"], ["2", "?", "count", "", ""]],
        "test": [["3", "What?", "name", "a ball", ""]],
    }.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([fields, *rows])
    return folder


@pytest.fixture
def registered(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import toy_source

    monkeypatch.setattr("fednano_flwr.data.sources._registered", {})
    register("toy", toy_source.SOURCE)
    return toy


@pytest.fixture
def installed(toy: Path) -> Path:
    about = toy.parent / "code" / "toy-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        f"[{ENTRY_POINTS}]\ntoy = toy_source:SOURCE\nbroken = toy_source:NOTHING\n"
    )
    return toy


@pytest.mark.parametrize("how", ["registered", "installed"])
def test_a_source_of_one_s_own_is_read_as_the_projects_are(how, request):
    dataset = settings(name="toy", path=str(request.getfixturevalue(how)), max_skipped=0.5)
    assert {"toy", "iconqa", "scienceqa"} <= set(source_names())
    check_dataset(dataset)
    found = load_questions(dataset)
    (sample,) = found.train
    assert (sample.free_answer, [picture.read() for picture in sample.images]) == (
        "two",
        [png()] * 2,
    )
    assert found.skipped == {"answer has no text": 1} and found.test.uids == ["3"]
    with pytest.raises(DataError, match=r"no dev\.csv"):
        check_dataset(settings(name="toy", path=dataset.path, test_split="dev"))
    for changes, says in (
        ({"path": str(Path(dataset.path).parent)}, r"<split>\.csv"),
        ({"revision": "v1"}, r"dataset\.revision"),
        ({"tasks": "some"}, "must be all"),
        ({"name": "scienceqa"}, r"looks like dataset\.name = table or toy"),
    ):
        with pytest.raises(DataError, match=says):
            check_dataset(settings(**{"name": "toy", "path": dataset.path, **changes}))


def test_a_source_that_cannot_be_loaded_or_that_has_anothers_name_is_refused(installed):
    with pytest.raises(DataError, match="toy_source:NOTHING"):
        find_source("broken")
    with pytest.raises(ValueError, match="scienceqa"):
        register("scienceqa", find_source("toy"))
    with pytest.raises(ValueError, match="toy"):
        register("toy", find_source("scienceqa"))
