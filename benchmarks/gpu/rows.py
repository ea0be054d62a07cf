"""The rows of the GPU kit; each function's first line says what it measures."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from transformers.utils import is_bitsandbytes_available

from benchmarks import host_flops, many_clients
from benchmarks.crowd import Preset
from benchmarks.gpu.script import LeftOutError, Row
from benchmarks.models import SHAPES, Shape, random_half
from benchmarks.report import in_turns, ratios, spread, spread_text, waiting_for
from benchmarks.split_step import SPLIT, WHOLE, training_steps
from benchmarks.step_traffic import VOCABULARY, make_frozen
from fednano_flwr.adapters.site import build_adapters, named_trainable
from fednano_flwr.config import Adapter
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.protocol import FrozenBatch, at_site
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.models.llm_half import LLMHalf
from fednano_flwr.models.quantize import OLDEST

OVERHEAD_TARGET = 1.1
AT_ONCE = 5
"""Clients that step at once where the overhead is measured."""
GIB = 2**30


@dataclass(frozen=True)
class Sizes:
    """How much each row does.

    Attributes:
        samples: of a training step, each of `image_tokens` and `text_tokens`.
        batches: samples of the passes whose memory is measured.
        matmul, products: rows of the matrices whose product is the limit; how many a turn.
        crowd: options of `many_clients`.
    """

    shape: Shape
    samples: int
    image_tokens: int
    text_tokens: int
    rank: int
    repeats: int
    batches: tuple[int, ...]
    matmul: int
    products: int
    crowd: str


FULL = Sizes(
    SHAPES["7b"], 8, 576, 128, 64, 6, (1, 4, 16), 8192, 20, "--clients 16 --repeats 2 --seconds 2"
)
SMALL = Sizes(
    Shape(64, 2, 2, 128, VOCABULARY),
    samples=2,
    image_tokens=9,
    text_tokens=8,
    rank=4,
    repeats=1,
    batches=(1, 2),
    matmul=256,
    products=1,
    crowd="--clients 2 --processes 1 --repeats 1 --seconds 0.5 --warm-up 0.1",
)


def rows_of(options: argparse.Namespace) -> dict[str, Row]:
    """The rows by name, in order of worth."""
    kit = Kit(SMALL if options.small else FULL, options.device)
    return {
        "host_flops": partial(flops, kit),
        "overhead": partial(overhead, kit),
        "many_clients": partial(crowd, kit, kit.sizes.image_tokens),
        "many_clients_text": partial(crowd, kit, 0),
        "eight_bit": partial(quantized, kit, "8bit"),
        "four_bit": partial(quantized, kit, "4bit"),
        "checkpointing": partial(checkpointing, kit),
        "bf16_gradients": partial(gradients, kit),
        "feature_store": partial(feature_store, kit),
        "device_memory": partial(device_memory, kit),
    }


@dataclass(frozen=True)
class Kit:
    """What the rows share: one language model on the device, and batches for it."""

    sizes: Sizes
    device: str
    dtype: str = "bfloat16"

    @cached_property
    def half(self) -> LLMHalf:
        return self.other_half()

    def other_half(self, **loading: Any) -> LLMHalf:
        """As `half` and with its weights, loaded in another way."""
        return random_half(self.sizes.shape, self.device, self.dtype, **loading)

    def batch(self, samples: int) -> tuple[FrozenBatch, Tensor]:
        """A batch on the device, and its labels on the CPU."""
        torch.manual_seed(0)
        sizes = SimpleNamespace(
            **(vars(self.sizes) | {"batch": samples, "hidden_size": self.sizes.shape.width})
        )
        with torch.device(self.device):
            frozen, labels = make_frozen(sizes, getattr(torch, self.dtype))
        is_text = at_site(frozen.sites, "text")  # as the low-rank host makes them
        frozen.hidden[is_text] = self.half.embed(frozen.token_ids[is_text])
        return frozen, labels.cpu()

    def edge(self, half: LLMHalf) -> NanoEdge:
        """Adapters on the device, of which B is not zero; only its `adapt` can be used."""
        rank = self.sizes.rank
        adapters = build_adapters(half.hidden_size, Adapter(rank, 2.0 * rank, 0.0, "image,text"), 0)
        torch.manual_seed(0)
        for name, value in named_trainable(adapters).items():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.02)
        return NanoEdge(cast(Any, half), cast(Any, None), adapters, cast(Any, None))

    def in_turns(self, steps: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        return in_turns(steps, self.sizes.repeats, warm_up=2, finish=waiting_for(self.device))

    def peak(self, work: Callable[[], object]) -> int | None:
        """Most bytes that `work` has on the device beside what is there; not counted on a CPU."""
        if not self.device.startswith("cuda"):
            work()
            return None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before


@contextmanager
def served(host: FrozenLLM, nodes: int = 1) -> Iterator[list[RemoteLLM]]:
    """Connections of so many clients to a host behind the queue and gRPC that a run has."""
    with ExitStack() as stack:
        address = stack.enter_context(serve(stack.enter_context(QueuedLLM(host))))
        remotes = [RemoteLLM(address, Caller(node=node)) for node in range(nodes)]
        for remote in remotes:
            stack.enter_context(remote).describe()
        yield remotes


def flops(kit: Kit) -> tuple[str, dict[str, Any]]:
    """The host's FLOP/s over those of a matrix product: `benchmarks.host_flops`."""
    sizes = kit.sizes
    given = {
        "device": kit.device,
        "dtype": kit.dtype,
        "layers": sizes.shape.layers,
        "batch": sizes.samples,
        "image-tokens": sizes.image_tokens,
        "text-tokens": sizes.text_tokens,
        "rank": sizes.rank,
        "matmul": sizes.matmul,
        "products": sizes.products,
        "repeats": sizes.repeats,
    }
    asked = host_flops.parse([f"--{key}={value}" for key, value in given.items()])
    found = host_flops.measure(kit.half, asked)
    return f"{found['ratio']:.2f} of a matrix product, target ≥ {host_flops.TARGET}", found


