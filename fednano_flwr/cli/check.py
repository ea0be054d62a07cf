"""`fednano check`: whether a model's two halves, put together, are the model."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated

import typer

from fednano_flwr.base.console import human_bytes, table
from fednano_flwr.cli.options import (
    FAILED,
    FamilyChoice,
    Revision,
    exit_status,
    notice,
    say_proxies,
)
from fednano_flwr.config import Model

if TYPE_CHECKING:
    from fednano_flwr.check.command import Checked

command = typer.Typer()


@command.command(
    epilog="Example: fednano check llava-hf/vip-llava-7b-hf --family auto. "
    "What is compared: docs/models.md.",
)
def check(
    model: Annotated[
        str,
        typer.Argument(help="Hub id, or a folder with config and processor; weights are optional."),
    ],
    family: FamilyChoice = None,
    revision: Revision = "",
) -> None:
    """Compare a model cut in two halves with the whole model.

    Logits, loss, adapters' gradients and generated answers have to be the same, in float32, on
    questions with no picture, one and several. Where the whole model does not fit this machine's
    memory, or MODEL has no weights, a small random model of its architecture is compared.

    Exits with 0 if they are the same, 1 if they are not, and 2 if there is no such model or it
    cannot be cut. A run with model.family=auto needs a check that has passed.
    """
    # Imported here: it brings torch, which `fednano --help` must not wait for.
    from fednano_flwr.check.command import check as compare_halves
    from fednano_flwr.check.compare import HalvesError

    with exit_status(failures=(HalvesError, MemoryError)):
        say_proxies()
        checked = compare_halves(Model(model, revision, family or ""), notice)
        typer.echo(shown(checked))
    failed = [one for one in checked.comparison.differences if not one.passed]
    for one in failed:
        typer.echo(
            f"error: {one.name}: {one.found:.2g}; at most {one.limit:g} is rounding", err=True
        )
    if failed:
        raise typer.Exit(FAILED)


def shown(checked: Checked) -> str:
    """What was found, for people."""
    found = checked.comparison
    differences = [
        (one.name, f"{one.found:.2g}", f"{one.limit:g}", "ok" if one.passed else "FAILED")
        for one in found.differences
    ]
    costs = [(one.name, human_bytes(one.nbytes), f"{one.seconds:.2f} s") for one in found.costs]
    which = (
        "a small random model of its architecture" if checked.shrunk else "the checkpoint itself"
    )
    lines = [
        f"family {checked.family}, {checked.architecture}; compared was {which}",
        table("largest differences", ("", "found", "limit", ""), differences),
        table("in float32", ("", "memory", "a step"), costs),
        *(_tokens(kind, counts) for kind, counts in found.file_tokens.items()),
        *(f"left out: {reason}" for reason in found.left_out),
    ]
    if found.passed and checked.shrunk:
        lines.append(f"passed, for the architecture only: {checked.shrunk}")
    elif found.passed:
        lines.append("passed")
    return "\n".join(lines)


def _tokens(kind: str, counts: Collection[int]) -> str:
    fewest, most = min(counts), max(counts)
    return f"tokens of a {kind}: {fewest}" + (f" to {most}" if most > fewest else "")
