"""Packages and devices that are not what is asked for."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from fednano_flwr.doctor.versions import (
    check_device,
    check_installed,
    check_packages,
    check_programs,
    check_python,
)
from tests.doctor.found import only, well


def test_an_old_package_is_named_with_its_version_and_what_to_install() -> None:
    found = only(check_packages(["torch<1", "pillow>=1"]), "problem")
    assert f"torch {metadata.version('torch')}" in found.what and "<1" in found.what
    assert found.do == "pip install 'torch<1'"


def test_a_package_that_is_not_there_is_a_problem() -> None:
    found = only(check_packages(["no-such-package-of-anyone>=2"]), "problem")
    assert "is not installed" in found.what and "no-such-package-of-anyone>=2" in found.do


def test_packages_of_extras_and_other_systems_are_not_asked_for() -> None:
    requires = ["pillow>=1", 'torch<1; extra == "dev"', 'torch<1; sys_platform == "none"']
    assert well(check_packages(requires))


def test_the_installation_that_runs_these_tests_is_well() -> None:
    assert well(check_installed())


def test_another_python_is_a_problem() -> None:
    assert "needs >=3.11" in only(check_python(">=3.11", "3.10.4"), "problem").what
    assert well(check_python(">=3.11", "3.12.0"))


@pytest.mark.parametrize("device", ["cuda:99", "mps:3", "toaster"])
def test_a_device_that_is_not_here_is_a_problem_of_its_key(device: str) -> None:
    found = only(check_device("edge.device", device), "problem")
    assert found.what.startswith(f"edge.device = {device!r}: ") and "cpu" in found.do
    assert well(check_device("edge.device", "cpu"))


def test_flowers_helper_has_to_be_on_the_path(tmp_path: Path) -> None:
    found = only(check_programs(str(tmp_path)), "warning")
    assert "flower-superexec is not on the PATH" in found.what
    assert str(Path(sys.executable).parent) in found.do
    (tmp_path / "flower-superexec").write_text("")
    (tmp_path / "flower-superexec").chmod(0o755)
    assert well(check_programs(str(tmp_path)))
