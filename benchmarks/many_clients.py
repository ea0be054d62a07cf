"""One language model, many clients: steps a second with and without passes that clients share.

    python -m benchmarks.many_clients --small              # CPU: the demo's model
    python -m benchmarks.many_clients --preset 7b --device cuda

Each client has a thread, and some clients a process: every one sends a training step of one sample
over gRPC, again and again, with inputs prepared before (no edge work). The variants take turns.
The 7b preset is LLaVA-1.5-7B's language model with random weights. Also what a client that is
alone waits for a step. Needs neither flwr nor ray. Prints tables and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.crowd import Clients, Preset
from fednano_flwr.exchange.server import serve
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.models.llm_half import HeadAtRows, load_llm_half

ALONE, SHARED = "one request a pass", "shared passes"
VARIANTS = (ALONE, SHARED)


PRESETS = {
    "small": Preset("package:fednano_demo/model", 9, 12, 16, "float32"),
    "7b": Preset("llava-1.5-7b, random weights", 576, 128, 64, "bfloat16"),
}


class RandomHalf(torch.nn.Module):
    """A Llama with random weights, made where it computes; used like an `LLMHalf`."""

    def __init__(self, config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                self._llama: Any = LlamaForCausalLM(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
        self.model, self.fingerprint, self.hub_id = "random Llama", "", ""
        self.hidden_size, self.vocabulary = config.hidden_size, config.vocab_size
        self.dtype, self.device = dtype, device
        self.size = sum(parameter.numel() for parameter in self._llama.parameters())
        self._head = self._llama.lm_head = HeadAtRows(self._llama.lm_head)

    def embed(self, ids: Tensor) -> Tensor:
        return self._llama.get_input_embeddings()(ids)

    def logits(self, embeds: Tensor, rows: Tensor, *unused: Tensor | None) -> Tensor:
        """See `LLMHalf.logits`; plain positions, so padding is hidden by causality."""
        self._head.rows = rows
        return self._llama(inputs_embeds=embeds, use_cache=False).logits


def llava_7b(layers: int) -> LlamaConfig:
    """The language model of LLaVA-1.5-7B, which has 32 layers."""
    return LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
    )


@contextmanager
def running(options: argparse.Namespace, preset: Preset) -> Iterator[tuple[Clients, Any, int]]:
    """Both variants' services around one language model, and the clients."""
    device, dtype = torch.device(options.device), getattr(torch, preset.dtype)
    half: Any
    if options.preset == "small":
        half = load_llm_half(preset.model, options.device, preset.dtype)
    else:
        half = RandomHalf(llava_7b(options.layers), device, dtype)
    longest = preset.image_tokens + preset.text_tokens + preset.text_tokens // 4
    tokens = options.batch_tokens or options.clients * longest
    with ExitStack() as stack:
        addresses = {}
        for variant, batch_tokens in ((ALONE, 0), (SHARED, tokens)):
            host = FrozenLLM(half, features=FeatureStore(2**32))
            service = stack.enter_context(
                QueuedLLM(host, batch_tokens=batch_tokens, batch_wait=options.batch_wait)
            )
            addresses[variant] = stack.enter_context(serve(service))
        clients = Clients(options.clients, options.processes, addresses, preset, options.exchange)
        try:
            yield clients, half, tokens
        finally:
            clients.close()


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def at_95(values: list[float]) -> float:
    """The 95th percentile."""
    return sorted(values)[int(0.95 * (len(values) - 1))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small", choices=list(PRESETS))
    parser.add_argument("--small", dest="preset", action="store_const", const="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=32, help="of the 7b preset")
    parser.add_argument("--exchange", default="lowrank", choices=["lowrank", "embeddings"])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--processes", type=int, default=4, help="that hold the clients")
    parser.add_argument("--batch-tokens", type=int, default=0, help="0: room for all clients")
    parser.add_argument("--batch-wait", type=float, default=0.002, help="seconds")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a measurement")
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds before each")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's, of the host")
    parser.add_argument("--json", default="benchmarks/results/many_clients.json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset]

    rates: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    latencies: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    lone: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with running(options, preset) as (clients, half, batch_tokens):
        for repeat in range(options.repeats):
            turns = VARIANTS if repeat % 2 == 0 else VARIANTS[::-1]
            for variant in turns:
                everyone = range(options.clients)
                rate, taken = clients.measure(variant, everyone, options.seconds, options.warm_up)
                rates[variant].append(rate)
                latencies[variant] += taken
            for variant in turns:
                # The host expects who has asked within a second: let it forget the others.
                time.sleep(1.2)
                _, taken = clients.measure(variant, range(1), options.seconds, options.warm_up)
                lone[variant] += taken
        parameters = half.size

    ratios = [b / a for a, b in zip(rates[ALONE], rates[SHARED], strict=True)]
    cuda = options.device.startswith("cuda")
    record = {
        "setting": {**vars(options), "batch_tokens": batch_tokens, **vars(preset)},
        "hardware": {
            "device": torch.cuda.get_device_name() if cuda else platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "parameters": parameters,
        "steps_per_second": {variant: summary(rates[variant]) for variant in VARIANTS},
        "ratio": summary(ratios),
        "latency_ms": {
            name: {
                variant: {
                    "median": 1e3 * statistics.median(values[variant]),
                    "95 %": 1e3 * at_95(values[variant]),
                }
                for variant in VARIANTS
            }
            for name, values in ((f"{options.clients} clients", latencies), ("1 client", lone))
        },
    }
    show(record, options)
    out = Path(options.json)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")


def show(record: dict[str, Any], options: argparse.Namespace) -> None:
    print(
        f"{record['setting']['model']} ({record['parameters']:,} parameters) on "
        f"{record['hardware']['device']}; {options.clients} clients in {options.processes} "
        f"processes, one sample a step, {options.exchange}\n"
    )
    crowd, alone = record["latency_ms"]
    print(
        f"| host | steps a second, median (range) | ms a step, {crowd}: median, 95 % | 1 client |"
    )
    print("|---|---|---|---|")
    for variant in VARIANTS:
        rate = record["steps_per_second"][variant]
        cells = [
            f"{record['latency_ms'][name][variant]['median']:.1f}, "
            f"{record['latency_ms'][name][variant]['95 %']:.1f}"
            for name in (crowd, alone)
        ]
        print(
            f"| {variant} | {rate['median']:.1f} ({rate['min']:.1f}–{rate['max']:.1f}) | "
            + " | ".join(cells)
            + " |"
        )
    ratio, lone = record["ratio"], record["latency_ms"][alone]
    more = lone[SHARED]["median"] - lone[ALONE]["median"]
    print(f"\nshared passes: {ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f}) times")
    print(
        f"a client alone waits {more:+.2f} ms longer (median); batch wait "
        f"{1e3 * options.batch_wait:g} ms"
    )


if __name__ == "__main__":
    main()
