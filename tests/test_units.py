"""deploy/systemd, as far as it can be checked without starting a unit."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fednano_flwr.launcher.environment import bin_folder
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "systemd"
UNITS = ("superlink", "supernode")


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_and_its_environment_file_name_the_same_variables(name: str) -> None:
    unit = (FOLDER / f"fednano-{name}.service").read_text()
    example = (FOLDER / f"{name}.env").read_text()
    assert f"EnvironmentFile=/etc/fednano/{name}.env" in unit
    used = set(re.findall(r"\$\{(\w+)\}", unit))
    assert used == set(re.findall(r"^(\w+)=", example, re.MULTILINE)) and used


def test_a_supernode_is_restarted_as_often_as_it_takes() -> None:
    unit = (FOLDER / "fednano-supernode.service").read_text().splitlines()
    assert "Restart=always" in unit and "StartLimitIntervalSec=0" in unit
    (delay,) = [line for line in unit if line.startswith("RestartSec=")]
    assert int(delay.partition("=")[2]) >= 5


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong_with_a_unit(name: str, tmp_path: Path) -> None:
    text = (FOLDER / f"fednano-{name}.service").read_text()
    unit = tmp_path / f"fednano-{name}.service"
    unit.write_text(text.replace("/opt/fednano/.venv/bin/flower", f"{bin_folder()}/flower"))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
