"""The model card of an export: README.md, with the head that the Hugging Face hub reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from fednano_flwr.base.console import human_bytes
from fednano_flwr.config import keys
from fednano_flwr.data.metrics import metric_label
from fednano_flwr.data.prompts import user_text
from fednano_flwr.data.sample import Sample
from fednano_flwr.export.license import License
from fednano_flwr.export.merged import Merged
from fednano_flwr.export.result import RunResult
from fednano_flwr.models.families import Family
from fednano_flwr.runs import comparable
from fednano_flwr.runs.summary import nats, titled

EXAMPLE = Sample("", "How many circles are there?", "", "", choices=("1", "2", "3"), answer=0)
PLACES = {
    "image": "the connector's output (pictures)",
    "text": "the token embeddings (text)",
    "audio": "the connector's output (sounds)",
}


def label(name: str) -> str:
    """A model's or a data set's name without the folders it lies in on one machine."""
    if name.startswith(("package:", "module:")):
        return name
    on_disk = name.startswith(("/", "~", ".")) or name.count("/") > 1
    return Path(name).name if on_disk else name


def counted(names: Iterable[str]) -> list[str]:
    """Names of tensors or layers; those that differ in numbers alone as "28 × q_proj"."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "", name), []).append(name)
    return [
        first if not more else f"{1 + len(more)} × {first.removesuffix('.weight').split('.')[-1]}"
        for first, *more in alike.values()
    ]


def card(
    result: RunResult, family: Family | None, license: License, merged: Merged | None = None
) -> str:
    """The text of README.md.

    Args:
        family: of the model; None where it is not at hand, then no question is shown. Code is shown
            for models that take pictures, with adapters on these and on text, or a LoRA.
        license: of the model.
        merged: what was written with --format merged.
    """
    run = result.run
    config, declared = run.config.flat(), keys()
    hub_id = str(result.model.get("hub_id") or "")
    here = next(record for record in run.rounds if record["round"] == result.round)
    same_clients = comparable.scorers(run.rounds[0]) == comparable.scorers(here)
    modalities = family.modalities if family else result.adapters
    hears = "audio" in modalities and "image" not in modalities
    task = "audio-text-to-text" if hears else "image-text-to-text"
    head = ModelCardData(
        library_name="transformers" if merged else "peft",
        base_model=hub_id or None,
        base_model_relation=("finetune" if merged else "adapter") if hub_id else None,
        pipeline_tag=task,
        tags=["fednano", "federated-learning", task, "lora"],
        **license.metadata,  # type: ignore[arg-type]
    )
    templates = Environment(
        loader=PackageLoader("fednano_flwr", "export/templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "bytes": human_bytes,
        "cell": lambda text: text.replace("|", "\\|"),
        "label": label,
        "nats": nats,
        "percent": lambda share: "–" if share is None else f"{share:.1%}",
        "repr": repr,
        "titled": titled,
    }
    templates.filters |= filters
    text = templates.get_template("card.md.j2").render(
        head=head.to_yaml(),
        result=result,
        no_code=hears or ("audio" in result.adapters and not merged) or not (family or result.nano),
        base=hub_id or label(run.config.model.name),
        hub_id=hub_id,
        family=family,
        license=license,
        merged=merged,
        config=config,
        trained_with={
            key: str(value)
            for key, value in config.items()
            if not (declared[key].resumable or declared[key].place)
        },
        environment=run.environment,
        rounds=run.rounds,
        clients=len(comparable.clients(run.rounds)),
        caveats=run.caveats,
        metric=metric_label(run.config),
        parts=" and ".join(["NanoAdapters"] * bool(result.nano) + ["LoRA"] * bool(result.inside)),
        layers=counted(result.lora),
        changed=counted(merged.changed) if merged else [],
        places=[PLACES[site] for site in result.adapters],
        example=user_text(EXAMPLE),
        here=here["accuracy_by"],
        frozen=run.rounds[0]["accuracy_by"] if same_clients else {},
    )
    return text + "\n"
