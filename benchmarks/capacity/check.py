"""The calculator against a real simulation: inputs from a few clients, a prediction for many.

Both runs are `fednano run` on the demo's questions, dealt evenly, as many a client in both. What a
round costs with many clients is predicted from the small run's metrics.jsonl and then measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.capacity import measure, sizes
from benchmarks.capacity import model as paper
from benchmarks.report import ROOT
from benchmarks.runs import fednano_run
from fednano_demo.generate import write_dataset
from fednano_flwr.config import RunConfig, machine, project
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.shard import all_shards
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.questions import teacher_forced
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.rounds.federation import POLL_SECONDS

ROUNDS = 2  # the first sends the training questions' features, the second sends none
TRAIN, TEST = 10, 5  # questions a client

Record = Mapping[str, Any]


def simulate(clients: int, folder: Path, changes: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one run, whose data and features are new."""
    data = folder / f"data-{clients}"
    write_dataset(data, train=TRAIN * clients, val=1, test=TEST * clients)
    settings = [
        f"dataset.path={data / 'scienceqa'}",
        "dataset.partitioner=iid",
        "strategy.name=fednano",  # adapters and Fisher values up, one pass more
        f"num-server-rounds={ROUNDS}",
        f"edge.feature-dir={folder / f'features-{clients}'}",
        *changes,
    ]
    records = fednano_run(folder, f"clients-{clients}", settings, clients)
    failed = {k: v for record in records for k, v in record["failures"].items() if v}
    if failed:
        raise RuntimeError(f"clients failed in the run of {clients}: {failed}")
    return records


def config_of(clients: int, folder: Path) -> RunConfig:
    """The config of a run, as it was resolved."""
    written = json.loads((folder / f"clients-{clients}" / "config.json").read_text())
    known = project.defaults(ROOT)
    return RunConfig.parse({key: written[key] for key in known})


def calibrate(records: Sequence[Record], config: RunConfig, look: float) -> paper.Setup:
    """The calculator's inputs from a small run: later rounds, in which no feature is sent.

    Args:
        look: see `SuperLink.look_seconds`; next to nothing with few clients.
    """
    later = records[-1]
    clients = len(later["test_questions_per_client"])
    work = _workload(config, clients)
    at_once = min(machine.cpus(), clients)
    seconds = later["client_seconds"]
    trained, evaluated = mean(seconds["train"]), mean(seconds["evaluate"])
    waiting = seconds["waiting_for_llm"] / clients
    # Scoring is taken to go twice as fast as training: one forward instead of two and a backward.
    train_rate = (work.trained_tokens + work.scored_tokens / 2) / waiting
    own_train = trained - work.trained_tokens / train_rate
    own_score = evaluated - work.scored_tokens / (2 * train_rate)
    more = work.gradient_passes * work.train.questions - work.test.questions
    question = max(0.0, (own_train - own_score) / more)
    polls = POLL_SECONDS / 2
    overhead = (later["seconds"] - 2 * polls) * at_once / clients - trained - evaluated
    encoded = sum(record["features"]["encoded"] for record in records)
    encoder = sum(record["client_seconds"]["encoder"] for record in records)
    checkpoint = ModelCheckpoint(config.model.name)
    text = checkpoint.config.get_text_config()
    return paper.Setup(
        exchange=config.exchange.kind,
        model=sizes.Model(
            text.hidden_size,
            config.adapter.rank,
            text.vocab_size,
            _wire_bytes(config),
            in_turns=config.strategy.name == "rolora",
        ),
        workload=work,
        host=paper.Host(train_rate, 2 * train_rate),
        client=paper.ClientSide(
            message_seconds=max(0.0, own_score - work.test.questions * question),
            question_seconds=question,
            score_seconds=question,
            encode_seconds=encoder / max(1, encoded),
            at_once=at_once,
        ),
        superlink=paper.SuperLink(
            message_seconds=max(0.0, overhead / 2), poll_seconds=polls, look_seconds=look
        ),
    )


