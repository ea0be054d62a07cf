"""`fednano web`: a page on this machine that asks the frozen and the tuned model side by side.

Needs the extra `web` (Gradio). Nothing is fetched from elsewhere, and nobody is told of its use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fednano_flwr.ask.asker import Answer, Asker, AskError
from fednano_flwr.ask.terminal import as_table
from fednano_flwr.config import ConfigError
from fednano_flwr.config.proxies import spare_this_machine
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.images import open_image
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.table import Questions
from fednano_flwr.exchange.errors import HostRefusedError, HostUnreachableError
from fednano_flwr.models.edge_half import MissingRowError

HERE = "127.0.0.1"
KEPT_SECONDS = 600
"""How long a picture that was given to the page lies in Gradio's temporary folder."""
COLUMNS = "#frozen textarea, #tuned textarea { font-family: monospace; }"
COLUMN_WIDTH = 280
"""Pixels below which the two answers stand one below the other."""
Shown = tuple[str, str]
"""What the frozen and the tuned model's boxes show."""


def both(
    asker: Asker, image: str | None, question: str, choices: str, hint: str
) -> Iterator[Shown]:
    """What to show, again and again as answers grow; at first nothing.

    Args:
        choices: one a line; without, the answers are free.

    Raises:
        AskError: the question cannot be asked.
    """
    lines = [line for line in choices.splitlines() if line.strip()]
    shown = {True: "", False: ""}
    yield "", ""
    if image and not Path(image).exists():
        raise AskError(
            f"the picture is here no more: one is kept for {KEPT_SECONDS // 60} minutes; give it "
            "again"
        )
    for frozen in shown:
        if lines:
            answer = asker.answer(question, image, lines, hint, frozen)
            shown[frozen] = f"{answer.text}\n\n{as_table(lines, answer.probabilities)}"
        else:
            whole: list[Answer] = []
            for piece in asker.stream(question, image, hint, frozen, whole.append):
                shown[frozen] += piece
                yield shown[True], shown[False]
            (answer,) = whole
        shown[frozen] += "".join(f"\n\nnote: {note}" for note in answer.notes)
        yield shown[True], shown[False]


def page(
    asker: Asker, title: str, folder: Path, offered: Sequence[Sequence[str | None]] = ()
) -> Any:
    """The page, as Gradio's `Blocks`.

    Args:
        folder: pictures that the page is given lie in it, and no others are opened.
        offered: questions to fill in: picture's file, question, choices, context, right answer.

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

    def answered(
        image: dict[str, Any] | None, question: str, choices: str, hint: str
    ) -> Iterator[Shown]:
        try:
            yield from both(asker, given(image, folder), question, choices, hint)
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
            frozen, tuned = (
                gradio.Textbox(label=label, lines=8, elem_id=name, min_width=COLUMN_WIDTH)
                for label, name in (("Frozen model", "frozen"), ("Tuned model", "tuned"))
            )
        asked, shown = [image, question, choices, hint], [frozen, tuned]
        gradio.on(
            [ask.click, question.submit],
            answered,
            asked,
            shown,
            concurrency_limit=1,
            preprocess=False,  # the picture is opened as a run opens it, and by nobody else
        )
        if offered:
            right = gradio.Textbox(label="Right answer", elem_id="right", interactive=False)
            gradio.Examples(
                [list(values) for values in offered], [*asked, right], label="Test questions"
            )
            changed = [question.input, choices.input, image.upload, image.clear]
            gradio.on(changed, lambda: "", None, right, queue=False)  # not known of another one
    return blocks


def given(image: Mapping[str, Any] | None, folder: Path) -> str | None:
    """The file of a picture that the page was given: who asks says where, and may say anything.

    Raises:
        AskError: it is another file of this machine.
    """
    if image is None:
        return None
    path = Path(str(image.get("path"))).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise AskError("only pictures that were given to this page can be asked about")
    return str(path)


def spread(questions: Questions, count: int) -> list[Sample]:
    """At most so many, evenly spread, that the page can ask: no sound, one turn and picture."""
    step = max(1, len(questions) // max(1, count))
    found = (questions[index] for index in range(0, len(questions), step))
    return [s for s in found if max(len(s.pictures), len(s.turns)) < 2 and not s.sounds][:count]


def _offered(samples: Sequence[Sample], folder: Path) -> list[tuple[str | None, ...]]:
    """What fills in these questions; their pictures are put into the folder."""
    values: list[tuple[str | None, ...]] = []
    for number, sample in enumerate(samples):
        picture = None
        if sample.images:
            picture = str(folder / f"{number}.png")
            try:
                open_image(sample.images[0]).save(picture)
            except (FileNotFoundError, DataError):
                continue  # the run left it out as well
        right = sample.free_answer if sample.answer is None else sample.choices[sample.answer]
        choices = "\n".join(sample.choices)
        values.append((picture, sample.question, choices, sample.context, right))
    return values


@contextmanager
def showing(
    asker: Asker, title: str, port: int = 0, samples: Sequence[Sample] = ()
) -> Iterator[str]:
    """The page is up, for this machine only, while the block runs; yields its address.

    Args:
        port: 0: a free one.
        samples: questions of the run's data to offer.

    Raises:
        ConfigError: Gradio is not installed.
        OSError: the port is taken.
    """
    spare_this_machine(os.environ)  # Gradio looks at its own page before it says that it is up
    with TemporaryDirectory(prefix="fednano-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        blocks = page(asker, title, Path(folder), _offered(samples, Path(folder)))
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
