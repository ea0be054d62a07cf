"""The model card of what is exported: README.md, with the head that the Hugging Face hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from fednano_flwr.base.console import human_bytes
from fednano_flwr.data.prompts import user_text
from fednano_flwr.data.sample import Sample
from fednano_flwr.export import snippets
from fednano_flwr.export.license import UNKNOWN, License
from fednano_flwr.export.merged import Merged
from fednano_flwr.export.result import RunResult
from fednano_flwr.models.families import FAMILIES
from fednano_flwr.runs import comparable as scored
from fednano_flwr.runs.results import caveats

EXAMPLE = Sample("", "How many circles are there?", "", "", choices=("1", "2", "3"), answer=0)
SECTIONS = ("strategy", "adapter", "dataset", "upload", "privacy", "bounds")
SINGLE_KEYS = (
    "edge.dtype",
    "llm.dtype",
    "llm.quantization",
    "exchange.kind",
    "exchange.labels-at",
    "exchange.dtype",
)
NOT_SAID = ("resume",)
PLACES = {"image": "the connector's output (pictures)", "text": "the token embeddings (text)"}


def label(name: str) -> str:
    """A model's or a data set's name without the folders it lies in on one machine."""
    if name.startswith(("package:", "module:")):
        return name
    if re.match(r"[A-Za-z]:[\\/]", name):
        return PureWindowsPath(name).name
    if name.startswith(("/", "~", ".")) or name.count("/") > 1:
        return Path(name).name
    return name


def adapters_card(result: RunResult, family: str, license: License) -> str:
    """Card of an exported adapter.

    Args:
        family: `model_type` of the model, "" where it is not at hand.
        license: of the model.
    """
    base, hub = _base(result)
    code = snippets.LOAD_ADAPTERS.format(
        base=base, remark="" if hub else "  # put the path of its folder here"
    )
    return "\n".join(
        [
            *_head(result, "peft", license, "base_model:adapter:"),
            f"# NanoAdapters for {base}",
            "",
            *_what(result),
            "",
            "## Use",
            f"The adapters are low-rank maps on features, h' = h + s·B(A h), on {_places(result)}. "
            "They are no LoRA of the model's own layers, so `PeftModel.from_pretrained(model, …)` "
            "finds no layer of theirs in it. PEFT loads them onto two identity layers, which are "
            "then hung behind embeddings and connector:",
            *_code(code + ("\n" + _ask(result, family) if family else "")),
            "`fednano export RUN --format merged` writes a checkpoint that has them in its weights "
            "and needs none of this.",
            "",
            *_body(result, license),
        ]
    )


def merged_card(result: RunResult, family: str, license: License, merged: Merged) -> str:
    """Card of a merged model."""
    base, _ = _base(result)
    changed = [f"`{name}`" for name in merged.changed]
    notes = [
        f"- Changed: {', '.join(changed)}. All other weights are the base model's.",
    ]
    if merged.untied:
        notes.append(
            f"- The base model's head is the table of its token embeddings. Here the head, "
            f"`{merged.untied}`, is that table as it was, and the embeddings are a table of their "
            "own (`tie_word_embeddings` is false)."
        )
    notes.append(
        f"- Computed in float64, stored as {' and '.join(sorted(merged.dtypes))}: rounding is "
        f"{merged.rounding:.2g} times what the adapters change (norms over the changed tensors)."
    )
    if result.config.get("llm.quantization", "none") != "none":
        notes.append(
            f"- In the run the language model was quantized ({result.config['llm.quantization']}); "
            "these weights are not, so answers may differ from the run's."
        )
    if FAMILIES[family].videos:
        notes.append("- A video's features pass the same connector; the run trained on no video.")
    return "\n".join(
        [
            *_head(result, "transformers", license, "base_model:finetune:"),
            f"# {base} with its NanoAdapters merged",
            "",
            *_what(result),
            "",
            f"The adapters, h' = h + s·B(A h) on {_places(result)}, are in the weights: this is a "
            "plain transformers checkpoint.",
            "",
            "## Use",
            *_code(snippets.LOAD_MERGED + "\n" + _ask(result, family)),
            *notes,
            "",
            *_body(result, license),
        ]
    )


def _places(result: RunResult) -> str:
    """Where the adapters are, in words."""
    return " and on ".join(PLACES[site] for site in result.sites)


def _base(result: RunResult) -> tuple[str, bool]:
    """The base model's name, and whether that is one on the hub."""
    hub = str(result.model.get("hub_id") or "")
    return (hub, True) if hub else (label(str(result.config["model.name"])), False)


def _head(result: RunResult, library: str, license: License, relation: str) -> list[str]:
    base, hub = _base(result)
    tags = ["fednano", "federated-learning", "image-text-to-text", "lora"]
    lines = ["---", f"library_name: {library}", *license.head]
    if hub:
        lines.append(f"base_model: {base}")
        tags.append(f"{relation}{base}")
    return [*lines, "pipeline_tag: image-text-to-text", "tags:", *(f"- {t}" for t in tags), "---"]


