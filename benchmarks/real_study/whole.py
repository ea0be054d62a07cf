"""Runs of the unsplit model: frozen, with LoRA inside, and with a federation's NanoAdapters."""

from __future__ import annotations

import json
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from benchmarks.full_model_client import full_edge
from benchmarks.report import memory
from benchmarks.whole import WholeModel
from fednano_flwr.adapters.site import build_adapters, load_adapter_state
from fednano_flwr.analysis.experiments.plan import PlannedRun
from fednano_flwr.analysis.experiments.worker import Outcome, outcome_of
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.data.metrics import find_metric
from fednano_flwr.data.shard import read_shards
from fednano_flwr.edge import process_cache
from fednano_flwr.edge.encoder import encode_all, load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import NO_LIMITS
from fednano_flwr.edge.scoring import Score, score_questions
from fednano_flwr.edge.training import TrainingPlan, train
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.runs.results import load_run

FROZEN, LORA, CENTRALIZED = "frozen", "lora", "centralized"
FIRST = 0
"""Partition of the client that trains for all."""
ATTENTION = r".*language_model.*\.self_attn\.[qkvo]_proj"


def notes_of(run: PlannedRun) -> Path:
    """File with what a run's folder does not say: each question's score, peak memory."""
    return run.folder.with_name(f"{run.folder.name}.json")


def carry_out(run: PlannedRun, scratch: Path) -> Outcome:
    """Do a run of the study, as `worker.outcome_of` does one of a comparison.

    NanoAdapters that were trained centrally are scored once more, in the unsplit model, question by
    question: their run has sums only.
    """
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # begin the peak of memory anew
    notes_of(run).unlink(missing_ok=True)
    notes: dict[str, Any] = {}
    started = time.perf_counter()
    try:
        if run.experiment in (FROZEN, LORA):
            notes = lora(run) if run.experiment == LORA else {"scores": frozen(run)}
        elif (outcome := outcome_of(run, scratch)).error:
            return outcome
        seconds = time.perf_counter() - started
        notes |= {"seconds": seconds, "peak_mb": memory("VmHWM") / 1e6}
        if run.experiment == CENTRALIZED:
            notes["scores"] = frozen(run, load_run(run.folder).adapters("last"))
        notes_of(run).write_text(json.dumps(notes))
    except Exception as failure:
        traceback.print_exc()
        error = f"{type(failure).__name__}: {failure}"
        return Outcome(time.perf_counter() - started, error)
    return Outcome(seconds)


def frozen(run: PlannedRun, state: Any = None) -> list[list[Score]]:
    """Scores of each client's test questions, of the model as it is or with these NanoAdapters."""
    config = run.config
    whole = WholeModel(Path(config.model.name), config.llm.device, config.llm.dtype)
    adapters = build_adapters(whole.hidden_size, config.adapter, config.seed)
    if state:
        load_adapter_state(adapters, state)
    encoder = load_encoder(ModelCheckpoint(config.model.name))
    return scored(whole.edge(adapters, encoder), whole, run)


def lora(run: PlannedRun) -> dict[str, Any]:
    """Train LoRA in all attention layers on all clients' questions, as `centralized` does its own.

    The same rank, alpha, questions, order, batches and optimizer, which begins anew in each round.
    """
    config = run.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(Purpose.ADAPTERS, config.seed))
        settings = LoraConfig(
            r=config.adapter.rank,
            lora_alpha=config.adapter.alpha,  # type: ignore[arg-type]  # as in adapters/site.py
            lora_dropout=config.adapter.dropout,
            target_modules=ATTENTION,
        )
        edge, whole = full_edge(
            Path(config.model.name), settings, config.llm.device, config.llm.dtype
        )
    union = process_cache.encoded_union(config.model, config.dataset, config.seed, run.clients)
    losses = []
    for server_round in range(1, config.num_server_rounds + 1):
        plan = TrainingPlan.of(config, server_round, NO_LIMITS)
        order = derive_seed(Purpose.TRAINING, config.seed, server_round, FIRST)
        losses.append(train(edge, whole, union.train, plan, order).loss)
    return {"scores": scored(edge, whole, run), "train_loss": losses[-1]}


def scored(edge: NanoEdge, whole: WholeModel, run: PlannedRun) -> list[list[Score]]:
    """The score of every client's every test question."""
    config = run.config
    shards = read_shards(config.dataset, config.seed, run.clients)
    metric, batch = find_metric(config.dataset.metric).score, config.batch_size
    found = []
    for shard in shards:
        questions, left_out = encode_all(edge.encoder, shard.test)
        if left_out:
            raise ValueError(f"{len(left_out)} test questions cannot be used, first {left_out[0]}")
        tokens = config.max_answer_tokens
        found.append(score_questions(edge, whole, questions, batch, metric, tokens))
    return found
