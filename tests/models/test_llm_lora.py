"""LoRA inside the language model, trained at the host: as if the whole model had been trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from fednano_flwr.adapters.site import build_adapters, named_trainable, randomize
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.config import Adapter
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, next_token_labels
from fednano_flwr.edge.training import TrainingPlan, _shuffled, train
from fednano_flwr.exchange.at_host import AtHost, HostLora, LoraPlan
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.exchange.registry import EXCHANGES
from fednano_flwr.llm.finished import FinishedSessions
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.sessions import Sessions
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.models.lora import NAME, PREFIX, fresh_lora
from tests.models.test_families import samples_of
from tests.models.unsplit import Unsplit, use_plain_experts

ADAPTER = Adapter(4, 8.0, 0.0, "all,llm", llm_rank=3)
RATE, LLM_RATE, DECAY, NORM = 0.003, 0.01, 0.1, 0.05
SEED = 5
FULL = ("llava", "qwen2_vl")
"""A head of its own, and one that is the token embeddings."""


class WithPart:
    """A service as a phase's token makes it: each call is computed with what is at the host."""

    def __init__(self, host: Any, part: AtHost) -> None:
        self._host, self._part = host, part

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._host, name)

        def through(*arguments: Any, **named: Any) -> Any:
            if name == "begin":
                return call(self._part)
            return call(
                *(a.through(self._part) if hasattr(a, "through") else a for a in arguments), **named
            )

        return through


def plan_of(epochs: int) -> TrainingPlan:
    return TrainingPlan(epochs, 2, RATE, DECAY, NORM)


def split(
    folder: Path, dtype: str, labels_at: str, epochs: int, kind: str, **options: Any
) -> tuple[dict[str, Tensor], list[Question], float]:
    """All trained parameters after a client's round, by name."""
    checkpoint = ModelCheckpoint(str(folder))
    frozen = load_edge_half(str(folder), dtype=dtype)
    adapters = build_adapters(48, ADAPTER, 3, sites=frozen.sites)
    randomize(adapters, 0.3, seed=4).to(getattr(torch, dtype))
    encoder = load_encoder(checkpoint)
    edge = NanoEdge(frozen, frozen.token_table(), adapters, encoder)
    questions = [encoder.encode(sample) for sample in samples_of(encoder)]
    half = load_llm_half(str(folder), dtype=dtype, lora=ADAPTER, **options)
    if dtype == "float64":
        use_plain_experts(half.get_submodule("_host"))
    assert half.lora is not None
    host = FinishedSessions(FrozenLLM(half, sessions=Sessions(half.lora, 4, 2**30)))
    part = AtHost(lora=HostLora(start(checkpoint), LoraPlan(LLM_RATE, DECAY)))
    llm = EXCHANGES[kind](WithPart(host, part), labels_at)  # type: ignore[arg-type]
    turns = llm.begin()
    loss = train(edge, llm, questions, plan_of(epochs), SEED, session=turns).loss
    inside = host.result(b"", llm.end()).theta
    own = {name: p.detach().clone() for name, p in named_trainable(adapters).items()}
    return {**own, **inside}, questions, loss


def start(checkpoint: ModelCheckpoint) -> dict[str, Tensor]:
    """A LoRA that changes something."""
    drawn = torch.Generator().manual_seed(9)
    fresh = fresh_lora(checkpoint, ADAPTER, seed=1)
    return {
        name: value if "lora_A" in name else torch.randn(value.shape, generator=drawn) * 0.2
        for name, value in fresh.items()
    }


def unsplit(
    folder: Path, dtype: str, questions: list[Question], epochs: int
) -> tuple[dict[str, Tensor], float]:
    """The same of the whole model, with PEFT's LoRA in it and one optimizer for all."""
    checkpoint = ModelCheckpoint(str(folder))
    whole = Unsplit(folder, folder.name, dtype)
    model, kind = whole.model, getattr(torch, dtype)
    adapters = build_adapters(48, ADAPTER, 3, sites=load_edge_half(str(folder)).sites)
    randomize(adapters, 0.3, seed=4).to(kind)
    values = start(checkpoint)
    names = sorted({name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in values})
    config = LoraConfig(r=3, lora_alpha=8, target_modules=names)
    inject_adapter_in_model(config, model, NAME)
    inside: dict[str, nn.Parameter] = {}
    for name, value in values.items():
        path, _, factor = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        layer = model.get_submodule(path)
        getattr(layer, factor)[NAME].weight = inside[name] = nn.Parameter(value.to(kind))
    own = named_trainable(adapters)
    optimizer = torch.optim.AdamW(
        [{"params": list(own.values())}, {"params": list(inside.values()), "lr": LLM_RATE}],
        lr=RATE,
        weight_decay=DECAY,
    )
    together = [*own.values(), *inside.values()]
    encoder, total = load_encoder(checkpoint), 0.0
    order = torch.Generator().manual_seed(derive_seed(Purpose.ORDER, SEED))
    for batch in _shuffled(questions, plan_of(epochs), order):
        optimizer.zero_grad()
        labels = next_token_labels(batch, IGNORE)
        logits = whole.logits(batch, encoder, adapters, "left")
        loss = F.cross_entropy(logits, labels[labels != IGNORE])
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(together, NORM) > NORM
        optimizer.step()
        total += loss.item() * len(batch)
    found: Mapping[str, Tensor] = {**own, **inside}
    detached = {name: value.detach() for name, value in found.items()}
    return detached, total / epochs / len(questions)


def apart(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The largest difference of a parameter, relative to its largest value."""
    assert got.keys() == wanted.keys()
    return max(
        float((got[name].double() - value).abs().max() / value.abs().max())
        for name, value in wanted.items()
    )


@pytest.mark.parametrize("labels_at", ["server", "client"])
@pytest.mark.parametrize("kind", list(EXCHANGES))
@pytest.mark.parametrize("family", FULL)
def test_a_clients_round_is_that_of_the_whole_model(
    family: str, kind: str, labels_at: str, family_folder: Callable[[str], Path]
) -> None:
    """20 steps, within 1e-9; what a session leads to is float32."""
    folder = family_folder(family)
    got, questions, loss = split(folder, "float64", labels_at, 7, kind)
    wanted, expected = unsplit(folder, "float64", questions, 7)
    assert any(name.startswith(PREFIX) for name in got)
    assert apart(got, wanted) < 1e-9
    assert loss == pytest.approx(expected, rel=1e-6)
