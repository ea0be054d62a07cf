"""The host against its device's limit: FLOP/s of a training step over those of a matrix product.

    python -m benchmarks.host_flops --device cuda [--dtype bfloat16] [--layers 32]
    python -m benchmarks.host_flops --small

The shape of LLaVA-1.5-7B's language model with random weights drawn on the device, batches of 704
tokens a sample (576 of a picture, 128 of text). A step is a forward pass and a backward pass to the
inputs, without weight gradients: 4 FLOP a token and parameter of the layers. Not counted, though
done: attention's own products, the head (at the answers only), what comes from the CPU and goes
back. The limit is a large square product in the same dtype. Both take turns.

`--small` is a shape for a CPU, in float32. The target of 50 % is one for a GPU and can only be
tried on one. Needs neither flwr nor ray. Prints a table and writes JSON; `ratio` is of the exchange
that does better.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import SHAPES, Shape, random_half
from benchmarks.report import (
    in_turns,
    name_of,
    options_of,
    ratios,
    spread,
    spread_text,
    table,
    waiting_for,
    write_json,
)
from benchmarks.step_traffic import VOCABULARY, make_batch
from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import AdaptedBatch
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.llm_half import LLMHalf

TARGET = 0.5
LIMIT = "matrix product"
FULL = SHAPES["7b"]
SMALL = Shape(width=1024, layers=4, heads=8, inner=2752, vocabulary=VOCABULARY)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    shape = replace(SMALL if options.small else FULL, layers=options.layers)
    half = random_half(shape, options.device, options.dtype)
    show(write_json(options, device=name_of(options.device), **measure(half, options)), options)


def measure(half: LLMHalf, options: argparse.Namespace) -> dict[str, Any]:
    """The host's steps and the matrix product, taking turns."""
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    parameters = layer_parameters(half)
    batch, labels = make_batch(
        SimpleNamespace(
            hidden_size=half.hidden_size,
            rank=options.rank,
            batch=options.batch,
            image_tokens=options.image_tokens,
            text_tokens=options.text_tokens,
        ),
        dtype,
    )
    steps = host_steps(FrozenLLM(half, features=FeatureStore(2**33)), batch, labels)
    left, right = (
        torch.randn(options.matmul, options.matmul, device=device, dtype=dtype) for _ in range(2)
    )
    with torch.no_grad():
        times = in_turns(
            {LIMIT: lambda: [left @ right for _ in range(options.products)], **steps},
            options.repeats,
            finish=waiting_for(options.device),
        )
    tokens = len(batch.hidden)
    flop = {LIMIT: 2 * options.matmul**3 * options.products}
    flop |= {name: 4 * parameters * tokens for name in steps}
    rates = {name: [flop[name] / second for second in values] for name, values in times.items()}
    shares = {name: ratios(rates[name], rates[LIMIT]) for name in steps}
    return {
        "layer_parameters": parameters,
        "tokens_a_step": tokens,
        "ratio": max(share["median"] for share in shares.values()),
        "ratios": shares,
        "target": TARGET,
        "flop_a_second": {name: spread(values) for name, values in rates.items()},
        "seconds": {name: spread(values) for name, values in times.items()},
    }


def show(record: dict[str, Any], options: argparse.Namespace) -> None:
    print(
        f"{record['device']}, {options.dtype}; {options.layers} layers of "
        f"{record['layer_parameters']:,} parameters in all, {options.batch} × "
        f"{record['tokens_a_step'] // options.batch} tokens; product of "
        f"{options.matmul} × {options.matmul}, {options.products} a turn\n"
    )
    rows = []
    for name, seconds in record["seconds"].items():
        milliseconds = spread_text({key: 1e3 * value for key, value in seconds.items()}, 1)
        rates = {key: value / 1e12 for key, value in record["flop_a_second"][name].items()}
        share = spread_text(record["ratios"][name]) if name in record["ratios"] else ""
        rows.append((name, milliseconds, spread_text(rates, 3), share))
    print(table(["", "ms", "TFLOP/s", "of the limit"], rows))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("host_flops", __doc__)
    parser.add_argument("--small", action="store_true", help="a shape for a CPU, in float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="default: bfloat16, with --small float32")
    parser.add_argument("--layers", type=int, help="default: all of the shape's")
    parser.add_argument("--batch", type=int, help="samples a step; default: 8, with --small 1")
    parser.add_argument("--image-tokens", type=int, default=576, help="of a sample")
    parser.add_argument("--text-tokens", type=int, default=128, help="of a sample")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--matmul", type=int, help="rows; default: 8192, with --small 2048")
    parser.add_argument("--products", type=int, help="a turn; default: 20, with --small 1")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    small = options.small
    for key, value in (
        ("dtype", "float32" if small else "bfloat16"),
        ("layers", (SMALL if small else FULL).layers),
        ("batch", 1 if small else 8),
        ("matmul", 2048 if small else 8192),
        ("products", 1 if small else 20),
    ):
        if getattr(options, key) is None:
            setattr(options, key, value)
    return options


def layer_parameters(half: LLMHalf) -> int:
    """Parameters that every token meets: without token table and head."""
    return sum(
        parameter.numel()
        for name, parameter in half.named_parameters()
        if "embed" not in name and "head" not in name
    )


def host_steps(
    host: FrozenLLM, batch: AdaptedBatch, labels: Tensor
) -> dict[str, Callable[[], object]]:
    """A training step of the host, as each exchange asks for it, from and to the CPU."""
    inputs, low_rank = EmbeddingInputs.of(batch).detach(), LowRankExchange(host)
    return {
        "embeddings": lambda: host.step(inputs, labels),
        "lowrank": lambda: low_rank.loss(batch, labels),
    }


if __name__ == "__main__":
    main()
