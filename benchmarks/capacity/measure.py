"""What the calculator measures itself: host, merging, and bytes on the wire."""

from __future__ import annotations

import json
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from flwr.app import MetricRecord, RecordDict
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.federation.noop_federation_manager import NOOP_FEDERATION_ID

from benchmarks import step_traffic
from benchmarks.capacity import sizes
from benchmarks.report import ROOT, in_turns, memory
from benchmarks.runs import process
from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.config import Adapter, RunConfig, project
from fednano_flwr.data.load import load_questions
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import last_positions, next_token_labels, teacher_forced
from fednano_flwr.exchange.embeddings import EmbeddingInputs, EmbeddingsExchange
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.rounds.records import to_arrays, to_update
from fednano_flwr.strategies.fednano import FedNano

EXCHANGES: dict[str, type[EmbeddingsExchange] | type[LowRankExchange]] = {
    "embeddings": EmbeddingsExchange,
    "lowrank": LowRankExchange,
}


def host_rates(batch: int, repeats: int) -> dict[str, float]:
    """Tokens a second of the demo's host in this process, training and scoring; medians."""
    config = RunConfig.parse(project.defaults(ROOT))
    name = config.model.name
    half, model = load_edge_half(name), load_llm_half(name)
    encoder = load_encoder(ModelCheckpoint(name))
    questions = [encoder.encode(sample) for sample in load_questions(config.dataset).train[:batch]]
    adapters = build_adapters(model.hidden_size, config.adapter, seed=0)
    edge = NanoEdge(half, half.token_table(), adapters, encoder)
    with torch.no_grad():
        inputs = EmbeddingInputs.of(edge(questions, teacher_forced(questions)))
    labels, last = next_token_labels(questions, IGNORE), last_positions(questions)
    host = FrozenLLM(model)
    train = _median_seconds(lambda: host.step(inputs, labels), repeats)
    score = _median_seconds(lambda: host.score(inputs, last, torch.arange(4)), repeats)
    tokens = inputs.layout.tokens
    return {
        "batch": batch,
        "tokens_a_question": tokens / batch,
        "train_tokens_per_second": tokens / train,
        "score_tokens_per_second": tokens / score,
        "parameters": model.size,
    }


def _median_seconds(work: Callable[[], object], repeats: int) -> float:
    return statistics.median(in_turns({"": work}, repeats)[""])


def merging(clients: int, hidden_size: int, rank: int) -> dict[str, float]:
    """Seconds and peak memory of Fisher merging, in a process of its own."""
    with process(_merge, clients, hidden_size, rank) as pipe:
        return pipe.recv()


def _merge(pipe: Any, clients: int, hidden_size: int, rank: int) -> None:
    """Replies as they lie in the server's memory, then merged."""
    torch.set_num_threads(1)
    theta = adapter_state(
        build_adapters(hidden_size, Adapter(rank, 2.0 * rank, 0.0, "image,text"), seed=0)
    )
    numbers = sum(value.numel() for value in theta.values())
    strategy = FedNano(RunConfig.parse(project.defaults(ROOT)).strategy)
    before = memory("VmRSS")
    replies: list[Any] = []
    for k in range(clients):
        arrays = to_arrays(theta, {name: value.abs() for name, value in theta.items()})
        metrics = MetricRecord({"num-examples": 1, "partition-id": k})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        replies.append(SimpleNamespace(content=content))
    started = time.perf_counter()
    strategy.merge([to_update(reply) for reply in replies])
    seconds = time.perf_counter() - started
    peak = memory("VmHWM") - before
    pipe.send(
        {
            "clients": clients,
            "numbers_a_client": numbers,
            "seconds_a_number": seconds / (clients * numbers),
            "bytes_a_number": peak / (clients * numbers),
        }
    )


def checked_bytes(step_traffic_json: Path) -> list[dict[str, Any]]:
    """The formulas against serialized messages: recorded at LLaVA's width, and sent now."""
    recorded = json.loads(step_traffic_json.read_text())
    rows = []
    small = Namespace(
        hidden_size=128,
        rank=16,
        batch=4,
        image_tokens=9,
        text_tokens=12,
        connector_input=64,
        dtype="float32",
        steps=3,
    )
    sent_now = {
        name: dict(zip(("first", "later"), step_traffic.measure(kind, small)[:2], strict=True))
        for name, kind in EXCHANGES.items()
    }
    cases = (
        (Namespace(**recorded["setting"]), recorded["bytes_of_a_step"], step_traffic_json.name),
        (small, sent_now, "sent now"),
    )
    for setting, counted, source in cases:
        model = sizes.Model(
            setting.hidden_size,
            setting.rank,
            step_traffic.VOCABULARY,
            4 if setting.dtype == "float32" else 2,
        )
        question = sizes.Question(setting.image_tokens, setting.text_tokens)
        for name in EXCHANGES:
            later = sizes.step_traffic(name, model, question, setting.batch)
            first = later + sizes.features_traffic(name, model, question, setting.batch)
            for when, formula in (("first", first.both), ("later", later.both)):
                real = counted[name][when]
                rows.append(
                    {
                        "hidden_size": setting.hidden_size,
                        "exchange": name,
                        "step": when,
                        "formula": round(formula),
                        "counted": real,
                        "error": formula / real - 1,
                        "source": source,
                    }
                )
    return rows


def look_seconds(messages: int, repeats: int) -> float:
    """What Flower's simulator takes to look at one waiting message for one client.

    It asks for each client in turn, and its state then looks at the messages of all.
    """
    state = InMemoryLinkState(NoOpFederationManager(), ObjectStoreFactory().store())
    state.run_ids = {
        0: cast(Any, SimpleNamespace(run=SimpleNamespace(federation_id=NOOP_FEDERATION_ID)))
    }
    for number in range(messages):
        metadata = SimpleNamespace(
            created_at=time.time(),
            ttl=1e6,
            src_node_id=1,
            dst_node_id=number + 2,
            run_id=0,
            delivered_at="",
        )
        state.message_ins_store[str(number)] = cast(Any, SimpleNamespace(metadata=metadata))
    return _median_seconds(lambda: state.get_message_ins(0, limit=1), repeats) / messages
