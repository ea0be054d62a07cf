"""What it costs a host to train LoRA inside its language model: seconds a step, memory a client.

    python -m benchmarks.host_lora [MODEL] [--device cuda --dtype bfloat16]

Steps of one batch take turns: of the frozen model; with a LoRA that nobody trains; of a client's
session, with LoRA in the attention and in all linear layers; of sessions that alternate, which
leave the device for one another. One pass over the questions of four clients, through the frozen
model, beside four passes: the most that sharing passes between sessions could save. MODEL is a
checkpoint's folder, SmolLM2's of `fednano_demo.real.build` where none is given.

Needs neither flwr nor ray. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from fednano_demo.real.build import default_folder
from fednano_flwr.config import ALL_SITES, LLM_SITE, Adapter
from fednano_flwr.exchange.at_host import AtHost, HostLora, LoraPlan, Turn
from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.protocol import IGNORE, Layout
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.sessions import MB, Sessions, session_bytes
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.models.lora import ALL_LINEAR, fresh_lora

FROZEN, UNTRAINED = "frozen", "LoRA, not trained"
ATTENTION, LINEAR = "session, attention", "session, all linear layers"
ALTERNATING = "two sessions in turns, attention"
APART, TOGETHER = "frozen, 4 clients one by one", "frozen, 4 clients in one pass"
CLIENTS = 4
PLAN = LoraPlan(learning_rate=1e-3, weight_decay=0.0)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    show(write_json(options, device=name_of(options.device), **measure(options)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("host_lora", __doc__)
    parser.add_argument("folder", nargs="?", default=str(default_folder()), metavar="MODEL")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=2, help="questions in a step")
    parser.add_argument("--tokens", type=int, default=48, help="of a question with its answer")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of all kinds of steps, taken in turns."""
    checkpoint = ModelCheckpoint(options.folder)
    plain = FrozenLLM(load_llm_half(options.folder, options.device, options.dtype))
    inputs, labels = batch(plain.describe().hidden_size, options.batch, options)
    many = batch(plain.describe().hidden_size, CLIENTS * options.batch, options)
    steps: dict[str, Callable[[], object]] = {
        FROZEN: lambda: plain.step(inputs, labels),
        APART: lambda: [plain.step(inputs, labels) for _ in range(CLIENTS)],
        TOGETHER: lambda: plain.step(*many),
    }
    sizes = {}
    for name, targets in ((ATTENTION, ""), (LINEAR, ALL_LINEAR)):
        adapter = Adapter(
            1, 32.0, 0.0, f"{ALL_SITES},{LLM_SITE}", llm_rank=options.rank, llm_targets=targets
        )
        values = fresh_lora(checkpoint, adapter, seed=0)
        half = load_llm_half(options.folder, options.device, options.dtype, lora=adapter)
        assert half.lora is not None
        host = FrozenLLM(half, sessions=Sessions(half.lora, CLIENTS, 2**40))
        part = AtHost(lora=HostLora(values, PLAN))
        steps[name] = stepping(host, part, inputs, labels, [b"one"])
        if name == ATTENTION:
            steps[UNTRAINED] = partial(host.step, inputs.through(part), labels)
            steps[ALTERNATING] = stepping(host, part, inputs, labels, [b"two", b"three"])
        sizes[name] = {
            "layers": len(values) // 2,
            "parameters": sum(value.numel() for value in values.values()),
            "session_mb": session_bytes(values, PLAN) / MB,
        }
    times = in_turns(steps, options.repeats, warm_up=1, finish=waiting_for(options.device))
    alone = [name for name in steps if name not in (FROZEN, APART, TOGETHER)]
    return {
        "model": Path(options.folder).name,
        "lora": sizes,
        "against_frozen": {name: ratios(times[name], times[FROZEN]) for name in alone},
        "one_pass_against_four": ratios(times[TOGETHER], times[APART]),
        "seconds": {name: spread(values) for name, values in times.items()},
    }


def batch(width: int, count: int, options: argparse.Namespace) -> tuple[EmbeddingInputs, Tensor]:
    """Random embeddings of questions, the last token of each to be learned."""
    made = torch.Generator().manual_seed(0)
    total = count * options.tokens
    embeds = torch.randn(total, width, generator=made).to(getattr(torch, options.dtype))
    labels = torch.full((total,), IGNORE)
    labels[options.tokens - 2 :: options.tokens] = 5
    return EmbeddingInputs(embeds, Layout((options.tokens,) * count)), labels


def stepping(
    host: FrozenLLM,
    part: AtHost,
    inputs: EmbeddingInputs,
    labels: Tensor,
    owners: Sequence[bytes],
) -> Callable[[], object]:
    """Takes the next step of the next owner's session."""
    sent = inputs.through(part)
    sessions = {owner: (host.begin(part, owner), itertools.count(1)) for owner in owners}
    order = itertools.cycle(owners)

    def step() -> object:
        owner = next(order)
        session, numbers = sessions[owner]
        return host.step(sent.with_(turn=Turn(session, next(numbers))), labels, owner)

    return step


def show(record: dict[str, Any]) -> None:
    setting = record["setting"]
    print(
        f"{record['model']}, {record['device']}, {setting['dtype']}, rank "
        f"{setting['rank']}; {setting['batch']} questions of {setting['tokens']} tokens a step\n"
    )
    rows = []
    for name, seconds in record["seconds"].items():
        against = record["against_frozen"].get(name)
        ms = spread_text({key: 1000 * value for key, value in seconds.items()}, 0)
        rows.append((name, ms, spread_text(against) if against else "–"))
    print(table(("a step", "ms", "against frozen"), rows))
    for name, found in record["lora"].items():
        print(
            f"{name}: {found['layers']} layers, {found['parameters']:,} parameters, "
            f"{found['session_mb']:.1f} MB a session"
        )
    print(f"one pass against four: {spread_text(record['one_pass_against_four'])}")


if __name__ == "__main__":
    main()
