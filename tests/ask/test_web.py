"""The page, as a browser shows it; skipped where Gradio or Chromium are not there."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fednano_flwr.ask.asker import Asker, AskError
from fednano_flwr.ask.opening import open_asker, shared_questions
from fednano_flwr.ask.terminal import as_table
from fednano_flwr.ask.web import _offered, both, given, page, showing, spread
from fednano_flwr.config import ConfigError
from fednano_flwr.data.sample import Picture, Sample, Sound, Turn
from fednano_flwr.data.table import in_memory
from tests.ask.conftest import CHOICES, QUESTION, Asked
from tests.browser import chromium

BOXES = ("frozen", "tuned")
PHONE, DESK = (390, 844), (1280, 900)


def test_both_models_are_shown_as_their_answers_grow(asked: Asked, asker: Asker) -> None:
    boxes, *shown = both(asker, str(asked.picture), QUESTION, "", "")
    assert boxes == ("", "")  # nothing of the question before
    frozen = asker.answer(QUESTION, asked.picture, (), "", True).text
    tuned = asker.answer(QUESTION, asked.picture).text
    note = "\n\nnote: cut after 8 tokens; --max-tokens N lets it go on"
    assert len(shown) == 18 and not shown[8][1] and shown[7][0] == frozen != tuned
    assert shown[-1] == (frozen + note, tuned + note)
    closed = list(both(asker, None, QUESTION, "w30\nw31\n", ""))
    assert len(closed) == 3 and all("A. w30" in one for one in closed[-1])


def test_without_gradio_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    nobody: Any = None
    with pytest.raises(ConfigError, match=r"fednano-flwr\[web\]"):
        page(nobody, "t", tmp_path)


def test_only_pictures_that_the_page_was_given_are_opened(tmp_path: Path) -> None:
    inside, outside = tmp_path / "given" / "a.png", tmp_path / "private.png"
    folder = inside.parent
    assert given(None, folder) is None
    assert given({"path": str(inside)}, folder) == str(inside.resolve())
    for path in (outside, folder / ".." / "private.png", "/etc/hostname", None):
        with pytest.raises(AskError, match="given to this page"):
            given({"path": str(path)}, folder)


def test_offered_questions_are_spread_and_have_no_more_than_the_page_can_ask(
    tmp_path: Path,
) -> None:
    samples = [Sample(str(n), "?", "g", "s", free_answer="x") for n in range(24)]
    questions = in_memory(samples)
    assert [sample.uid for sample in spread(questions, 6)] == ["0", "4", "8", "12", "16", "20"]
    assert len(spread(questions, 100)) == 24 and not spread(questions[:0], 6)
    good = tmp_path / "good.png"
    Image.new("RGB", (4, 4)).save(good)
    one, gone = Picture(path=good), Picture(path=tmp_path / "gone.png")
    for pictures in ({"images": (one, one)}, {"choice_images": (one, one)}):
        assert not spread(in_memory([Sample("0", "?", "g", "s", answer=0, **pictures)]), 6)
    system = (Turn("system", ("Be brief.",)), Turn("user", ("?",)))
    for more in ({"sounds": (Sound(data=b"w"),)}, {"turns": system}):
        assert not spread(in_memory([Sample("0", "?", "g", "s", free_answer="x", **more)]), 6)
    samples = [
        Sample("1", "?", "g", "s", ("a", "b"), answer=1, images=(picture,))
        for picture in (gone, one)
    ]
    assert [values[1:] for values in _offered(samples, tmp_path)] == [("?", "a\nb", "", "b")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("gradio", reason="Gradio (the extra `web`) is not installed")
    with chromium() as started:
        yield started


@contextmanager
def opened(
    browser: Any,
    asked: Asked,
    samples: Sequence[Sample] = (),
    config: Sequence[str] = (),
    size: tuple[int, int] = DESK,
    scheme: str = "light",
) -> Iterator[tuple[Asker, Any]]:
    """The page of a run; it may ask for nothing elsewhere, and complain of nothing."""
    noise: list[str] = []
    with (
        open_asker(asked.run, config=config) as asker,
        showing(asker, "tiny", samples=samples) as address,
    ):
        assert address.startswith("http://127.0.0.1:")
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        page = context.new_page()
        page.on("pageerror", lambda error: noise.append(f"error: {error}"))
        page.on("console", lambda m: noise.append(m.text) if m.type == "error" else None)
        own = (address, "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(own) else noise.append(r.url))
        page.goto(address)
        page.get_by_role("button", name="Ask").wait_for()
        yield asker, page
        context.close()
    assert noise == []


def ask(page: Any, choices: Sequence[str] = (), picture: Path | None = None) -> None:
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_label("Choices").fill("\n".join(choices))
    if picture:
        page.set_input_files("input[type=file]", str(picture))
        page.locator("img[alt]").first.wait_for()
    page.get_by_role("button", name="Ask").click()


def both_boxes(page: Any) -> list[str]:
    """What each model's box shows, as soon as both show something."""
    for name in BOXES:
        page.wait_for_function(
            "name => document.querySelector(`#${name} textarea`).value", arg=name
        )
    return [page.locator(f"#{name} textarea").input_value() for name in BOXES]


