"""The Flower ClientApp: a message in, NanoEdge's work, a reply out.

Every message may meet a fresh process, and does so in deployment; what a client needs comes with
the message, from the run config, or from its node config (`config/node.py`).
"""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

gc.disable()  # what is imported is no garbage, and to look for it takes a fifth of importing

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fednano_flwr.base.reasons import by_reason
from fednano_flwr.config import ConfigError, RunConfig, lineage
from fednano_flwr.config.node import NodeConfig
from fednano_flwr.edge.client import Client, peak_gpu_memory_mb, peak_memory_mb
from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.tls import read_ca
from fednano_flwr.preflight import check_all, client_checks, preferred, spec_of
from fednano_flwr.privacy.mods import clip_as_asked
from fednano_flwr.rounds.records import SESSION, failed, from_arrays, to_upload

gc.enable()
log = logging.getLogger(__name__)
app = ClientApp()
Metrics = dict[str, int | float | list[int] | list[float]]
Work = Callable[[Client, Message, RemoteLLM], RecordDict]


@app.train(mods=[clip_as_asked])
def train(message: Message, context: Context) -> Message:
    """Train as the message says; reply the adapters and Fisher values it asks for, metrics."""
    return _reply(message, context, _train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score this client's own test questions; reply metrics."""
    return _reply(message, context, _evaluate)


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Say which partition this node holds, which a resumed run asks before it goes on."""
    try:
        node = NodeConfig.parse(context.node_config)
        spec = spec_of(RunConfig.parse(context.run_config), node)
    except Exception as error:
        log.exception("this client cannot say which partition it holds")
        return failed(message, error)
    metrics: Metrics = {"partition-id": spec.partition, "num-partitions": spec.num_partitions}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def _train(client: Client, message: Message, llm: RemoteLLM) -> RecordDict:
    task = message.content.config_records["config"]
    theta = from_arrays(message.content.array_records["arrays"])
    server_round = _round(task)
    result = client.train(theta, llm, server_round, LocalWork.from_config(task))
    metrics: Metrics = {"num-examples": result.num_examples, "train-loss": result.loss}
    if result.session:
        metrics[SESSION] = result.session
    own = client.local_state(server_round)
    arrays = to_upload(result.theta, result.fisher, theta, client.config.upload, own)
    return RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})


def _evaluate(client: Client, message: Message, llm: RemoteLLM) -> RecordDict:
    task = message.content.config_records["config"]
    theta = from_arrays(message.content.array_records["arrays"])
    result = client.evaluate(theta, llm, _round(task), LocalWork.from_config(task))
    metrics: Metrics = {
        "num-examples": result.num_examples,
        "score": result.score,
        "test-loss": result.loss,
        "test-tokens": result.tokens,
        "train-examples": len(client.shard.train),
        "cut-examples": client.shard.train.cut + client.shard.test.cut,
    }
    left_out = {reason: ids for ids, reason in by_reason(client.shard.left_out)}
    return RecordDict(
        {
            "metrics": MetricRecord(metrics),
            "notes": ConfigRecord(
                {
                    "skipped": json.dumps(client.shard.skipped),
                    "unreadable": json.dumps(left_out),
                    "tally": json.dumps(result.tally),
                }
            ),
        }
    )


def _reply(message: Message, context: Context, work: Work) -> Message:
    """Do the work and add what it cost; a client that cannot go on says why."""
    started, partition = time.perf_counter(), None
    try:
        node = NodeConfig.parse(context.node_config)
        config = node.applied_to(RunConfig.parse(context.run_config))
        spec = spec_of(config, node)
        partition = spec.partition
        check_all(client_checks(config, node))
        earlier = lineage.from_config(message.content.config_records["config"])
        client = Client(config, spec, context.run_id, earlier)
        half = client.half
        with _llm(config, node, message, context) as llm:
            llm.register(half.model, half.fingerprint, half.hidden_size, half.hub_id, half.revision)
            content = work(client, message, llm)
    except Exception as error:
        log.exception("client cannot go on")
        return failed(message, error, partition)
    content.metric_records["metrics"].update(
        {
            "partition-id": spec.partition,
            "num-partitions": spec.num_partitions,
            "step-bytes-up": llm.traffic.bytes_up,
            "step-bytes-down": llm.traffic.bytes_down,
            "step-calls": llm.traffic.calls,
            "step-retries": llm.traffic.retries,
            "llm-seconds": llm.traffic.seconds,
            "encoder-seconds": client.edge.encoder_seconds,
            "features-encoded": client.edge.encoded,
            "features-from-disk": client.features.from_disk,
            "seconds": time.perf_counter() - started,
            "peak-memory-mb": peak_memory_mb(),
            "peak-gpu-memory-mb": peak_gpu_memory_mb(),
        }
    )
    return Message(content, reply_to=message)


@contextmanager
def _llm(
    config: RunConfig, node: NodeConfig, message: Message, context: Context
) -> Iterator[RemoteLLM]:
    """The host that the message names."""
    task = message.content.config_records["config"]
    caller = Caller(
        run=context.run_id,
        node=context.node_id,
        round=_round(task),
        phase=message.metadata.message_type,
        token=str(task["llm-token"]),
    )
    exchange = config.exchange
    with RemoteLLM(
        str(task["llm-address"]),
        caller,
        exchange.dtype,
        exchange.timeout,
        ca=_ca(config, node, task),
    ) as llm:
        yield llm


def _ca(config: RunConfig, node: NodeConfig, task: ConfigRecord) -> bytes | None:
    """The certificates that this client trusts; None for a service without TLS.

    A client that has some never speaks without TLS, whatever the message says.

    Raises:
        ConfigError: none where the service speaks TLS, or they cannot be used.
    """
    key, path = preferred(config, node, "ca-cert")
    if path:
        return read_ca(key, path)
    if task["llm-tls"]:
        raise ConfigError(
            "the LLM service speaks TLS and this client has no CA to check it with: set "
            "exchange.ca-cert, or ca-cert in the node config, to the file of the CA's certificate"
        )
    return None


def _round(task: ConfigRecord) -> int:
    return int(str(task["server-round"]))
