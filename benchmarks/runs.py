"""Processes of their own: whole runs, as a user starts them, and functions."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def fednano_run(
    folder: Path,
    name: str,
    changes: Sequence[str],
    clients: int = 5,
    client_gpus: float = 0.0,
) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one `fednano run` that keeps its results in `folder`/`name`.

    Args:
        changes: `key=value` of the run config.
        client_gpus: share of a GPU that a client gets.

    Raises:
        subprocess.CalledProcessError: the run failed; it has said why on standard error.
    """
    command = [sys.executable, "-m", "fednano_flwr.cli", "run", "--clients", str(clients)]
    command += ["--client-gpus", str(client_gpus)]
    for change in (*changes, f"run.dir={folder}", f"run.name={name}"):
        command += ["-c", change]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@contextmanager
def process(work: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """`work(pipe, *arguments)` in a fresh process; yields our end of the pipe.

    The process is waited for in the end, and does not outlive this one whatever happens.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=work, args=(theirs, *arguments), daemon=True)
    worker.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        worker.join()
