"""A made-up run of three rounds, and both exports of it as the command writes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from torch import Tensor
from typer.testing import CliRunner

from fednano_flwr.cli.app import cli
from tests.conftest import tiny_config
from tests.export.made_up import write_run


def export(run: Path, out: Path, *more: str, form: str = "merged") -> Result:
    arguments = ["export", str(run), "--format", form, "--out", str(out), *more]
    return CliRunner().invoke(cli, arguments)


@dataclass(frozen=True)
class Exported:
    """A run, its config and trained adapters; by format, the exported folder and the output."""

    run: Path
    flat: dict[str, Any]
    trained: dict[str, Tensor]
    folders: dict[str, Path]
    output: dict[str, str]

    def card(self, form: str) -> str:
        return (self.folders[form] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def exported(
    defaults: dict[str, Any],
    tiny_model: Path,
    tiny_questions: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    folder = tmp_path_factory.mktemp("export")
    flat = tiny_config(defaults, tiny_model, tiny_questions, folder)(dataset__alpha=0.25)
    run, trained = write_run(flat, 0.5, 0.75, 0.625)
    output = {}
    for form in ("peft", "merged"):
        result = export(run, folder / form, form=form)
        assert result.exit_code == 0, result.output
        output[form] = result.output
    return Exported(run, flat, trained, {form: folder / form for form in output}, output)