def overhead(kit: Kit) -> tuple[str, dict[str, Any]]:
    """What exchange, gRPC and host add to the unsplit model's training steps; without Flower.

    `ratio` is of several clients that step at once, as in a round; the others are of one client
    that is alone, so that the host waits while it computes.
    """
    frozen, labels = kit.batch(kit.sizes.samples)
    host = FrozenLLM(kit.half, features=FeatureStore(2**33))
    with served(host, AT_ONCE) as remotes, ThreadPoolExecutor(AT_ONCE) as pool:
        clients = []
        for remote in remotes:
            adapted = partial(kit.edge(kit.half).adapt, frozen)
            clients.append(training_steps(kit.half, host, remote, adapted, labels))
        together = f"{AT_ONCE} clients at once, {SPLIT}"
        times = kit.in_turns(
            {**clients[0], together: lambda: list(pool.map(lambda one: one[SPLIT](), clients))}
        )
    times[together] = [seconds / AT_ONCE for seconds in times[together]]
    found = {name: ratios(values, times[WHOLE]) for name, values in times.items()}
    line = f"{spread_text(found[together])} of the unsplit model's time, target ≤ {OVERHEAD_TARGET}"
    seconds = {name: spread(values) for name, values in times.items()}
    return line, {
        "without": "Flower",
        "ratio": found[together]["median"],
        "target": OVERHEAD_TARGET,
        "ratios": found,
        "seconds_a_step": seconds,
    }


def crowd(kit: Kit, image_tokens: int) -> tuple[str, dict[str, Any]]:
    """Steps a second of 16 clients, passes shared over not shared: `benchmarks.many_clients`.

    With a picture a single sample may fill the GPU by itself, and there is little to be had.
    """
    sizes = kit.sizes
    name = f"width {sizes.shape.width}, {sizes.shape.layers} layers, random weights"
    preset = Preset(name, image_tokens, sizes.text_tokens, sizes.rank, kit.dtype)
    asked = many_clients.parse([f"--device={kit.device}", *sizes.crowd.split()])
    found = many_clients.measure(kit.half, preset, asked)
    line = f"{spread_text(found['ratio'])} times as many steps, target ≥ {many_clients.TARGET:g}"
    return line, found | {"target": many_clients.TARGET, "batch_tokens": asked.batch_tokens}


def quantized(kit: Kit, kind: str) -> tuple[str, dict[str, Any]]:
    """A host of 8 or 4 bits against bfloat16: memory, seconds and gradients."""
    if not is_bitsandbytes_available(OLDEST):
        raise LeftOutError("bitsandbytes is not installed")
    return beside(kit, quantization=kind)


def checkpointing(kit: Kit) -> tuple[str, dict[str, Any]]:
    """A host with `llm.checkpointing` against one without: memory, seconds and gradients."""
    return beside(kit, checkpointing=True)


