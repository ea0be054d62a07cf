"""Step traffic of both exchanges: bytes really sent and received over gRPC.

    python -m benchmarks.step_traffic [--json FILE]

LLaVA-1.5-7B's width and a batch of its questions (576 image and 128 text tokens each) in bfloat16;
the language model behind the service is a stub of that width, since bytes do not depend on it. A
round is one training step for each sample. In alternating rounds (`rolora`) one factor is trained,
and the host knows the other from the ServerApp. With `exchange.connector-at = "server"` what the
connector reads is sent once, 1,024 numbers a token, and not the 4,096 that it makes. `steady_ratio`
and `ten_round_ratio` are of both together: the mean of the two kinds of round, and five of each
with the features' first sending.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.report import options_of, table, write_json
from benchmarks.stub_half import stub_half
from fednano_flwr.config import SITES
from fednano_flwr.exchange.at_host import AtHost, factor_key
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import (
    IGNORE,
    LLM,
    AdaptedBatch,
    ConnectorInput,
    Feature,
    FrozenBatch,
    Layout,
    NamedFactors,
    at_site,
)
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.connector import HostConnectors

VOCABULARY = 1000
PLAIN, LOW, ALTERNATING = "embeddings", "lowrank", "lowrank, alternating rounds"
LEAST = f"{ALTERNATING}, connector at the host"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class StubConnectors:
    """A connector of one linear layer.

    Attributes:
        digest: of a host that has one.
    """

    digest = "stub"

    def __init__(self, options: Any, dtype: torch.dtype) -> None:
        size = (options.connector_input, options.hidden_size)
        self._weight = torch.randn(size).to(dtype)

    def features(self, site: str, read: Tensor) -> Tensor:
        """See `HostConnectors.features`."""
        return read.to(self._weight) @ self._weight


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


def with_constant(batch: AdaptedBatch, factors: str) -> AdaptedBatch:
    """The same with factors "A", "B" or both ("AB") constant, which the ServerApp knows."""
    named, z, b = {}, dict(batch.z), dict(batch.b)
    for site in batch.z:
        values = b[site].detach().T.contiguous()  # the size is what counts: A's is the same
        one = Feature(factor_key(values), values)
        known_a, known_b = (one if name in factors else None for name in "AB")
        named[site] = NamedFactors(known_a, known_b, 1.0)
        if known_a:
            del z[site]
        if known_b:
            del b[site]
    return replace(batch, z=z, b=b, named=named)


def with_read(batch: AdaptedBatch, options: Any, dtype: torch.dtype) -> AdaptedBatch:
    """The same with what the connector reads of each picture."""
    width = options.connector_input
    read = (torch.randn(len(one.rows), width).to(dtype) for one in batch.features)
    pairs = zip(batch.features, read, strict=True)
    made = (replace(one, read=ConnectorInput("image", values)) for one, values in pairs)
    return replace(batch, features=tuple(made))


def measure(
    kind: type[EmbeddingsExchange] | type[LowRankExchange],
    options: Any,
    constant: str = "",
    connector: bool = False,
) -> list[int]:
    """Bytes up and down of each step of one batch, the first one first, with the features.

    Args:
        constant: factor that is not trained in this round, and known to the host; "" for none.
        connector: whether the host has it.
    """
    dtype = DTYPES[options.dtype]
    store = FeatureStore(2**31)
    half = stub_half(options.hidden_size, VOCABULARY, dtype)
    batch, labels = make_batch(options, dtype)
    if constant:
        batch = with_constant(batch, constant)
    connectors = cast(HostConnectors, StubConnectors(options, dtype)) if connector else None
    if connector:
        batch = with_read(batch, options, dtype)
    factors = [f for one in batch.named.values() for f in one[:2] if f is not None]
    part = AtHost(factors={one.key: one.rows for one in factors})
    tokens = Tokens(1)
    with ExitStack() as stack:
        host = FrozenLLM(half, features=store, connectors=connectors)
        address = stack.enter_context(serve(host, tokens=tokens))
        token = stack.enter_context(tokens.open(1, "train", part))
        caller = Caller(1, 2, 1, "train", token(2))
        with RemoteLLM(address, caller) as remote:
            remote.describe()
            exchange: LLM = kind(remote)
            taken, before = [], 0
            for _ in range(options.steps):
                before = remote.traffic.bytes_up + remote.traffic.bytes_down
                exchange.prepare(batch)
                exchange.loss(batch, labels).backward()
                taken.append(remote.traffic.bytes_up + remote.traffic.bytes_down - before)
    return taken


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)

    plain = measure(EmbeddingsExchange, options)
    low = measure(LowRankExchange, options)
    halves = {factor: measure(LowRankExchange, options, factor) for factor in ("A", "B")}
    smallest = measure(LowRankExchange, options, "A", connector=True)
    later = sum(one[-1] for one in halves.values()) / 2
    taken: dict[str, list[float]] = {
        PLAIN: [*plain],
        LOW: [*low],
        ALTERNATING: [halves["A"][0], later],
        LEAST: [smallest[0], later],
        **{f"{LOW}, {name} constant": [*one] for name, one in halves.items()},
    }
    ten = {name: one[0] + 9 * one[-1] for name, one in taken.items()}
    # Five rounds of either kind, the first of them with the features.
    for name in (ALTERNATING, LEAST):
        ten[name] = taken[name][0] + 4 * halves["A"][-1] + 5 * halves["B"][-1]
    steady = {name: plain[-1] / one[-1] for name, one in taken.items()}
    over_ten = {name: ten[PLAIN] / value for name, value in ten.items()}
    write_json(
        options,
        bytes_of_a_step={n: {"first": one[0], "later": one[-1]} for n, one in taken.items()},
        bytes_of_10_rounds=ten,
        steady_ratios=steady,
        ten_round_ratios=over_ten,
        steady_ratio=steady[LEAST],
        ten_round_ratio=over_ten[LEAST],
    )
    print(
        f"d = {options.hidden_size}, r = {options.rank}, {options.batch} samples of "
        f"{options.image_tokens} + {options.text_tokens} tokens, {options.dtype}; MB a sample\n"
    )
    rows = []
    for name, one in taken.items():
        cells = (f"{cell / options.batch / 1e6:.3f}" for cell in (one[0], one[-1], ten[name]))
        rows.append((name, *cells, f"{steady[name]:.1f}", f"{over_ten[name]:.1f}"))
    heads = ["exchange", "first step", "later step", "10 rounds"]
    print(table([*heads, "times less a later step", "over 10 rounds"], rows))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("step_traffic", __doc__)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-tokens", type=int, default=576)
    parser.add_argument("--connector-input", type=int, default=1024)
    parser.add_argument("--text-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", choices=list(DTYPES))
    parser.add_argument("--steps", type=int, default=3)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
