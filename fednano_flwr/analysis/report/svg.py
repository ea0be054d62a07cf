"""A figure as a file: an SVG within a page, in the page's colours, or an SVG or PNG of its own."""

from __future__ import annotations

import io
import re

from matplotlib import rc_context

from fednano_flwr.analysis.report.canvas import FAINT, INK, LOOKS, Picture

PAGE_INK, PAGE_FAINT = "currentColor", "var(--faint)"


def inline(picture: Picture) -> str:
    """An <svg> element whose ids are its own on a page with others."""
    with rc_context({**LOOKS, "svg.hashsalt": picture.name}):
        out = io.StringIO()
        picture.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        picture.figure.set_layout_engine("none")  # what it has done is kept
    text = out.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' id="([^"]+)"', rf' id="{picture.name}-\1"', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{picture.name}-", text)
    return text.replace(INK, PAGE_INK).replace(FAINT, PAGE_FAINT)


def alone(inlined: str) -> str:
    """The same as a file of its own: on white and in fixed colours, which every program draws."""
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', inlined)
    assert size is not None, "matplotlib gives every figure a viewBox"
    start = f'<svg width="{size[1]}pt" height="{size[2]}pt" '
    text = inlined.replace("<svg ", start, 1).replace(PAGE_INK, INK).replace(PAGE_FAINT, FAINT)
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return re.sub(r"(<svg[^>]*>)", rf"\1{ground}", text, count=1) + "\n"


def png(picture: Picture) -> bytes:
    """The figure on white, 150 dots an inch."""
    with rc_context(LOOKS):
        out = io.BytesIO()
        picture.figure.savefig(out, format="png", dpi=150, facecolor="white")
    return out.getvalue()
