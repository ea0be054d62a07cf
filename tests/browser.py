"""A headless browser for the tests that look at pages; skipped where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's browser, of the Chromium that the system has.

    Without one the test is skipped, or fails where FEDNANO_TEST_BROWSER is set: there it has to
    run.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        missing = f"no browser here: none of {', '.join(NAMES)} is installed"
        (pytest.fail if os.environ.get("FEDNANO_TEST_BROWSER") else pytest.skip)(missing)
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=SWITCHES)
        yield started
        started.close()
