"""The page, as a browser shows it; skipped where Gradio or Chromium are not there."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fednano_flwr.ask.command import as_table
from fednano_flwr.ask.examples import right_answer, shared_questions, spread
from fednano_flwr.ask.opening import open_asker
from fednano_flwr.ask.session import AskError
from fednano_flwr.ask.web import both, given, page, showing
from fednano_flwr.config import ConfigError
from fednano_flwr.runs.results import load_run
from tests.ask.conftest import Asked
from tests.browser import chromium

QUESTION = "w20 w21 ?"
BOXES = ("frozen", "tuned")
PHONE, DESK = (390, 844), (1280, 900)


def test_both_models_are_shown_as_their_answers_grow(asked: Asked) -> None:
    with open_asker(asked.run) as asker:
        asker.tuned.encoder.ends, asker.max_tokens = set(), 8
        boxes, *shown = both(asker, str(asked.picture), QUESTION, "", "")
        assert boxes == ("", "")  # nothing of the question before
        frozen = asker.answer(QUESTION, asked.picture, (), "", True).text
        tuned = asker.answer(QUESTION, asked.picture).text
        note = "\n\nnote: cut after 8 tokens; --max-tokens N lets it go on"
        assert len(shown) == 18 and not shown[8][1] and shown[7][0] == frozen != tuned
        assert shown[-1] == (frozen + note, tuned + note)
        closed = list(both(asker, None, QUESTION, "w30\nw31\n", ""))
        assert len(closed) == 3 and all("A. w30" in one for one in closed[-1])


def test_a_picture_that_has_been_deleted_is_asked_for_again(asked: Asked, tmp_path: Path) -> None:
    with open_asker(asked.run) as asker:
        shown = both(asker, str(tmp_path / "gone.png"), QUESTION, "", "")
        assert next(shown) == ("", "")
        with pytest.raises(AskError, match=r"kept for 10 minutes; give it again"):
            next(shown)


def test_without_gradio_it_is_said_what_to_install(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    with open_asker(asked.run) as asker, pytest.raises(ConfigError, match=r"fednano-flwr\[web\]"):
        page(asker, "t", tmp_path)


def test_the_page_comes_up_whatever_proxy_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    nobody: Any = None
    with showing(nobody, "t") as address:
        assert address.startswith("http://127.0.0.1:")


def test_only_pictures_that_the_page_was_given_are_opened(tmp_path: Path) -> None:
    inside, outside = tmp_path / "given" / "a.png", tmp_path / "private.png"
    folder = inside.parent
    assert given(None, folder) is None
    assert given({"path": str(inside)}, folder) == str(inside.resolve())
    for path in (outside, folder / ".." / "private.png", "/etc/hostname", None):
        with pytest.raises(AskError, match="given to this page"):
            given({"path": str(path)}, folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("gradio", reason="Gradio (the extra `web`) is not installed")
    with chromium() as started:
        yield started


@contextmanager
def opened(
    browser: Any, address: str, size: tuple[int, int] = DESK, scheme: str = "light"
) -> Iterator[Any]:
    """The page; it may ask for nothing elsewhere, and complain of nothing."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme
    )
    page = context.new_page()
    noise: list[str] = []
    page.on("pageerror", lambda error: noise.append(f"error: {error}"))
    page.on("console", lambda m: noise.append(m.text) if m.type == "error" else None)
    page.on(
        "request",
        lambda r: None if r.url.startswith((address, "data:", "blob:")) else noise.append(r.url),
    )
    page.goto(address)
    page.get_by_role("button", name="Ask").wait_for()
    yield page
    context.close()
    assert noise == []


def test_a_browser_shows_the_frozen_and_the_tuned_answer_side_by_side(
    asked: Asked, browser: Any
) -> None:
    choices = ("w30", "w31", "w32")
    with open_asker(asked.run) as asker:
        expected = [
            asker.answer(QUESTION, asked.picture, choices, "", frozen).text
            for frozen in (True, False)
        ]
        with showing(asker, "tiny") as address, opened(browser, address) as page:
            assert address.startswith("http://127.0.0.1:")
            page.get_by_label("Question").fill(QUESTION)
            page.get_by_label("Choices").fill("\n".join(choices))
            page.set_input_files("input[type=file]", str(asked.picture))
            page.locator("img[alt]").first.wait_for()
            page.get_by_role("button", name="Ask").click()
            assert both_boxes(page) == [f"{text}\n" for text in expected]
            left, right = (page.locator(f"#{name}").bounding_box() for name in BOXES)
            assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]


