import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fednano_flwr.base.resources import ResourceError, resolve

GENERATOR = """
import pathlib

def write_dataset(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_text("fresh")
    with (pathlib.Path(__file__).parent / "calls").open("a") as file:
        file.write("x")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package with a data folder and a dataset generator; returns its folder."""
    folder = tmp_path / "site" / "made_for_test"
    (folder / "files").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "generate.py").write_text(GENERATOR)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "cache"))
    yield folder  # type: ignore[misc]
    for name in [name for name in sys.modules if name.startswith("made_for_test")]:
        del sys.modules[name]


def test_a_plain_value_is_a_path() -> None:
    assert resolve("dataset.path", "some/where") == Path("some/where")
    assert resolve("dataset.path", "~/x") == Path.home() / "x"


def test_package_names_a_folder_of_an_installed_package(package: Path) -> None:
    assert resolve("model.name", "package:made_for_test/files") == package / "files"


def test_module_writes_its_dataset_once(package: Path) -> None:
    first = resolve("dataset.path", "module:made_for_test.generate/sub")
    assert (first / "data").read_text() == "fresh"
    assert resolve("dataset.path", "module:made_for_test.generate/sub") == first
    assert (package / "calls").read_text() == "x"


def test_a_changed_generator_writes_anew(package: Path) -> None:
    first = resolve("dataset.path", "module:made_for_test.generate")
    (package / "generate.py").write_text(GENERATOR + "# changed\n")
    assert resolve("dataset.path", "module:made_for_test.generate") != first


def test_processes_that_start_together_agree_on_one_copy(package: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: resolve("k", "module:made_for_test.generate"), range(4)))
    (folder,) = folders
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (folder / "sub" / "data").read_text() == "fresh"


@pytest.mark.parametrize("value", ["package:no_such_thing/x", "module:no_such.thing/x"])
def test_what_is_not_installed_is_named_with_its_key(value: str) -> None:
    with pytest.raises(ResourceError, match=r"dataset\.path.*no_such.*not installed"):
        resolve("dataset.path", value)


def test_a_package_that_a_module_needs_is_named(package: Path) -> None:
    (package / "needy.py").write_text("import no_such\n")
    with pytest.raises(ResourceError, match=r"dataset\.path.*needy.*no_such"):
        resolve("dataset.path", f"module:{package.name}.needy")


def test_a_module_that_writes_no_dataset_is_refused(package: Path) -> None:
    with pytest.raises(ResourceError, match="no function write_dataset"):
        resolve("dataset.path", "module:made_for_test/x")