def _workload(config: RunConfig, clients: int) -> paper.Workload:
    """What clients do, from their shards' sizes and their questions' tokens."""
    checkpoint = ModelCheckpoint(config.model.name)
    encoder = load_encoder(checkpoint)
    samples = load_questions(config.dataset)
    questions = [encoder.encode(s) for split in (samples.train, samples.test) for s in split]
    pictured = [len(q.sample.pictures) > 0 for q in questions]
    image = [int((q.ids == checkpoint.config.image_token_id).sum()) for q in questions]
    endings = [len(ending) for ending in teacher_forced(questions)]
    total = [len(q.ids) + ending for q, ending in zip(questions, endings, strict=True)]
    train, test = dealt(config, clients)
    return paper.Workload(
        question=sizes.Question(
            image_tokens=sum(image) / max(1, sum(pictured)),
            text_tokens=mean(total) - mean(image),
            pictured=mean(pictured),
            options=mean(len(q.options) for q in questions),
        ),
        train=train,
        test=test,
        gradient_passes=config.local_epochs + (config.strategy.name == "fednano"),
        fisher=config.strategy.name.startswith("fednano"),
    )


def dealt(config: RunConfig, clients: int) -> tuple[paper.Shard, paper.Shard]:
    """Training and test questions of a client, on average: known before anything is run."""
    questions = load_questions(config.dataset)
    shards = all_shards(questions, config.dataset, config.seed, clients)
    both = [len(shard.train) for shard in shards], [len(shard.test) for shard in shards]
    train, test = (
        paper.Shard(mean(counts), mean(math.ceil(n / config.batch_size) for n in counts))
        for counts in both
    )
    return train, test


def _wire_bytes(config: RunConfig) -> float:
    name = config.llm.dtype if config.exchange.dtype == "auto" else config.exchange.dtype
    return {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.03}[name]


def compare(setup: paper.Setup, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows of predicted and measured, each round; seconds of round 0 hold Ray's start."""
    clients = len(records[0]["test_questions_per_client"])
    rows = []
    for record in records:
        number = record["round"]
        cost = paper.round_cost(
            setup,
            clients if number else 0,
            clients,
            first_training=number == 1,
            first_evaluation=number == 0,
        )
        pairs = {
            "step bytes up": (cost.step.up, record["step_bytes_up"]),
            "step bytes down": (cost.step.down, record["step_bytes_down"]),
            "round bytes up": (cost.round.up, record["round_bytes_up"]),
            "round bytes down": (cost.round.down, record["round_bytes_down"]),
        }
        if number:
            pairs["seconds"] = (cost.seconds, record["seconds"])
        rows += [
            {
                "round": number,
                "what": what,
                "predicted": predicted,
                "measured": measured,
                "error": predicted / measured - 1,
            }
            for what, (predicted, measured) in pairs.items()
        ]
    return rows


def check(few: int, many: int, folder: Path, changes: Sequence[str]) -> dict[str, Any]:
    """Calibrate on `few` clients, predict and measure `many`; then calibrate once more.

    How far the two calibrations' predictions lie apart says how steady the machine was.
    """
    before = simulate(few, folder / "before", changes)
    large = simulate(many, folder / "many", changes)
    after = simulate(few, folder / "after", changes)
    config = config_of(many, folder / "many")
    train, test = dealt(config, many)
    setups = []
    look = measure.look_seconds(many, repeats=100)
    for name, small in (("before", before), ("after", after)):
        known = calibrate(small, config_of(few, folder / name), look)
        setups.append(replace(known, workload=replace(known.workload, train=train, test=test)))
    rows, again = (compare(setup, large) for setup in setups)
    for row, other in zip(rows, again, strict=True):
        row["predicted_after"], row["error_after"] = other["predicted"], other["error"]
    return {
        "calibrated_on": few,
        "clients": many,
        "changes": list(changes),
        "inputs": {"before": as_dict(setups[0]), "after": as_dict(setups[1])},
        "rows": rows,
        "client_seconds": {
            name: {
                part: mean(records[-1]["client_seconds"][part]) for part in ("train", "evaluate")
            }
            for name, records in (("before", before), ("many", large), ("after", after))
        },
    }


def as_dict(setup: paper.Setup) -> dict[str, Any]:
    """The setup's numbers that are known; what has no limit is left out."""
    parts = {name: vars(value) for name, value in vars(setup).items() if hasattr(value, "__dict__")}
    work = setup.workload
    parts["workload"] = {
        **vars(work.question),
        "train": vars(work.train),
        "test": vars(work.test),
        "gradient_passes": work.gradient_passes,
    }
    return {
        name: {
            key: value
            for key, value in values.items()
            if not (isinstance(value, float) and math.isinf(value))
        }
        for name, values in parts.items()
    }
