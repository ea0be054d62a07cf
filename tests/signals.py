"""Signals as a user's terminal sends them."""

from __future__ import annotations

import signal


def interruptible() -> None:
    """For `preexec_fn`: what a shell starts in the background ignores SIGINT, a user's does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
