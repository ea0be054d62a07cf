"""`fednano split`: write the client's half of a model as an edge bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from fednano_flwr.base.console import human_bytes
from fednano_flwr.cli.options import FamilyChoice, NewFolder, Revision, StoredAs, writing

if TYPE_CHECKING:
    from fednano_flwr.edge.encoder import QuestionEncoder
    from fednano_flwr.models.bundle import EdgeBundle

command = typer.Typer()


@command.command(
    "split",
    epilog="Example: fednano split llava-hf/llava-1.5-7b-hf --out edge-bundle --dtype bfloat16",
)
def split_command(
    model: Annotated[str, typer.Argument(help="Hub id, or folder of a model.")],
    out: NewFolder,
    shard: Annotated[
        Path | None,
        typer.Option(
            help="A client's folder by `fednano partition`: keep only its tokens' embeddings."
        ),
    ] = None,
    dtype: StoredAs = None,
    revision: Revision = "",
    family: FamilyChoice = None,
) -> None:
    """Write the client's half of a model, to be given to a client instead of the checkpoint.

    DIR holds vision encoder, connector, token embeddings, processor and a manifest; nothing of the
    language model. Give it to a SuperNode with --node-config 'edge-path="…/edge-bundle"', to a
    simulation with -c edge.bundle=edge-bundle.

    Exits with 0 if DIR is written, 1 if writing failed, 2 if the model cannot be split and 130 if
    it was interrupted; where it is not 0, nothing is left behind.
    """
    with writing(out):
        typer.echo(split(model, out.expanduser(), shard, dtype, revision, family or ""))


def split(
    model: str,
    out: Path,
    shard: Path | None,
    dtype: str | None,
    revision: str = "",
    family: str = "",
) -> str:
    """Write the bundle and say in words what it holds.

    Args:
        model: hub id, folder or `package:NAME/SUB`.
        shard: a folder that `fednano partition` wrote; only its tokens' embeddings are kept.
        dtype: to store the tensors in; None keeps the checkpoint's.
        revision: branch, tag or commit of a model on the hub.
        family: `model.family`.

    Raises:
        ConfigError: the model cannot be cut, lacks a tensor, or its processor does not fit it.
        DataError: `shard` is no shard.
        OutputError: `out` cannot be written.
    """
    # Imported here: they bring torch, which `fednano --help` must not wait for.
    import torch

    from fednano_flwr.edge.encoder import load_encoder
    from fednano_flwr.models.bundle import open_checkpoint
    from fednano_flwr.models.split import write_bundle

    checkpoint = open_checkpoint(model, revision, family)
    encoder = load_encoder(checkpoint)
    ids = _tokens(encoder, shard) if shard else None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("reading")
        bundle = write_bundle(
            checkpoint,
            out,
            ids,
            getattr(torch, dtype) if dtype else None,
            lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            ),
        )
    return describe(bundle, out)


def describe(bundle: EdgeBundle, out: Path) -> str:
    """What a bundle holds, in two lines."""
    manifest = json.loads((out / "edge_bundle.json").read_text(encoding="utf-8"))
    rows, layers = manifest["token_rows"], manifest["encoder_layers_dropped"]
    size = sum(file["bytes"] for file in manifest["files"].values())
    return (
        f"edge bundle of {bundle.name} (fingerprint {bundle.fingerprint}) in {out}\n"
        f"{manifest['parameters']:,} parameters, {human_bytes(size)} with processor and tokenizer; "
        f"embeddings of {rows['kept']:,} of {rows['of']:,} tokens; "
        f"{layers} unused encoder layer{'' if layers == 1 else 's'} left out"
    )


def _tokens(encoder: QuestionEncoder, shard: Path) -> list[int]:
    """Ids of the tokens that a shard's questions and answers use, ascending."""
    from fednano_flwr.data.shard_folder import load_shard
    from fednano_flwr.edge.encoder import encode_all
    from fednano_flwr.edge.questions import used_tokens

    part = load_shard(shard)
    questions, _ = encode_all(encoder, (*part.train, *part.test))
    return used_tokens(questions)  # a client leaves out the same questions
