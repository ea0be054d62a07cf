"""Step traffic of both exchanges: bytes really sent and received over gRPC.

    python -m benchmarks.step_traffic [--json FILE]

LLaVA-1.5-7B's width and a batch of its questions (576 image and 128 text tokens each) in bfloat16;
the language model behind the service is a stub of that width, since bytes do not depend on it. A
round is one training step for each sample.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import options_of, table, write_json
from benchmarks.stub_half import stub_half
from fednano_flwr.config import SITES
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import (
    IGNORE,
    LLM,
    AdaptedBatch,
    Feature,
    FrozenBatch,
    Layout,
    at_site,
)
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM

VOCABULARY = 1000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_frozen(options: Any, dtype: torch.dtype) -> tuple[FrozenBatch, Tensor]:
    """A batch of pictured questions, and its labels.

    Args:
        options: with `batch`, `image_tokens`, `text_tokens` and `hidden_size`.
    """
    length, d = options.image_tokens + options.text_tokens, options.hidden_size
    is_image = torch.zeros(options.batch, length, dtype=torch.bool)
    is_image[:, 5 : 5 + options.image_tokens] = True
    is_image = is_image.flatten()
    hidden = torch.randn(options.batch * length, d).to(dtype)
    pictures = hidden[is_image].split(options.image_tokens)
    labels = torch.full((options.batch, length), IGNORE)
    labels[:, -1] = 7
    batch = FrozenBatch(
        hidden=hidden,
        sites=torch.where(is_image, SITES.index("image"), SITES.index("text")).to(torch.int8),
        token_ids=torch.randint(0, VOCABULARY, (options.batch * length,)),
        features=tuple(Feature(bytes([i]), rows) for i, rows in enumerate(pictures)),
        layout=Layout((length,) * options.batch),
    )
    return batch, labels.flatten()


def make_batch(options: Any, dtype: torch.dtype) -> tuple[AdaptedBatch, Tensor]:
    """As `make_frozen`, with factors of rank `options.rank` to train."""
    batch, labels = make_frozen(options, dtype)
    counts = {site: int(at_site(batch.sites, site).sum()) for site in ("image", "text")}
    z = {site: torch.randn(n, options.rank).requires_grad_() for site, n in counts.items()}
    b = {site: torch.randn(options.hidden_size, options.rank).requires_grad_() for site in counts}
    return AdaptedBatch(**vars(batch), z=z, b=b), labels


def measure(kind: type[EmbeddingsExchange] | type[LowRankExchange], options: Any) -> list[int]:
    """Bytes up and down of each step of one batch, the first one first."""
    dtype = DTYPES[options.dtype]
    store = FeatureStore(2**31)
    half = stub_half(options.hidden_size, VOCABULARY, dtype)
    with serve(FrozenLLM(half, features=store)) as address:
        with RemoteLLM(address) as remote:
            remote.describe()
            exchange: LLM = kind(remote)
            batch, labels = make_batch(options, dtype)
            taken, before = [], 0
            for _ in range(options.steps):
                before = remote.traffic.bytes_up + remote.traffic.bytes_down
                exchange.loss(batch, labels).backward()
                taken.append(remote.traffic.bytes_up + remote.traffic.bytes_down - before)
    return taken


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)

    plain = measure(EmbeddingsExchange, options)
    low = measure(LowRankExchange, options)
    ten = {"embeddings": plain[0] + 9 * plain[-1], "lowrank": low[0] + 9 * low[-1]}
    record = write_json(
        options,
        bytes_of_a_step={
            "embeddings": {"first": plain[0], "later": plain[-1]},
            "lowrank": {"first": low[0], "later": low[-1]},
        },
        bytes_of_10_rounds=ten,
        steady_ratio=plain[-1] / low[-1],
        ten_round_ratio=ten["embeddings"] / ten["lowrank"],
    )
    print(
        f"d = {options.hidden_size}, r = {options.rank}, {options.batch} samples of "
        f"{options.image_tokens} + {options.text_tokens} tokens, {options.dtype}; MB a sample\n"
    )
    rows = []
    for name, taken in (("embeddings", plain), ("lowrank", low)):
        cells = [taken[0], taken[-1], ten[name]]
        rows.append((name, *(f"{cell / options.batch / 1e6:.2f}" for cell in cells)))
    print(table(["exchange", "first step", "later step", "10 rounds"], rows))
    print(
        f"\nembeddings / lowrank: {record['steady_ratio']:.1f} in a later step, "
        f"{record['ten_round_ratio']:.1f} over 10 rounds"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("step_traffic", __doc__)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-tokens", type=int, default=576)
    parser.add_argument("--text-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", choices=list(DTYPES))
    parser.add_argument("--steps", type=int, default=3)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
