"""The page, as a browser shows it; skipped where Gradio or Chromium are not there."""

from __future__ import annotations

import shutil

import pytest

from fednano_flwr.ask.opening import open_asker
from fednano_flwr.ask.web import both, page
from fednano_flwr.config import ConfigError
from tests.ask.conftest import Asked

QUESTION = "w20 w21 ?"


def test_both_models_are_shown_as_their_answers_grow(asked: Asked) -> None:
    with open_asker(asked.run) as asker:
        asker.tuned.encoder.ends = set()
        shown = list(both(asker, str(asked.picture), QUESTION, "", ""))
        assert len(shown) == 16 and not shown[0][1]
        assert (
            shown[7][0] == shown[-1][0] == asker.answer(QUESTION, asked.picture, (), "", True).text
        )
        assert shown[-1][1] == asker.answer(QUESTION, asked.picture).text != shown[-1][0]
        closed = list(both(asker, None, QUESTION, "w30\nw31\n", ""))
        assert len(closed) == 2 and all("A. w30" in one for one in closed[-1])


def test_without_gradio_it_is_said_what_to_install(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    with open_asker(asked.run) as asker, pytest.raises(ConfigError, match=r"fednano-flwr\[web\]"):
        page(asker, "t")


def test_a_browser_shows_the_frozen_and_the_tuned_answer_side_by_side(asked: Asked) -> None:
    pytest.importorskip("gradio", reason="Gradio (the extra `web`) is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    from fednano_flwr.ask.web import showing

    choices = ("w30", "w31", "w32")
    with open_asker(asked.run) as asker:
        expected = [
            asker.answer(QUESTION, asked.picture, choices, "", frozen).text
            for frozen in (True, False)
        ]
        with showing(asker, "tiny") as address, playwright.sync_playwright() as tool:
            assert address.startswith("http://127.0.0.1:")
            browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            view = browser.new_page()
            elsewhere: list[str] = []
            view.on(
                "request",
                lambda r: (
                    elsewhere.append(r.url)
                    if not r.url.startswith((address, "data:", "blob:"))
                    else None
                ),
            )
            view.goto(address)
            view.get_by_label("Question").fill(QUESTION)
            view.get_by_label("Choices").fill("\n".join(choices))
            view.set_input_files("input[type=file]", str(asked.picture))
            view.locator("img[alt]").first.wait_for()
            view.get_by_role("button", name="Ask").click()
            for name, text in zip(("frozen", "tuned"), expected, strict=True):
                box = view.locator(f"#{name} textarea")
                view.wait_for_function(
                    "name => document.querySelector(`#${name} textarea`).value", arg=name
                )
                assert box.input_value().startswith(f"{text}\n")
            browser.close()
            assert not elsewhere
