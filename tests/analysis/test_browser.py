"""The pages as a browser shows them, opened from the disk."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.analysis.conftest import Reports
from tests.browser import chromium

PHONE, DESK = (390, 844), (1280, 900)
CONTRAST = """
() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => {
    const [r, g, b] = numbers(text).map(c => c / 255)
      .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const found = getComputedStyle(e).backgroundColor;
      if (numbers(found)[3] !== 0) return found;
    }
    return "rgb(255, 255, 255)";
  };
  const words = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  return [...document.querySelectorAll("main *")].filter(words).map(e => {
    const style = getComputedStyle(e);
    const pair = [e.tagName === "text" ? style.fill : style.color, ground(e)].map(light);
    const [low, high] = pair[0] < pair[1] ? pair : [pair[1], pair[0]];
    return [(high + 0.05) / (low + 0.05), `${e.tagName} ${e.textContent.slice(0, 40)}`];
  });
}
"""
"""Of every text, its contrast with the ground behind it (WCAG 2), and which it is."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@contextmanager
def opened(browser: Any, file: Path, size: tuple[int, int], scheme: str = "light") -> Iterator[Any]:
    """The page, unfolded, with what it said and asked for in `page.noise`."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme
    )
    page = context.new_page()
    page.noise = []
    page.on("console", lambda message: page.noise.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: page.noise.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (page.noise.append("a dialog"), dialog.dismiss()))
    page.on("request", lambda request: page.noise.append(f"request: {request.url}"))
    page.goto(file.as_uri())
    page.eval_on_selector_all("details", "all => all.forEach(e => e.open = true)")
    yield page
    context.close()


def test_a_page_asks_for_nothing_and_complains_of_nothing(browser: Any, reports: Reports) -> None:
    for file in reports.pages:
        with opened(browser, file, DESK) as page:
            own = (f"request: {file.as_uri()}", "request: data:")
            assert page.noise and not [what for what in page.noise if not what.startswith(own)]


def test_every_figure_is_drawn_on_a_phone_and_its_name_says_what_it_shows(
    browser: Any, reports: Reports
) -> None:
    for file in reports.pages:
        with opened(browser, file, PHONE) as page:
            figures = page.query_selector_all("figure [role=img]")
            assert len(figures) == file.read_text().count("<figure")
            for figure in figures:
                name, box = figure.get_attribute("aria-label"), figure.bounding_box()
                assert box["width"] > 250 and box["height"] > 80, name
                seen = Image.open(io.BytesIO(figure.screenshot())).convert("L").getcolors()
                most = max(count for count, _ in seen) / sum(count for count, _ in seen)
                assert most < 0.98, name
                assert any(map(str.isdigit, name))


def test_a_page_never_scrolls_sideways_and_tables_do_within(browser: Any, reports: Reports) -> None:
    wide = "all => all.filter(e => e.scrollWidth > e.clientWidth).length"
    for file in reports.pages:
        for size in (PHONE, DESK):
            with opened(browser, file, size) as page:
                assert page.evaluate("document.documentElement.scrollWidth") <= size[0], file
                assert size == DESK or page.eval_on_selector_all(".scroll", wide) > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(scheme: str, browser: Any, reports: Reports) -> None:
    grounds = set()
    for file in reports.pages:
        with opened(browser, file, PHONE, scheme) as page:
            found = page.evaluate(CONTRAST)
            assert sum(what.startswith("text ") for _, what in found) > 10
            assert [(ratio, what) for ratio, what in found if ratio < 4.5] == []
            grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == {{"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]}


def test_no_label_of_a_figure_is_cut_off_or_lies_on_another(browser: Any, reports: Reports) -> None:
    boxes = """
      figure => [figure.querySelector("svg"), ...figure.querySelectorAll("text")]
        .map(e => e.getBoundingClientRect()).map(b => [b.left, b.top, b.right, b.bottom])
    """
    for file in reports.pages:
        with opened(browser, file, DESK) as page:
            for figure in page.query_selector_all("figure"):
                (left, top, right, bottom), *texts = figure.evaluate(boxes)
                where = (file, figure.get_attribute("id"))
                for box in texts:
                    assert box[0] >= left - 1 and box[1] >= top - 1, where
                    assert box[2] <= right + 1 and box[3] <= bottom + 1, where
                for one, two in itertools.combinations(texts, 2):
                    wide = min(one[2], two[2]) - max(one[0], two[0])
                    high = min(one[3], two[3]) - max(one[1], two[1])
                    assert wide < 3 or high < 4, (*where, one, two)