def test_a_test_question_is_asked_with_two_clicks_on_a_phone(asked: Asked, browser: Any) -> None:
    samples = spread(shared_questions(load_run(asked.run).config.dataset), 3)
    with open_asker(asked.run) as asker:
        wanted = [f"{asker.answer_sample(samples[2], frozen).text}\n" for frozen in (True, False)]
        with (
            showing(asker, "tiny", samples=samples) as address,
            opened(browser, address, PHONE, "dark") as page,
        ):
            page.get_by_text(samples[2].question).first.click()
            page.wait_for_function("document.querySelector('#right textarea').value")
            assert page.get_by_label("Question").input_value() == samples[2].question
            assert page.locator("#right textarea").input_value() == right_answer(samples[2])
            page.get_by_role("button", name="Ask").click()
            assert both_boxes(page) == wanted
            above, below = (page.locator(f"#{name}").bounding_box() for name in BOXES)
            assert above["y"] + above["height"] <= below["y"]
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert max(map(int, re.findall(r"\d+", ground)[:3])) < 60, ground
            page.get_by_label("Question").press_sequentially(" w21")
            page.wait_for_function("document.querySelector('#right textarea').value === ''")


def test_a_question_that_cannot_be_asked_says_why_on_the_page(asked: Asked, browser: Any) -> None:
    with (
        open_asker(asked.run) as asker,
        showing(asker, "tiny") as address,
        opened(browser, address) as page,
    ):
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_label("Choices").fill("w30\nw31")
        page.get_by_role("button", name="Ask").click()
        both_boxes(page)
        page.get_by_label("Choices").fill("w30")
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("1 choices; there can be 2 to").wait_for()
        assert [page.locator(f"#{name} textarea").input_value() for name in BOXES] == ["", ""]


def test_a_question_that_the_language_model_refuses_says_why_on_the_page(
    asked: Asked, browser: Any
) -> None:
    with (
        open_asker(asked.run, config=["llm.max-tokens=4"]) as asker,
        showing(asker, "tiny") as address,
        opened(browser, address) as page,
    ):
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("the host takes 4 (llm.max-tokens)").wait_for()


def test_a_picture_is_seen_on_the_page_as_in_a_run(
    asked: Asked, browser: Any, tmp_path: Path
) -> None:
    pixels = Image.open(asked.picture).convert("RGBA")
    pixels.putalpha(Image.linear_gradient("L").resize(pixels.size))
    pixels.save(tmp_path / "half.png")
    with (
        open_asker(asked.run) as asker,
        showing(asker, "tiny") as address,
        opened(browser, address) as page,
    ):
        opaque, half = (
            asker.answer(QUESTION, file, ("w30", "w31")).probabilities
            for file in (asked.picture, tmp_path / "half.png")
        )
        assert opaque != half
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_label("Choices").fill("w30\nw31")
        page.set_input_files("input[type=file]", str(tmp_path / "half.png"))
        page.locator("img[alt]").first.wait_for()
        page.get_by_role("button", name="Ask").click()
        both_boxes(page)
        assert as_table(("w30", "w31"), half) in page.locator("#tuned textarea").input_value()


def test_a_picture_that_has_been_deleted_under_the_page_is_asked_for_again(
    asked: Asked, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        open_asker(asked.run) as asker,
        showing(asker, "tiny") as address,
        opened(browser, address) as page,
    ):
        page.get_by_label("Question").fill(QUESTION)
        page.set_input_files("input[type=file]", str(asked.picture))
        page.locator("img[alt]").first.wait_for()
        given = list(tmp_path.rglob("*.png"))
        assert given
        for file in given:
            file.unlink()
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("one is kept for 10 minutes; give it again").wait_for()


def both_boxes(page: Any) -> list[str]:
    """The first line that each model's box shows, as soon as both show something."""
    for name in BOXES:
        page.wait_for_function(
            "name => document.querySelector(`#${name} textarea`).value", arg=name
        )
    texts = [page.locator(f"#{name} textarea").input_value() for name in BOXES]
    return [text[: text.index("\n") + 1] for text in texts]
