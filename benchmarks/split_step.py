"""What the cut costs: one training step of the whole model, split in-process, and over gRPC.

    python -m benchmarks.split_step [--model package:fednano_demo/model] [--device cpu]

Needs neither flwr nor ray. The variants take turns in one process, so that ratios hold when
the machine's speed drifts. Prints a table (ratios to the whole model) and writes JSON.
"""

from __future__ import annotations

import argparse
import io
import statistics
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.report import (
    in_turns,
    name_of,
    options_of,
    ratios,
    spread_text,
    table,
    waiting_for,
    write_json,
)
from fednano_flwr.adapters.site import build_adapters, named_trainable
from fednano_flwr.config import Adapter
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import next_token_labels
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import IGNORE, LLM, AdaptedBatch, LLMService
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import LLMHalf, load_llm_half

WHOLE, SPLIT = "whole model", "split, gRPC on loopback, lowrank"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("split_step", __doc__)
    parser.add_argument("--model", default="package:fednano_demo/model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)

    frozen = load_edge_half(options.model, options.device, options.dtype)
    half = load_llm_half(options.model, options.device, options.dtype)
    adapters = build_adapters(
        half.hidden_size, Adapter(options.rank, 2.0 * options.rank, 0.0, "image,text"), seed=0
    )
    encoder = load_encoder(ModelCheckpoint(options.model))
    tokens = frozen.token_table()
    edge = NanoEdge(frozen, tokens, adapters, encoder)
    picture = io.BytesIO()
    Image.effect_noise((48, 48), 64).convert("RGB").save(picture, "PNG")
    sample = Sample(
        "s",
        "how many icons are there",
        group="counting",
        subject="counting",
        choices=("1", "2", "3"),
        answer=0,
        images=(Picture(data=picture.getvalue()),),
    )
    batch = [encoder.encode(sample)] * options.batch
    labels = next_token_labels(batch, IGNORE)
    edge(batch)  # fills the feature cache: the encoder is the same in all variants
    host = FrozenLLM(half)
    with serve(host) as address, RemoteLLM(address) as remote:
        times = in_turns(
            training_steps(half, host, remote, lambda: edge(batch), labels),
            options.repeats,
            before=lambda: adapters.zero_grad(set_to_none=True),
            finish=waiting_for(options.device),
        )

    length = len(batch[0].ids)
    client = sum(p.numel() for part in (frozen, tokens) for p in part.parameters())
    server = sum(parameter.numel() for parameter in half.parameters())
    trained = sum(parameter.numel() for parameter in named_trainable(adapters).values())
    print(f"{options.model}, {options.device}, {options.dtype}: {len(batch)} × {length} tokens")
    print(f"client {client:,} frozen and {trained:,} trained parameters; host {server:,}\n")
    medians = {name: statistics.median(values) for name, values in times.items()}
    relative = {name: ratios(values, times[WHOLE]) for name, values in times.items()}
    rows = [
        (name, f"{1e3 * one:.2f}", spread_text(relative[name])) for name, one in medians.items()
    ]
    print(table(["variant", "median ms a step", "ratio, median (least–most)"], rows))
    write_json(
        options,
        device=name_of(options.device),
        tokens=length,
        parameters={"client": client, "host": server, "trained": trained},
        median_ms={name: 1e3 * one for name, one in medians.items()},
        ratios=relative,
    )


def training_steps(
    half: LLMHalf,
    host: LLMService,
    remote: LLMService,
    adapted: Callable[[], AdaptedBatch],
    labels: Tensor,
) -> dict[str, Callable[[], None]]:
    """A training step of the whole model and of each split, up to the adapters' gradients.

    Args:
        host, remote: around `half`, in this process and over gRPC.
        adapted: a batch of samples of one length, with this step's adapters.
        labels: (N,) of the batch.
    """
    known = (labels != IGNORE).nonzero().squeeze(1)

    def whole() -> None:
        batch = adapted()
        padded = batch.embedded().view(len(batch.layout.lengths), -1, half.hidden_size)
        mask = torch.ones(padded.shape[:2], dtype=torch.bool, device=padded.device)
        logits = half.logits(padded, known.to(padded.device), mask)
        F.cross_entropy(logits.float(), labels[known].to(logits.device)).backward()

    def split(exchange: LLM) -> Callable[[], None]:
        return lambda: exchange.loss(adapted(), labels).backward()

    return {
        WHOLE: whole,
        "split, in-process, lowrank": split(LowRankExchange(host)),
        SPLIT: split(LowRankExchange(remote)),
        "split, gRPC on loopback, embeddings": split(EmbeddingsExchange(remote)),
    }


if __name__ == "__main__":
    main()