def beside(kit: Kit, **loading: Any) -> tuple[str, dict[str, Any]]:
    """A half loaded in another way against the plain one, of the same weights."""
    frozen, labels = kit.batch(kit.sizes.samples)
    batch = kit.edge(kit.half).adapt(frozen)
    halves = {"plain": kit.half, "other": kit.other_half(**loading)}
    inputs = EmbeddingInputs.of(batch).detach()
    steps = {name: partial(FrozenLLM(half).step, inputs, labels) for name, half in halves.items()}
    answers = {name: step() for name, step in steps.items()}
    one, other = (gradient[0].flatten().double() for _, gradient in answers.values())
    times = kit.in_turns(dict(steps))
    weights = {name: stored_bytes(half) for name, half in halves.items()}
    cosine = torch.cosine_similarity(one, other, dim=0).item()
    ratio = ratios(times["other"], times["plain"])
    line = (
        f"{spread_text(ratio)} times the time, {weights['other'] / weights['plain']:.2f} times the "
        f"weights' bytes, gradients' cosine {cosine:.4f}"
    )
    return line, {
        "loading": loading,
        "ratio": ratio,
        "seconds_a_step": {name: spread(values) for name, values in times.items()},
        "weights_bytes": weights,
        "step_bytes": {name: kit.peak(step) for name, step in steps.items()},
        "losses": {name: loss for name, (loss, _) in answers.items()},
        "gradient_cosine": cosine,
        "gradient_error": ((one - other).norm() / one.norm()).item(),
    }


def stored_bytes(half: LLMHalf) -> int:
    """Of all weights and buffers, packed ones as they are."""
    return sum(tensor.nbytes for tensor in (*half.parameters(), *half.buffers()))


def gradients(kit: Kit) -> tuple[str, dict[str, Any]]:
    """Adapters' gradients in bfloat16 against the same weights in float32, split and unsplit.

    The split may add nothing to what the dtype itself costs.
    """
    frozen, labels = kit.batch(min(2, kit.sizes.samples))
    exact = copy.deepcopy(kit.half).float()
    exact.dtype = torch.float32
    edge = kit.edge(kit.half)
    host = FrozenLLM(kit.half, features=FeatureStore(2**33))

    def gradient(step: Callable[[], object]) -> Tensor:
        edge.adapters.zero_grad(set_to_none=True)
        step()
        found = [
            cast(Tensor, one.grad).flatten() for one in named_trainable(edge.adapters).values()
        ]
        return torch.cat(found).double()

    with served(host) as (remote,):
        whole = FrozenBatch(**(vars(frozen) | {"hidden": frozen.hidden.float()}))
        steps = training_steps(exact, host, remote, partial(edge.adapt, whole), labels)
        truth = gradient(steps[WHOLE])
        steps = training_steps(kit.half, host, remote, partial(edge.adapt, frozen), labels)
        found = {name: gradient(step) for name, step in steps.items()}
    errors = {name: ((one - truth).norm() / truth.norm()).item() for name, one in found.items()}
    cosines = {
        name: torch.cosine_similarity(one, truth, dim=0).item() for name, one in found.items()
    }
    line = f"error {errors[SPLIT]:.4f} of the gradient's norm, unsplit {errors[WHOLE]:.4f}"
    return line, {"relative_error": errors, "cosine": cosines}


def feature_store(kit: Kit) -> tuple[str, dict[str, Any]]:
    """A step whose features the host has on the device, against on disk, against sent again."""
    frozen, labels = kit.batch(kit.sizes.samples)
    stores = {
        "on the device": FeatureStore(2**33),
        "on disk": FeatureStore(0, 2**33),
        "sent again": FeatureStore(2**33),
    }
    with ExitStack() as stack:
        steps: dict[str, Callable[[], object]] = {}
        for name, store in stores.items():
            host = FrozenLLM(kit.half, features=store)
            (remote,) = stack.enter_context(served(host))
            adapted = partial(kit.edge(kit.half).adapt, frozen)
            steps[name] = training_steps(kit.half, host, remote, adapted, labels)[SPLIT]
        kept_step = steps["sent again"]

        def forgotten() -> None:
            stores["sent again"].close()
            kept_step()

        times = kit.in_turns(steps | {"sent again": forgotten})
        kept = {
            name: (store.bytes_in_memory, store.bytes_on_disk) for name, store in stores.items()
        }
    found = {name: ratios(values, times["on the device"]) for name, values in times.items()}
    line = ", ".join(f"{name} {spread_text(one)}" for name, one in found.items())
    return line + " times the time", {
        "ratios": found,
        "seconds_a_step": {name: spread(values) for name, values in times.items()},
        "bytes_in_memory_and_on_disk": kept,
    }


def device_memory(kit: Kit) -> tuple[str, dict[str, Any]]:
    """Bytes of the weights, and the most that a training step of some samples has beside them."""
    weights, host = stored_bytes(kit.half), FrozenLLM(kit.half)
    steps = {}
    for samples in kit.sizes.batches:
        frozen, labels = kit.batch(samples)
        inputs = EmbeddingInputs.of(kit.edge(kit.half).adapt(frozen)).detach()
        steps[samples] = kit.peak(partial(host.step, inputs, labels))
    parts = [f"{n}: {'–' if b is None else f'{b / GIB:.1f}'}" for n, b in steps.items()]
    line = f"weights {weights / GIB:.1f} GiB; a step of samples: {', '.join(parts)} GiB"
    return line, {"weights_bytes": weights, "step_bytes": steps}
