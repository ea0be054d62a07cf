"""`fednano web`: a page on this machine that asks the frozen and the tuned model side by side.

Needs the extra `web` (Gradio). Nothing is fetched from elsewhere, and nobody is told of its use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fednano_flwr.ask.command import as_table
from fednano_flwr.ask.session import Asker, AskError
from fednano_flwr.config import ConfigError
from fednano_flwr.exchange.protocol import HostRefusedError, HostUnreachableError
from fednano_flwr.models.token_table import MissingRowError

HERE = "127.0.0.1"
KEPT_SECONDS = 600
"""How long a picture that was given to the page lies in Gradio's temporary folder."""
COLUMNS = "#frozen textarea, #tuned textarea { font-family: monospace; }"
Shown = tuple[str, str]
"""What the frozen and the tuned model's boxes show."""


def both(
    asker: Asker, image: str | None, question: str, choices: str, hint: str
) -> Iterator[Shown]:
    """What to show, again and again as answers grow.

    Args:
        choices: one a line; without, the answers are free.

    Raises:
        AskError: the question cannot be asked.
    """
    lines = [line for line in choices.splitlines() if line.strip()]
    shown = {True: "", False: ""}
    for frozen in shown:
        if lines:
            answer = asker.answer(question, image, lines, hint, frozen)
            shown[frozen] = f"{answer.text}\n\n{as_table(lines, answer.probabilities)}"
            yield shown[True], shown[False]
            continue
        for piece in asker.stream(question, image, hint, frozen):
            shown[frozen] += piece
            yield shown[True], shown[False]


def page(asker: Asker, title: str) -> Any:
    """The page, as Gradio's `Blocks`.

    Raises:
        ConfigError: Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(
            f"fednano web needs Gradio ({error}): pip install 'fednano-flwr[web]'"
        ) from None

    def answered(image: str | None, question: str, choices: str, hint: str) -> Iterator[Shown]:
        try:
            yield from both(asker, image, question, choices, hint)
        except (AskError, MissingRowError, HostRefusedError, HostUnreachableError) as error:
            raise gradio.Error(str(error)) from None

    with gradio.Blocks(
        title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as blocks:
        gradio.Markdown(f"## {title}")
        with gradio.Row():
            image = gradio.Image(
                type="filepath", label="Picture", height=320, sources=["upload", "clipboard"]
            )
            with gradio.Column():
                question = gradio.Textbox(label="Question", autofocus=True)
                choices = gradio.Textbox(label="Choices, one a line (none: a free answer)", lines=4)
                hint = gradio.Textbox(label="Context")
                ask = gradio.Button("Ask", variant="primary")
        with gradio.Row():
            frozen = gradio.Textbox(label="Frozen model", lines=8, elem_id="frozen")
            tuned = gradio.Textbox(label="Tuned model", lines=8, elem_id="tuned")
        asked, shown = [image, question, choices, hint], [frozen, tuned]
        gradio.on([ask.click, question.submit], answered, asked, shown, concurrency_limit=1)
    return blocks


@contextmanager
def showing(asker: Asker, title: str, port: int = 0) -> Iterator[str]:
    """The page is up, for this machine only, while the block runs; yields its address.

    Args:
        port: 0: a free one.

    Raises:
        ConfigError: Gradio is not installed.
        OSError: the port is taken.
    """
    blocks = page(asker, title)
    import gradio

    theme = gradio.themes.Base(font=["system-ui"], font_mono=["monospace"])
    _, address, _ = blocks.launch(
        server_name=HERE,
        server_port=port or None,
        theme=theme,
        css=COLUMNS,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
    )
    try:
        yield address
    finally:
        blocks.close()
