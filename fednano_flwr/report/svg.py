"""A figure as text of an SVG: transparent, in the colours of the page that it stands in."""

from __future__ import annotations

import io
import re

from matplotlib import rc_context

from fednano_flwr.report.canvas import FAINT, INK, LOOKS, Picture

ALONE = (
    "<style>:root{color:#1c1d1e;--faint:#d6d7d8}"
    "@media (prefers-color-scheme:dark){:root{color:#eceef0;--faint:#3c4248}}</style>"
)
"""Colours of a file that no page surrounds."""


def inline(picture: Picture) -> str:
    """An <svg> element whose ids are its own on a page with others."""
    with rc_context({**LOOKS, "svg.hashsalt": picture.name}):
        out = io.StringIO()
        picture.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' id="([^"]+)"', rf' id="{picture.name}-\1"', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{picture.name}-", text)
    return text.replace(INK, "currentColor").replace(FAINT, "var(--faint)")


def file(picture: Picture) -> str:
    """The same as a file of its own, which follows the reader's light or dark mode."""
    return re.sub(r"(<svg[^>]*>)", rf"\1{ALONE}", inline(picture), count=1) + "\n"


def png(picture: Picture) -> bytes:
    """The figure on white, 150 dots an inch."""
    with rc_context(LOOKS):
        out = io.BytesIO()
        picture.figure.savefig(out, format="png", dpi=150, facecolor="white")
    return out.getvalue()
