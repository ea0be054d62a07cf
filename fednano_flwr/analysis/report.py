"""`fednano report`: write the report of each run, and of several a comparison.

RUN/report/report.html      the page; figures/*.svg and *.png are its figures
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from fednano_flwr.analysis import facts, groups, pages
from fednano_flwr.analysis.figures import draw
from fednano_flwr.analysis.figures.comparison import curves, ends
from fednano_flwr.analysis.picture import Picture
from fednano_flwr.base.files import replace_file
from fednano_flwr.config import ConfigError
from fednano_flwr.config.project import default_config
from fednano_flwr.data.metrics import metric_label
from fednano_flwr.runs.results import Run

PAGE, FIGURES, FOLDER = "report.html", "figures", "report"
KINDS = ("svg", "png")


def report(
    paths: Sequence[Path], out: Path | None, say: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write the pages and return their files, the comparison's last.

    One run's report goes to `out`, else to the folder `report` in the run's. With several, `out`
    holds the comparison and a folder for each run; without it, each run has its report in its own
    folder, and the comparison goes to the folder `report` beside them.

    Args:
        say: takes notices for people.

    Raises:
        ConfigError: one of the paths is no run's folder or cannot be read, or it is not clear where
            to write; nothing has been written then.
        OSError: writing failed.
    """
    runs = [facts.read_run(path) for path in _distinct(paths)]
    groups.common_metric({run.path.name: metric_label(run.config) for run in runs})
    for run in runs:
        for note in run.notes:
            say(f"{run.path}: {note}")
    folders = _folders(runs, out)
    together = [_together(runs, out)] if len(runs) > 1 else []
    for folder in (*folders.values(), *together):
        if (folder / "config.json").exists():
            raise ConfigError(f"{folder} is a run's folder; say with --out where to write")
    defaults = default_config().flat()
    with warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks: the page's text is the browser's to draw.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        files = []
        for run in runs:
            sections = draw(run)
            page = pages.run_page(run, sections, defaults)
            files.append(_write(folders[run.path], page, list(chain(*sections.values()))))
        for folder in together:
            files.append(_write_comparison(runs, folder, folders))
    return files


def _distinct(paths: Sequence[Path]) -> list[Path]:
    """Each run once, however often and under which name it was given."""
    return list({path.expanduser().resolve(): None for path in paths})


def _folders(runs: Sequence[Run], out: Path | None) -> dict[Path, Path]:
    """Where each run's report goes."""
    if out is None:
        return {run.path: run.path / FOLDER for run in runs}
    if len(runs) == 1:
        return {runs[0].path: out}
    folders: dict[Path, Path] = {}
    for run in runs:
        alike = [folder for folder in folders.values() if folder.name == run.path.name]
        place = run.path.name if not alike else f"{run.path.parent.name}-{run.path.name}"
        if out / place in folders.values():
            raise ConfigError(f"two of the runs are called {place}: give them apart")
        folders[run.path] = out / place
    return folders


def _together(runs: Sequence[Run], out: Path | None) -> Path:
    """Where the comparison goes."""
    if out is not None:
        return out
    beside = {run.path.parent for run in runs}
    if len(beside) > 1:
        raise ConfigError("the runs lie in different folders: say with --out where to write")
    return beside.pop() / FOLDER


def _write_comparison(runs: Sequence[Run], folder: Path, folders: Mapping[Path, Path]) -> Path:
    compared, repeated = groups.group(runs)
    pictures = [curves(compared), ends(compared)]
    hrefs = {
        path: quote(Path(os.path.relpath(place / PAGE, folder)).as_posix())
        for path, place in folders.items()
    }
    page = pages.comparison_page(compared, repeated, pictures, hrefs)
    return _write(folder, page, pictures)


def _write(folder: Path, page: str, pictures: Sequence[Picture]) -> Path:
    """The page and its figures; a figure that an earlier report had and this one lacks goes."""
    figures = folder / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        files = picture.files() if picture.figure else {}
        for kind in KINDS:
            file = figures / f"{picture.name}.{kind}"
            if kind in files:
                replace_file(file, files[kind])
            else:
                file.unlink(missing_ok=True)
    replace_file(folder / PAGE, page.encode(errors="replace"))  # folders' names may be no text
    return folder / PAGE