def test_the_frozen_and_the_tuned_answer_are_shown_side_by_side_whatever_proxy_is_set(
    asked: Asked, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    with opened(browser, asked) as (asker, page):
        ask(page, CHOICES, asked.picture)
        for frozen, text in zip((True, False), both_boxes(page), strict=True):
            answer = asker.answer(QUESTION, asked.picture, CHOICES, "", frozen)
            assert text == f"{answer.text}\n\n{as_table(CHOICES, answer.probabilities)}"
        left, right = (page.locator(f"#{name}").bounding_box() for name in BOXES)
        assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]


def test_a_test_question_is_asked_with_two_clicks_on_a_phone(asked: Asked, browser: Any) -> None:
    samples = spread(shared_questions(asked.run), 3)
    sample = samples[2]
    with opened(browser, asked, samples, size=PHONE, scheme="dark") as (asker, page):
        page.get_by_text(sample.question).first.click()
        page.wait_for_function("document.querySelector('#right textarea').value")
        assert page.get_by_label("Question").input_value() == sample.question
        right = page.locator("#right textarea").input_value()
        assert right == sample.option_names[sample.answer]
        page.get_by_role("button", name="Ask").click()
        for frozen, text in zip((True, False), both_boxes(page), strict=True):
            assert text.splitlines()[0] == asker.answer_sample(sample, frozen).text
        above, below = (page.locator(f"#{name}").bounding_box() for name in BOXES)
        assert above["y"] + above["height"] <= below["y"]
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", ground)[:3])) < 60, ground
        page.get_by_label("Question").press_sequentially(" w21")
        page.wait_for_function("document.querySelector('#right textarea').value === ''")


def test_a_question_that_cannot_be_asked_says_why_on_the_page(asked: Asked, browser: Any) -> None:
    with opened(browser, asked) as (_, page):
        ask(page, ("w30", "w31"))
        both_boxes(page)
        ask(page, ("w30",))
        page.get_by_text("1 choices; there can be 2 to").wait_for()
        assert [page.locator(f"#{name} textarea").input_value() for name in BOXES] == ["", ""]


def test_a_question_that_the_language_model_refuses_says_why_on_the_page(
    asked: Asked, browser: Any
) -> None:
    with opened(browser, asked, config=["llm.max-tokens=4"]) as (_, page):
        ask(page)
        page.get_by_text("4 (llm.max-tokens)").wait_for()


def test_a_picture_is_seen_on_the_page_as_in_a_run_until_it_is_deleted(
    asked: Asked, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With transparency, which Gradio would flatten otherwise."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pixels = Image.open(asked.picture).convert("RGBA")
    pixels.putalpha(Image.linear_gradient("L").resize(pixels.size))
    half = tmp_path / "half.png"
    pixels.save(half)
    with opened(browser, asked) as (asker, page):
        opaque, expected = (
            asker.answer(QUESTION, file, CHOICES).probabilities for file in (asked.picture, half)
        )
        assert opaque != expected
        ask(page, CHOICES, half)
        assert as_table(CHOICES, expected) in both_boxes(page)[1]
        uploaded = [file for file in tmp_path.rglob("*.png") if file != half]
        assert uploaded
        for file in uploaded:
            file.unlink()
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("one is kept for 10 minutes; give it again").wait_for()
