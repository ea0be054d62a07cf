"""What a machine that runs a SuperNode needs."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from fednano_flwr.config import Model, RunConfig
from fednano_flwr.doctor import (
    certificates,
    data,
    folders,
    machine,
    model,
    node,
    settings,
    versions,
)
from fednano_flwr.doctor.finding import Finding
from fednano_flwr.doctor.subject import Subject, Themes, dialled, threads


def checks(subject: Subject) -> Themes:
    """All checks; without a run config, those that need none."""
    config, own = subject.config, subject.node
    shard = Path(own.data_path) if own.data_path else None
    ca_key, ca_path = "the node config's ca-cert", own.ca_cert
    edge_key, edge_path = "the node config's edge-path", own.edge_path
    device_key, device = "the node config's device", own.device
    if config is not None:  # what the node config does not say, the run config does
        if not ca_path:
            ca_key, ca_path = "exchange.ca-cert", config.exchange.ca_cert
        if not edge_path:
            edge_key, edge_path = "edge.bundle", config.edge.bundle
        if not device:
            device_key, device = "edge.device", config.edge.device
    themes: Themes = {
        "node config": [("the node's partition", partial(node.check_place, own))],
        "data": [("the shard", partial(data.check_shard, shard))] if shard else [],
        "model": [],
        "folders": [],
        "certificates": [
            ("the CA's certificate", partial(certificates.check_ca, ca_key, ca_path)),
            ("the clock", lambda: certificates.check_clock(time.time())),
        ],
        "network": dialled(subject, ca_key, ca_path),
        "machine": [],
    }
    its = None if config is None else config.model
    if edge_path:
        bundle = partial(model.check_edge_path, edge_key, edge_path, its, shard)
        themes["model"].append(("the edge bundle", bundle))
    elif its is not None:
        themes["model"].append(
            (
                "the client's half of the model",
                partial(model.check_half, its.name, "edge", its.revision),
            )
        )
        themes["model"].append(
            ("the processor", partial(model.check_processor, its.name, its.revision))
        )
    if device:
        themes["machine"].append((device_key, partial(versions.check_device, device_key, device)))
    if config is None:
        return themes
    if not shard:
        themes["data"].append(("the data set", partial(data.check_dataset, config.dataset)))
    themes["run config"] = [("strategy and ranks", partial(settings.check_names, config))]
    themes["node config"].append(("adapter-rank", partial(node.check_rank, own, config)))
    themes["folders"].append(("folders", partial(folders.check_client_folders, config)))
    themes["machine"] += [
        threads("edge.threads", config.edge.threads),
        (
            "memory of the client's half",
            partial(_memory, config, edge_path, device_key, device, own.adapter_rank),
        ),
    ]
    return themes


def _memory(
    config: RunConfig, edge_path: str, device_key: str, device: str, rank: int | None
) -> list[Finding]:
    """As `machine.check_client_memory`, of the bundle or the model."""
    its = Model(edge_path) if edge_path else config.model
    parts = model.parts_of(its.name, its.revision)
    if parts is None:
        return []
    rows = model.rows_of(edge_path) if edge_path else None
    return machine.check_client_memory(config, parts, device_key, device, rows, rank)
