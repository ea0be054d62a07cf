"""LoRA inside the language model, trained at the host: as if the whole model had been trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from fednano_flwr.adapters.site import build_adapters, named_trainable, randomize
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.config import Adapter, ConfigError
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, next_token_labels
from fednano_flwr.edge.training import TrainingPlan, _shuffled, train
from fednano_flwr.exchange.at_host import AtHost, HostLora, LoraPlan, Turn
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.exchange.registry import EXCHANGES
from fednano_flwr.llm.finished import FinishedSessions
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.sessions import Sessions
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.models.lora import NAME, PREFIX, fresh_lora
from tests.batches import labelled_everywhere
from tests.families import TINY
from tests.models.test_families import samples_of
from tests.models.test_placement import on_meta, parts
from tests.models.test_quantize import KINDS, quantized, with_bitsandbytes, write
from tests.models.unsplit import Unsplit, use_plain_experts

ADAPTER = Adapter(4, 8.0, 0.0, "all,llm", llm_rank=3)
RATE, LLM_RATE, DECAY, NORM = 0.003, 0.01, 0.1, 0.05
SEED = 5
FULL = ("llava", "qwen2_vl")
"""A head of its own, and one that is the token embeddings."""
ROUNDED = ("gemma3", "gemma4", "gemma4-large", "paligemma", "qwen3_5")
"""Some of their layers compute in float32 whatever the dtype, and AdamW's first step divides each
gradient by its own size."""


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
    """Two questions a step; of one epoch, all in one."""
    return TrainingPlan(epochs, 5 if epochs == 1 else 2, RATE, DECAY, NORM)


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


@pytest.mark.parametrize("family", [family for family in TINY if family not in FULL])
def test_a_step_is_that_of_the_whole_model(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    folder = family_folder(family)
    got, questions, _ = split(folder, "float64", "server", 1, "lowrank")
    wanted, _ = unsplit(folder, "float64", questions, 1)
    assert apart(got, wanted) < (1e-4 if family in ROUNDED else 1e-9)


@pytest.mark.parametrize("labels_at", ["server", "client"])
@pytest.mark.parametrize("spread", [False, True])
def test_layers_that_are_computed_again_or_spread_give_the_same_bits(
    spread: bool, labels_at: str, family_folder: Callable[[str], Path]
) -> None:
    folder = family_folder("qwen2_vl")
    expected, _, _ = split(folder, "float32", labels_at, 2, "lowrank")
    places = parts(on_meta(folder)) if spread else ""
    options = {"checkpointing": True, "device_map": places}
    got, _, _ = split(folder, "float32", labels_at, 2, "lowrank", **options)
    assert all(torch.equal(got[name], value) for name, value in expected.items())


@with_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_host_trains_the_lora_as_if_its_weights_were_dequantized(
    kind: str, tmp_path: Path
) -> None:
    folder = write("llava", tmp_path / "wide", width=64)
    adapter, plan = replace(ADAPTER, sites="llm"), LoraPlan(LLM_RATE, DECAY)
    half, plain = (
        load_llm_half(str(folder), quantization=one, lora=adapter) for one in (kind, "none")
    )
    for name in quantized(half):
        layer = half.get_submodule(name.removesuffix(".weight"))
        rounded = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
        plain.get_parameter(name).data = rounded.to(torch.float32)
    values = start(ModelCheckpoint(str(folder)))
    part = AtHost(lora=HostLora(values, plan))
    norms, results = [], []
    for one in (half, plain):
        assert one.lora is not None
        host = FrozenLLM(one, sessions=Sessions(one.lora, 1, 2**30))
        inputs, labels = labelled_everywhere(one)
        session = host.begin(part)
        _, gradient = host.step(inputs.with_(turn=Turn(session, 1)).through(part), labels)
        norms.append(float(gradient[-1]))
        results.append(host.end(Turn(session, 2)).theta)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and norms[0] > 0
    moved = [
        torch.cat([(r[n] - v).flatten() for n, v in part.lora.values.items()]) for r in results
    ]  # type: ignore[union-attr]
    assert F.cosine_similarity(moved[0], moved[1], dim=0) > 0.999


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("q_proj, v_proj", {"q_proj", "v_proj"}),
        (r".*layers\.1\.mlp\.(gate|up)_proj", {"gate_proj", "up_proj"}),
        (
            "all-linear",
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        ),
    ],
)
def test_targets_are_named_as_for_peft(
    targets: str, expected: set[str], family_folder: Callable[[str], Path]
) -> None:
    checkpoint = ModelCheckpoint(str(family_folder("llava")))
    found = fresh_lora(checkpoint, replace(ADAPTER, llm_targets=targets), 0)
    layers = {name.rpartition(".lora_")[0] for name in found}
    assert {layer.rpartition(".")[2] for layer in layers} == expected
    named = [name for name, _ in checkpoint.tree.named_modules()]
    assert {layer.removeprefix(PREFIX) for layer in layers} <= set(named)


@pytest.mark.parametrize(
    ("targets", "message"),
    [("c_attn", "called down_proj, gate_proj, k_proj"), ("(q_proj", "missing \\)")],
)
def test_targets_that_there_are_none_of_are_refused(
    targets: str, message: str, family_folder: Callable[[str], Path]
) -> None:
    checkpoint = ModelCheckpoint(str(family_folder("llava")))
    with pytest.raises(ConfigError, match=message):
        fresh_lora(checkpoint, replace(ADAPTER, llm_targets=targets), 0)


def test_the_same_seed_draws_the_same_lora(family_folder: Callable[[str], Path]) -> None:
    checkpoint = ModelCheckpoint(str(family_folder("llava")))
    one, same, other = (fresh_lora(checkpoint, ADAPTER, seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    for name, value in one.items():
        assert torch.equal(value, other[name]) == (not value.any()) == ("lora_B" in name)
