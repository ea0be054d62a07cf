"""Some clients' training once more, over the real exchange, with a host that records.

Each client starts from the adapters that the server holds, as in a round, and trains for
`local-epochs`; as often as it takes for each question to have been sent as often as asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.audit.recording import Ledger, Prompt, Recorder, Witness
from fednano_flwr.adapters.product import FACTORIZATIONS, cut_state
from fednano_flwr.adapters.site import load_adapter_state
from fednano_flwr.base.console import say
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.config import RunConfig
from fednano_flwr.edge.client import Client, exchange_of
from fednano_flwr.edge.process_cache import keep_clients
from fednano_flwr.edge.shard import ClientSpec
from fednano_flwr.edge.training import TrainingPlan, train
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.service import open_host


@dataclass(frozen=True)
class Played:
    """A client's prompts as the host received them, and the adapters that the client was sent."""

    client: Client
    theta: dict[str, Tensor]
    prompts: list[Prompt]


def play(
    config: RunConfig,
    theta: Mapping[str, Tensor],
    clients: int,
    questions: int,
    seed: int,
    observations: int,
) -> Iterator[Played]:
    """Play the clients one after another; those without a training question are left out.

    Args:
        theta: the server's adapters.
        questions: of all clients together, as evenly from each as their shards allow.
        seed: which questions, and in which order.
        observations: how often each is sent.

    Raises:
        ConfigError, ResourceError, DataError: model or data are not as the config says.
    """
    keep_clients(clients)
    alone = replace(config.llm, replicas=1)
    exchange = config.exchange
    with open_host(config.model, alone, False, say) as host:
        recorder = Recorder(host)
        with serve(recorder) as address:
            for partition, count in enumerate(_even(questions, clients)):
                client = Client(config, ClientSpec(partition, clients))
                client.keep_within(host.describe())
                if not count or not client.shard.train:
                    continue
                half = client.half
                with RemoteLLM(address, dtype=exchange.dtype, timeout=exchange.timeout) as remote:
                    remote.register(
                        half.model, half.fingerprint, half.hidden_size, half.hub_id, half.revision
                    )
                    sent = cut_state(theta, client.rank, FACTORIZATIONS[config.strategy.factors])
                    ledger = Ledger(observations)
                    llm = Witness(exchange_of(config, remote), recorder, ledger)
                    _train(client, llm, sent, count, seed, observations)
                yield Played(client, dict(sent), list(ledger.prompts.values()))


def _train(
    client: Client, llm: Witness, sent: Mapping[str, Tensor], count: int, seed: int, times: int
) -> None:
    config, partition = client.config, client.partition
    generator = torch.Generator().manual_seed(derive_seed(Purpose.AUDITED, seed, partition))
    chosen = torch.randperm(len(client.shard.train), generator=generator)[:count].tolist()
    plan = TrainingPlan.of(config, max(1, config.num_server_rounds), client.limits)
    plan = replace(plan, local_epochs=min(times, config.local_epochs))
    for repeat in range(math.ceil(times / plan.local_epochs)):
        load_adapter_state(client.edge.adapters, sent)
        order = derive_seed(Purpose.AUDIT_TRAINING, seed, partition, repeat)
        train(client.edge, llm, [client.shard.train[i] for i in chosen], plan, order)


def _even(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole numbers that differ by at most one."""
    return [total // parts + (part < total % parts) for part in range(parts)]