def _what(result: RunResult) -> list[str]:
    config, last = result.config, result.rounds[-1]
    clients = len(scored.clients(result.rounds))
    how = (
        f"the best of rounds 0 to {last['round']} by mean accuracy on the clients' test questions, "
        "the same that are reported below"
        if result.which == "best"
        else "the last"
    )
    commit = result.environment.get("dataset_revision")
    revision = f", revision {commit}" if commit else ""
    data = f"{config['dataset.name']} ({label(str(config['dataset.path']))}{revision})"
    lines = [
        f"Tuned with FedNano (arXiv 2506.14824) by fednano-flwr: {clients} "
        f"client{'' if clients == 1 else 's'}, strategy "
        f"`{config['strategy.name']}`, data {data}. This is round {result.round}, {how}. "
        f"Rank {result.adapter_config['r']}, scale s = "
        f"{float(result.adapter_config['lora_alpha']) / int(result.adapter_config['r']):g}, on "
        f"{' and '.join(result.sites)}."
    ]
    said = caveats(str(config["strategy.name"]), str(config.get("adapter.ranks", "")))
    lines += [f"\n{caveat}" for caveat in said]
    return lines


def _ask(result: RunResult, family: str) -> str:
    return snippets.ask(family, user_text(EXAMPLE), int(result.config["max-answer-tokens"]))


def _body(result: RunResult, license: License) -> list[str]:
    model = result.model
    fingerprint = model.get("fingerprint", "not recorded by this run")
    commit = result.environment.get("model_revision")
    revision = f", revision {commit}" if commit else ""
    return [
        "## Accuracy",
        *_rounds_table(result),
        "",
        "Mean over the clients, each on its own test questions; least and greatest in brackets. "
        "Round 0 is the frozen model.",
        "",
        *_kinds_table(result),
        "",
        "## What left the clients",
        *_traffic_table(result.rounds),
        "",
        "Bytes of all clients together, training and scoring. Round traffic is adapters, and what "
        "a strategy asks for with them. Step traffic is what the language model at the server is "
        f"asked and answers: {_asked(result.config)}. Pictures were not sent, but whoever runs the "
        "server can read prompts and much of the pictures from what was.",
        "",
        "## Run",
        f"Base model: {_base(result)[0]}{revision}, fingerprint {fingerprint}. {license.said}",
        "",
        *_table(["key", "value"], [(f"`{k}`", f"`{v}`") for k, v in _said(result.config)]),
        "",
        *(line for note in result.notes for line in (note, "")),
        "Versions: "
        + ", ".join(
            f"{name} {version}"
            for name, version in result.environment.get("packages", {}).items()
            if version
        )
        + f", Python {result.environment.get('python', UNKNOWN)}.",
        "",
    ]


def _asked(config: Mapping[str, Any]) -> str:
    """What crosses with every step, in words."""
    answers = "the right answers' tokens"
    if config.get("exchange.labels-at") == "client":
        answers = "the gradient of the loss with respect to the logits, which shows the answers"
    if config.get("exchange.kind") == "embeddings":
        return (
            f"adapted features of pictures and tokens, {answers}, and gradients with respect to "
            "the features"
        )
    return (
        "token ids, the pictures' features (once, and as long as the server keeps them), the "
        f"adapters' factors, {answers}, and gradients with respect to the factors"
    )


def _said(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys that say how it was trained, without places on the machine where it was."""
    return [
        (key, label(str(value)) or '""')
        for key, value in config.items()
        if ("." not in key or key.split(".")[0] in SECTIONS or key in SINGLE_KEYS)
        and key not in NOT_SAID
    ]


def _rounds_table(result: RunResult) -> list[str]:
    rows = []
    for record in result.rounds:
        known = [value for value in record["accuracy_per_client"].values() if value is not None]
        spread = f" ({min(known):.1%} to {max(known):.1%})" if known else ""
        loss = "" if record["train_loss"] is None else f"{record['train_loss']:.3f}"
        number = str(record["round"]) + (" (here)" if record["round"] == result.round else "")
        rows.append((number, str(len(known)), _percent(record["accuracy"]) + spread, loss))
    return _table(["round", "clients scored", "mean accuracy", "training loss"], rows)


def _kinds_table(result: RunResult) -> list[str]:
    here = next(record for record in result.rounds if record["round"] == result.round)
    alike = scored.scorers(result.rounds[0]) == scored.scorers(here)
    first = result.rounds[0]["accuracy_by"] if alike else {}  # else it is of other questions
    rows = [
        (
            kind,
            str(now["questions"]),
            _percent(first.get(kind, {}).get("accuracy")),
            _percent(now["accuracy"]),
        )
        for kind, now in here["accuracy_by"].items()
    ]
    return _table(["questions of all clients", "questions", "round 0", "here"], rows)


def _traffic_table(records: Iterable[Mapping[str, Any]]) -> list[str]:
    keys = ("round_bytes_up", "round_bytes_down", "step_bytes_up", "step_bytes_down")
    rows = [
        (str(r["round"]), *(human_bytes(r[key]) for key in keys), f"{r['step_calls']:,}")
        for r in records
    ]
    names = ["round ↑", "round ↓", "step ↑", "step ↓", "calls of the language model"]
    return _table(["round", *names], rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _code(text: str) -> list[str]:
    return ["```python", text.rstrip("\n"), "```", ""]
