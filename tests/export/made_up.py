"""A run's folder as a run writes it, with adapters and figures that were made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fednano_flwr.adapters.site import adapter_state, build_adapters, randomize
from fednano_flwr.config import Adapter, RunConfig
from fednano_flwr.exchange.at_host import HostLora
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.sessions import Sessions
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.models.lora import fresh_lora
from fednano_flwr.runs.folder import RunFolder


def random_adapters(
    width: int, adapter: Adapter, seed: int = 3, sites: Sequence[str] = ("image", "text")
) -> Any:
    """NanoAdapters whose B is not zero."""
    return randomize(build_adapters(width, adapter, seed, sites=sites), 0.3, seed + 1)


def random_lora(model: ModelCheckpoint, adapter: Adapter, seed: int = 3) -> dict[str, Tensor]:
    """A LoRA inside the language model whose B is not zero; none where the sites have no `llm`."""
    if not adapter.at_llm:
        return {}
    drawn = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=drawn) * 0.2 if ".lora_B." in name else value
        for name, value in fresh_lora(model, adapter, seed).items()
    }


def host_of(model: ModelCheckpoint, adapter: Adapter) -> FrozenLLM:
    """The language model, with this LoRA if the sites have `llm`."""
    if not adapter.at_llm:
        return FrozenLLM(load_llm_half(model.name))
    half = load_llm_half(model.name, lora=adapter)
    assert half.lora is not None
    sessions = Sessions(half.lora, 1, 0)
    return FrozenLLM(half, sessions=sessions, lora=HostLora(random_lora(model, adapter)))


def record(server_round: int, accuracy: float) -> dict[str, Any]:
    """A line of metrics.jsonl with what a card tells of it."""
    return {
        "round": server_round,
        "accuracy": accuracy,
        "accuracy_per_client": {"0": accuracy - 0.125, "1": accuracy + 0.125},
        "accuracy_by": {"all": {"accuracy": accuracy, "questions": 24}},
        "test_loss": 1.0 - accuracy,
        "train_loss": 0.5 if server_round else None,
        "round_bytes_up": 1000 * server_round,
        "round_bytes_down": 2000,
        "step_bytes_up": 3_000_000,
        "step_bytes_down": 4000,
        "step_calls": 1234,
    }


def write_run(
    flat: dict[str, Any], *accuracies: float, sites: Sequence[str] = ("image", "text")
) -> tuple[Path, dict[str, Tensor]]:
    """A folder with a round for each accuracy, and the adapters of all rounds after round 0."""
    config = RunConfig.parse(flat)
    model = ModelCheckpoint(config.model.name, config.model.revision)
    width = model.config.get_text_config().hidden_size
    folder = RunFolder(config)
    folder.model = {
        "name": model.name,
        "hub_id": model.hub_id,
        "fingerprint": model.fingerprint,
        "hidden_size": width,
    }
    folder.model_revision = model.revision
    trained = adapter_state(random_adapters(width, config.adapter, sites=sites))
    trained |= random_lora(model, config.adapter)
    for server_round, accuracy in enumerate(accuracies):
        fresh = adapter_state(build_adapters(width, config.adapter, config.seed, sites=sites))
        if config.adapter.at_llm:
            fresh |= fresh_lora(model, config.adapter, config.seed)
        folder.append(record(server_round, accuracy), trained if server_round else fresh, width)
    return folder.path, trained
