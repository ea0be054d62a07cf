"""A figure and its words; as SVG in a page, in the page's colours, or as files of its own."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from fednano_flwr.analysis.canvas import FAINT, INK, LOOKS

PAGE_INK, PAGE_FAINT = "currentColor", "var(--faint)"


@dataclass(frozen=True)
class Picture:
    """A figure and its words, or why there is no figure.

    Attributes:
        name: of its files.
        figure: None where it is not drawn.
        words: what it shows, with numbers, for readers who cannot see it.
        note: how to read it.
        reason: why it is not drawn.
    """

    name: str
    title: str
    figure: Figure | None = None
    words: str = ""
    note: str = ""
    reason: str = ""

    @cached_property
    def svg(self) -> str:
        """An <svg> element whose ids are its own on a page with others."""
        text = self._saved("svg", transparent=True, metadata={"Date": None}).decode()
        text = text[text.index("<svg") :].strip()
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
        text = re.sub(r' id="([^"]+)"', rf' id="{self.name}-\1"', text)
        text = re.sub(r'(href="|url\()#', rf"\1#{self.name}-", text)
        return text.replace(INK, PAGE_INK).replace(FAINT, PAGE_FAINT)

    def files(self) -> dict[str, bytes]:
        """By suffix: an SVG in fixed colours, which every program draws, and a PNG; on white."""
        size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', self.svg)
        assert size is not None, "matplotlib gives every figure a viewBox"
        start = f'<svg width="{size[1]}pt" height="{size[2]}pt" '
        text = self.svg.replace("<svg ", start, 1).replace(PAGE_INK, INK).replace(PAGE_FAINT, FAINT)
        ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
        text = re.sub(r"(<svg[^>]*>)", rf"\1{ground}", text, count=1) + "\n"
        return {"svg": text.encode(), "png": self._saved("png", dpi=150, facecolor="white")}

    def _saved(self, kind: str, **options: Any) -> bytes:
        assert self.figure is not None, self.reason
        with rc_context({**LOOKS, "svg.hashsalt": self.name}):
            out = io.BytesIO()
            self.figure.savefig(out, format=kind, **options)
            self.figure.set_layout_engine("none")  # the layout of the first file is kept
        return out.getvalue()
