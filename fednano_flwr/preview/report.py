"""A preview for people: lines with a mark where the loss is, tables, shades."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from math import sqrt

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fednano_flwr.config import Dataset
from fednano_flwr.data.prompts import LETTERS
from fednano_flwr.data.sample import Sample
from fednano_flwr.preview.clients import Figures, Preview, Row
from fednano_flwr.preview.data import Data, counted
from fednano_flwr.preview.pieces import Piece

LOSS = "loss"
STYLES = {"text": "", "special": "dim", "image": "cyan", "audio": "cyan", "unknown": "yellow"}
LEARNED = "bold green"
SHADES = ("#deebf7", "#9ecae1", "#4292c6", "#2171b5")
MOST_CLIENTS, MOST_GROUPS = 12, 20
"""Of the table of groups: columns that fit on a screen, and rows."""


def show(preview: Preview, data: Data, rows: int, out: Console) -> bool:
    """All of it; whether every client can go on with what it has."""

    def write(lines: Iterable[Text]) -> None:
        for line in lines:
            out.print(line, soft_wrap=True)

    write(head(data))
    for client, shard in data.shards.items():
        for shown in preview.rows(shard.train, rows):
            write([Text(), *row(client, shown)])
    figures = _figures(preview, data)
    write([Text(), Text("tokens of question and right answer")])
    out.print(clients(figures))
    write(left_out(figures, data.dataset))
    if len({group for one in figures.values() for group in one.groups}) > 1:
        write([Text(), Text("training questions by group and client")])
        out.print(groups(figures))
    return not any(one.too_many for one in figures.values())


def _figures(preview: Preview, data: Data) -> dict[int, Figures]:
    from tqdm import tqdm

    total = sum(len(shard.train) + len(shard.test) for shard in data.shards.values())
    kept = data.dataset.max_skipped
    with tqdm(
        desc="counting tokens", total=total, unit=" questions", delay=1, disable=None, leave=False
    ) as bar:
        return {
            client: preview.figures(shard, kept, bar.update)
            for client, shard in data.shards.items()
        }


def console() -> Console:
    """Of the screen; where it goes elsewhere, as wide as tables need."""
    found = Console(highlight=False, markup=False, emoji=False)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = 110
    return found


def head(data: Data) -> Iterator[Text]:
    """What was read of what, and what no client gets."""
    yield _named("data", f"{data.dataset.name} in {data.place}")
    yield _named("metric", f"{data.metric} (dataset.metric = {data.dataset.metric})")
    alike = len({*data.columns.values()}) == 1
    for split, columns in list(data.columns.items())[: 1 if alike else None]:
        yield _named("columns", columns if alike else f"{split}: {columns}")
    for line in data.left_out:
        yield _named("left out", line, "yellow")
    if data.repeated:
        yield _named("repeated", counted("in training and test alike", data.repeated), "yellow")


def row(client: int, shown: Row) -> Iterator[Text]:
    """One row: its name, its tokens with marks, its right answer, options and other answers."""
    sample = shown.sample
    yield Text(f"client {client}, {sample.uid} ({sample.group})", "bold")
    if shown.left_out:
        yield _named("left out", shown.left_out, "yellow")
        return
    for learned, line in lines(shown.pieces):
        style = LEARNED if learned else "dim"
        yield Text.assemble((f"{LOSS if learned else '':4} | ", style), line)
    if shown.cut:
        yield _named("cut", "its text, to dataset.max-tokens", "yellow")
    yield from facts(sample, shown.pieces)


def lines(pieces: Iterable[Piece]) -> Iterator[tuple[bool, Text]]:
    """The text line by line; a part with the loss on it begins and ends a line."""
    line, learned = Text(), False
    for piece in pieces:
        if piece.learned != learned:
            if line:
                yield learned, line
            line, learned = Text(), piece.learned
        first, *rest = piece.text.split("\n")
        style = f"{LEARNED if learned else ''} {STYLES[piece.kind]}".strip()
        line.append(first, style)
        for text in rest:
            yield learned, line.append("↵", "dim")
            line = Text(text, style)
    if line:
        yield learned, line


def facts(sample: Sample, pieces: Iterable[Piece]) -> Iterator[Text]:
    """What the tokens do not show."""
    pieces = list(pieces)
    right = sample.free_answer
    if sample.answer is not None:
        right = sample.option_names[sample.answer]
        if lettered := sample.num_options <= len(LETTERS):
            right = f"{LETTERS[sample.answer]}. {right}"
        how = "letters" if lettered else "words"
        yield _named("options", f"{sample.num_options}, scored by their {how}")
    yield _named("answer", right)
    if sample.references:
        yield _named("also right", "; ".join(sample.references))
    for file in chain.from_iterable(sample.media.values()):
        yield _named(file.noun, str(file))
    total = sum(piece.tokens for piece in pieces)
    shown = "".join(
        f"{sum(piece.tokens for piece in pieces if piece.kind == site)} of {files[0].noun}s, "
        for site, files in sample.media.items()
    )
    learned = sum(piece.tokens for piece in pieces if piece.learned)
    yield _named("tokens", f"{total}: {shown}the loss on {learned}")
    if unknown := sum(piece.tokens for piece in pieces if piece.kind == "unknown"):
        yield _named(
            "unknown", f"{unknown} of them: the model's tokenizer knows no such word", "yellow"
        )


def clients(figures: Mapping[int, Figures]) -> Table:
    """A row a client."""
    table = Table()
    names = ("train", "test", "median", "95 %", "longest", "files", "left out")
    for name in ("", *names):
        table.add_column(name, justify="right" if name else "left")
    for client, one in figures.items():
        fewest, most = one.files
        files = str(most) if fewest == most else f"{fewest}–{most}"
        left_out = sum(map(len, one.left_out.values()))
        cells = (one.train, one.test, *one.tokens, files, left_out)
        table.add_row(f"client {client}", *map(str, cells))
    return table


def left_out(figures: Mapping[int, Figures], dataset: Dataset) -> Iterator[Text]:
    """What clients cut or cannot use, and whether they could go on without it."""
    for client, one in figures.items():
        if one.cut:
            text = f"client {client}: {one.cut} to dataset.max-tokens = {dataset.max_tokens}"
            yield _named("cut", text, "yellow")
        for reason, names in one.left_out.items():
            yield _named("left out", f"client {client}: {counted(reason, names)}", "yellow")
        if one.too_many:
            most = dataset.max_skipped
            what = f"client {client} would fail: dataset.max-skipped = {most:g} allows fewer"
            yield _named("problem", what, "bold red")


def groups(figures: Mapping[int, Figures]) -> Table:
    """Training questions by group and client, the largest groups first, shaded."""
    shown = list(figures)[:MOST_CLIENTS]
    counts = {
        group: [figures[client].groups.get(group, 0) for client in shown]
        for group in sorted({group for one in figures.values() for group in one.groups})
    }
    largest = sorted(counts, key=lambda group: -sum(counts[group]))
    most = max((max(row) for row in counts.values()), default=1)
    caption = [
        f"{n - m} more {what}"
        for n, m, what in (
            (len(figures), len(shown), "clients"),
            (len(largest), MOST_GROUPS, "groups"),
        )
        if n > m
    ]
    table = Table(caption=", ".join(caption) or None, caption_justify="left")
    table.add_column("group", overflow="fold")
    for client in shown:
        table.add_column(str(client), justify="right")
    for group in largest[:MOST_GROUPS]:
        table.add_row(group, *(_shaded(count, most) for count in counts[group]))
    return table


def _shaded(count: int, most: int) -> Text:
    if not count:
        return Text("")
    step = min(int(sqrt(count / most) * len(SHADES)), len(SHADES) - 1)
    return Text(str(count), f"{'black' if step < 2 else 'white'} on {SHADES[step]}")


def _named(name: str, text: str, style: str = "") -> Text:
    return Text.assemble((f"{name:11}", style or "dim"), text)
