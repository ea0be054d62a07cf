"""Encoder work saved by the feature cache: client seconds an epoch, the first and later ones.

    python -m benchmarks.encoder_cache [--samples 8] [--device cpu] [--dtype float32]

The encoder has the shape of LLaVA-1.5's (CLIP ViT-L/14 at 336 px, connector to 4096, random
weights). A constant gradient stands in for the host, so that all time is the client's: features,
adapters, optimizer. Two processes train one after the other on the same pictures, as two messages
do in deployment; before the second, the system is asked to drop the features' files from memory.
Needs neither flwr nor ray. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from benchmarks.models import CLIP_LARGE, Shape, write_llava
from benchmarks.report import name_of, options_of, table, write_json
from fednano_flwr.adapters.site import build_adapters
from fednano_flwr.config import Adapter
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.feature_cache import FeatureCache, FeatureFolder, FeatureLevels, model_digest
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.training import TrainingPlan, train
from fednano_flwr.exchange.protocol import LLM, AdaptedBatch
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half

WIDTH = 4096  # of the language model, so that features have the size that LLaVA-1.5-7B's have
SHAPE = Shape(WIDTH, layers=1, heads=1, inner=64, vision=CLIP_LARGE, encoder_layer=-2)
CACHE_BYTES = 2**34
REQUIRED = 10.0


class NoHost:
    """In place of the host: a loss whose gradient costs nothing."""

    def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
        return batch.embedded().float().mean()


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("encoder_cache", __doc__)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4, help="in each process")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_llava(place / "model", SHAPE, head_dim=64)
        write_pictures(place / "pictures", options.samples)
        first = in_a_process(place, options)
        forget(place / "features")
        second = in_a_process(place, options)
        sizes = [file.stat().st_size for file in (place / "features").iterdir()]
    seconds = {
        "first (encoder)": first["epochs"][0],
        "later, from memory": statistics.median([*first["epochs"][1:], *second["epochs"][1:]]),
        "later, from disk in a fresh process": second["epochs"][0],
    }
    digest = second["digest_seconds"]
    base = seconds["first (encoder)"]
    print(f"{first['name']}, {options.dtype}, {options.threads} CPU threads")
    print(
        f"vision encoder and connector: {first['parameters']:,} parameters; {options.samples} "
        f"pictures of {first['rows']} × {WIDTH} features, {sizes[0] / 1e6:.1f} MB each\n"
    )
    encoded = (
        first["encoded"][0],
        first["encoded"][-1] - first["encoded"][0],
        second["encoded"][0],
    )
    rows = [
        (name, f"{value:.2f}", count, f"{base / value:.1f}")
        for (name, value), count in zip(seconds.items(), encoded, strict=True)
    ]
    print(table(["epoch", "client seconds", "questions encoded", "times less"], rows))
    with_digest = base / (seconds["later, from disk in a fresh process"] + digest)
    print(
        f"\nonce a process: {second['load_seconds']:.2f} s to load, {digest:.2f} s to hash the "
        f"weights for the key; with the latter, from disk is {with_digest:.1f} times less"
    )
    write_json(
        options,
        device=first["name"],
        parameters=first["parameters"],
        feature_rows=first["rows"],
        feature_file_bytes=sizes[0],
        seconds_an_epoch=seconds,
        times_less={name: base / value for name, value in seconds.items()},
        times_less_from_disk_with_digest=with_digest,
        first_process=first,
        fresh_process=second,
    )
    if first["loss"] != second["loss"]:
        raise SystemExit("the two processes did not compute the same")
    if min(base / value for name, value in seconds.items() if name.startswith("later")) < REQUIRED:
        raise SystemExit(f"a later epoch is not {REQUIRED:g} times less")


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        picture = Image.effect_noise((400 + index, 300), 64).convert("RGB")
        picture.save(folder / f"{index}.png")


def in_a_process(place: Path, options: argparse.Namespace) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=measure, args=(place, options, theirs))
    worker.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        worker.join()


def measure(place: Path, options: argparse.Namespace, answer: Any) -> None:
    """What one process takes: loading, the key's digest, and each epoch."""
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    half = load_edge_half(str(place / "model"), options.device, options.dtype)
    load_seconds = time.perf_counter() - started
    encoder = load_encoder(ModelCheckpoint(str(place / "model")))
    started = time.perf_counter()
    model = model_digest(half, encoder)
    digest_seconds = time.perf_counter() - started
    adapters = build_adapters(
        WIDTH, Adapter(options.rank, 2.0 * options.rank, 0.0, "image,text"), seed=0
    )
    cache = FeatureLevels(
        FeatureCache(CACHE_BYTES),
        FeatureFolder(place / "features", CACHE_BYTES, model, half.device),
    )
    edge = NanoEdge(half, half.token_table(), adapters, encoder, cache)
    questions = [
        encoder.encode(
            Sample(
                file.stem,
                "how many icons are there",
                group="counting",
                subject="counting",
                choices=("1", "2", "3"),
                answer=0,
                images=(Picture(file),),
            )
        )
        for file in sorted((place / "pictures").iterdir())
    ]
    plan = TrainingPlan(1, options.batch, 1e-4, 0.0, 1.0)
    epochs, encoded, loss = [], [], 0.0
    for epoch in range(options.epochs):
        started = time.perf_counter()
        loss = train(edge, cast(LLM, NoHost()), questions, plan, seed=epoch).loss
        epochs.append(time.perf_counter() - started)
        encoded.append(edge.encoded)
    answer.send(
        {
            "name": name_of(options.device),
            "parameters": sum(p.numel() for p in half.parameters()),
            "rows": int((questions[0].ids == half.placeholders["image"][0]).sum()),
            "load_seconds": load_seconds,
            "digest_seconds": digest_seconds,
            "epochs": epochs,
            "encoded": encoded,
            "loss": loss,
        }
    )


def forget(folder: Path) -> None:
    """Ask the system to drop the files of a folder from memory, so that they come from disk."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == "__main__":
    main()
