"""What a user installs and what Flower sends: the wheel and the app bundle, as built."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fednano_flwr.launcher.environment import bin_folder
from fednano_flwr.models.configs import shipped
from tests.conftest import REPOSITORY

MOST_BYTES = 10 * 2**20  # of a bundle, at Flower's
CODE = (
    "import fednano_flwr, fednano_demo, sys; from pathlib import Path; "
    "from fednano_flwr.config.project import defaults, find_app, with_code; "
    "here = Path(sys.argv[1]); app = find_app(None, here); "
    "assert Path(fednano_flwr.__file__).is_relative_to(here), fednano_flwr.__file__; "
    "assert Path(fednano_demo.__file__).is_relative_to(here), fednano_demo.__file__; "
    "print(with_code(app, here), defaults(app)['seed'])"
)


def run(command: list[str], cwd: Path, **variables: str) -> str:
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=120, env=variables or None
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    run([*build, "--sdist", str(REPOSITORY)], folder)
    (source,) = folder.glob("*.tar.gz")
    run(["tar", "xf", str(source)], folder)
    run([*build, "--wheel", str(folder / source.name.removesuffix(".tar.gz"))], folder)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The app's files of this checkout, in a folder whose name `flwr build` takes."""
    folder = tmp_path / "checkout"
    only_code = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "fednano_flwr", folder / "fednano_flwr", ignore=only_code)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def test_an_installed_wheel_has_its_types_its_model_and_its_app(installed: Path) -> None:
    for name in (
        *("fednano_flwr/py.typed", "fednano_demo/py.typed", "fednano_flwr/app/pyproject.toml"),
        "fednano_demo/model/model.safetensors",
        *(f"fednano_flwr/models/configs/{name}.json" for name in shipped()),
        "fednano_flwr/analysis/templates/run.html.j2",
        "fednano_flwr/export/templates/card.md.j2",
    ):
        assert (installed / name).is_file(), name
    assert not (installed / "tests").exists()


def test_an_installed_wheel_makes_the_app_bundle_that_a_checkout_makes(
    installed: Path, checkout: Path, tmp_path: Path
) -> None:
    python = [sys.executable, "-c", CODE, str(installed)]
    app, seed = run(python, installed, PYTHONPATH=str(installed)).split()
    assert seed == "0"
    bundles = []
    for number, source in enumerate([Path(app), checkout]):
        folder = tmp_path / str(number)
        folder.mkdir()
        run([str(bin_folder() / "flwr"), "build", "--app", str(source)], folder)
        (bundle,) = folder.glob("*.fab")
        bundles.append(bundle)
    ours, theirs = ({i.filename: i.CRC for i in zipfile.ZipFile(b).infolist()} for b in bundles)
    assert ours == theirs


def test_the_app_bundle_has_all_code_and_no_data_and_is_small_enough(
    checkout: Path, tmp_path: Path
) -> None:
    run([str(bin_folder() / "flwr"), "build", "--app", str(checkout)], tmp_path)
    (bundle,) = tmp_path.glob("*.fab")
    names = set(zipfile.ZipFile(bundle).namelist())
    code = {str(f.relative_to(REPOSITORY)) for f in (REPOSITORY / "fednano_flwr").rglob("*.py")}
    assert names == code | {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}
    assert bundle.stat().st_size < MOST_BYTES
