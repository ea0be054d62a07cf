"""Free answers of a client's test questions: bytes and seconds, with and without a cache.

    python -m benchmarks.answers [--questions 64] [--tokens 20]

The demo's model and questions, all answers as long as they may be, one CPU thread for the client
and one for the host, which is a process of its own; over gRPC on loopback, in both exchanges. Once
the host keeps keys and values between tokens, as it does; and once whole prompts with the answers
so far are sent for each token. Both take turns, and have the same answers, which is checked. Needs
neither flwr nor ray. Prints a table and writes JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.overlap import CONFIG, real_host
from benchmarks.report import in_turns, options_of, ratios, spread, spread_text, table, write_json
from benchmarks.runs import process
from fednano_flwr.adapters.site import build_adapters
from fednano_flwr.data.load import load_questions
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.generation import generate
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, last_positions
from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.registry import EXCHANGES
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half

WHOLE, CACHED = "whole prompts", "cache"
Way = Callable[[NanoEdge, Exchange, Sequence[Question], int], list[str]]
ALL_WORDS = torch.empty(0, dtype=torch.int64)


@torch.no_grad()
def without_cache(
    edge: NanoEdge, llm: Exchange, questions: Sequence[Question], tokens: int
) -> list[str]:
    """As `generate` for answers that do not end, all tokens sent each time."""
    endings: list[tuple[int, ...]] = [()] * len(questions)
    for _ in range(tokens):
        last = last_positions(questions, endings)
        likely = llm.score(edge(questions, endings), last, ALL_WORDS).argmax(1).tolist()
        endings = [(*own, token) for own, token in zip(endings, likely, strict=True)]
    return [edge.encoder.decode(ending) for ending in endings]


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("answers", __doc__)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=20, help="of an answer")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    half = load_edge_half(CONFIG.model.name)
    encoder = load_encoder(ModelCheckpoint(CONFIG.model.name))
    encoder.ends = set()  # as long as they may be
    adapters = build_adapters(half.hidden_size, CONFIG.adapter, seed=0)
    edge = NanoEdge(half, half.token_table(), adapters.eval(), encoder)
    samples = load_questions(CONFIG.dataset).test[: options.questions]
    free = [replace(sample, choices=(), answer=None, free_answer="red") for sample in samples]
    questions = [encoder.encode(sample) for sample in free]
    size = CONFIG.batch_size
    parts = [questions[i : i + size] for i in range(0, len(questions), size)]
    found, rows = {}, []
    with process(real_host) as pipe:
        address = pipe.recv()
        for kind, exchange in EXCHANGES.items():
            with RemoteLLM(address) as remote:
                llm, bytes_up, answers = exchange(remote), {}, {}

                def answer(way: Way, llm: Exchange = llm) -> list[str]:
                    return [a for part in parts for a in way(edge, llm, part, options.tokens)]

                ways = {WHOLE: partial(answer, without_cache), CACHED: partial(answer, generate)}
                for name, way in ways.items():
                    way()  # the host has the pictures' features afterwards
                    before = remote.traffic.bytes_up
                    answers[name] = way()
                    bytes_up[name] = remote.traffic.bytes_up - before
                if answers[WHOLE] != answers[CACHED]:
                    raise SystemExit(f"{kind}: the two ways have different answers")
                times = in_turns(ways, options.repeats, warm_up=1)
            times_as_fast = ratios(times[WHOLE], times[CACHED])
            found[kind] = {
                "bytes_up": bytes_up,
                "seconds": {name: spread(seconds) for name, seconds in times.items()},
                "times_as_fast": times_as_fast,
            }
            fewer = bytes_up[WHOLE] / bytes_up[CACHED]
            rows.append(
                (
                    f"`{kind}`",
                    *(f"{bytes_up[name] / 1e6:.2f}" for name in ways),
                    f"{fewer:.1f}",
                    *(spread_text(spread(times[name])) for name in ways),
                    spread_text(times_as_fast),
                )
            )
        pipe.send(None)
    write_json(options, batch=size, exchanges=found)
    head = ["exchange", *(f"{w}, MB up" for w in (WHOLE, CACHED)), "fewer"]
    print(table([*head, *(f"{w}, s" for w in (WHOLE, CACHED)), "times as fast"], rows))


if __name__ == "__main__":
    main()
