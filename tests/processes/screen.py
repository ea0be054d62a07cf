"""What `fednano run` shows of a made-up run, to be started on a terminal.

    python -m tests.processes.screen FOLDER LINES END

Says LINES lines while FOLDER/progress.json changes; END is `well`, `raise` or `interrupt`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from fednano_flwr.base.live import terminal
from fednano_flwr.base.signals import interrupts
from fednano_flwr.cli.screen import Screen
from fednano_flwr.rounds.snapshot import Snapshot, write


def line(number: int) -> str:
    """Some are wider than a narrow terminal, and hold what rich would read as markup."""
    return f"round {number:>2}  [bold]:smile: accuracy {'=' * (7 * number % 90)} end"


def main(folder: Path, lines: int, end: str) -> None:
    file = folder / "progress.json"
    with interrupts(), Screen(False, terminal()) as screen:
        screen.starting()
        if screen.watch is not None:
            screen.watch(file)
        for number in range(lines):
            steps, waiting = 1000 * number, "waiting for " + "client 7, " * (number % 3 * 10)
            write(file, Snapshot(3, 5, "training", 10, number % 11, 1, steps, waiting=waiting))
            screen.show("INFO :      not for people")
            screen.show(f"fednano | {line(number)}")
            time.sleep(0.03)
        if end == "raise":
            raise RuntimeError("the run broke")
        if end == "interrupt":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
