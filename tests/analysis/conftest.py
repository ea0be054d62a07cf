from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fednano_flwr.cli.app import cli
from tests.analysis.made_up import a_record, a_run, write

MARKUP = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&$\\frac$"
EVIL = MARKUP + "\ud800\x00"
"""A text that must stay one, on a page and in a figure. Values of a run config may be MARKUP."""


@dataclass(frozen=True)
class Reports:
    """What `fednano report` has written of three runs.

    Attributes:
        said: on the screen.
        plain: of a whole run of three clients, whose name has a blank.
        evil: of one that stopped early, whose names and reasons are markup, with 12 clients,
            a privacy budget and a GPU.
        together: the comparison of both and of a second seed of the first.
    """

    said: str
    plain: Path
    evil: Path
    together: Path

    @property
    def pages(self) -> list[Path]:
        return [self.plain, self.evil, self.together]


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    folder = tmp_path_factory.mktemp("runs")
    plain = a_run(folder / "seed 0", 0.4, 0.8, 0.7, local_epochs=7)
    second = a_run(folder / "seed 1", 0.4, 0.5, 0.9, local_epochs=7, seed=1)
    after = {
        "failures": {"train": {EVIL: EVIL}, "evaluate": {}},
        "accuracy_by": {EVIL: {"accuracy": 0.5, "questions": 3}},
        "merge": {EVIL: 1.0, "epsilon": 2.0, "fisher scale": 3.0},
        "peak_memory_mb": {"client_process": 1.0, "server_process": 2.0, "server_gpu": 3.0},
    }
    evil = write(
        folder / "<b>run&",
        [a_record(0, 0.4, 12), a_record(1, 0.5, 12, **after)],
        {EVIL: EVIL},
        num_server_rounds=5,
        model__name=MARKUP,
        dataset__path=MARKUP,
        strategy__name="fedavg",
    )
    folders = [str(path) for path in (plain.path, second.path, evil)]
    result = CliRunner().invoke(cli, ["report", *folders])
    assert result.exit_code == 0, result.output
    pages = [path / "report" / "report.html" for path in (plain.path, evil, folder)]
    return Reports(result.output, *pages)
