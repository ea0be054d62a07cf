"""The core's rows as results/demo.json, in fields of `fednano compare`'s results.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.merging_study.lines import Line, lines_of
from benchmarks.merging_study.plan import CORE, FEDAVG, PARTS
from benchmarks.merging_study.rows import Row
from benchmarks.study.plan import ROOT
from fednano_flwr.analysis.experiments.plan import ALIAS
from fednano_flwr.analysis.experiments.results import pair_key
from fednano_flwr.analysis.statistics import spread
from fednano_flwr.base.files import replace_file
from fednano_flwr.config.project import defaults

FILE = ROOT / "results" / "demo.json"
SPREADS = {"accuracy": "accuracy", "worst": "worst_client", "all": "together"}


def write_demo(rows: Sequence[Row]) -> None:
    """Replace the file once the core is complete."""
    if found := demo_results(rows):
        replace_file(FILE, (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())


def demo_results(rows: Sequence[Row]) -> dict[str, Any] | None:
    """What the file holds; None until each run of the core is there.

    `low` to `high` of `paired` holds for all `comparisons` of a setting together, `low_alone` to
    `high_alone` for one alone; both with 95 %.
    """
    part, usual = PARTS[CORE], defaults(ROOT)["strategy.name"]
    head = {"command": f"python -m benchmarks.merging_study {CORE}", "baseline": FEDAVG}
    settings, shown, pairs = [], [], {}
    for setting in part.settings:
        label = f"clients={setting.clients},alpha={setting.alpha:g}"
        values = {"clients": setting.clients, "dataset.alpha": setting.alpha}
        settings.append({"label": label, "values": values})
        for line in lines_of(CORE, setting, rows):
            if len(line.rows) < len(part.seeds):
                return None
            shown.append(_row(line, label))
            names = (line.method, ALIAS) if line.method == usual else (line.method,)
            for name in names if line.apart else ():
                pairs[pair_key(name, FEDAVG, label)] = _pair(line)
    return {**head, "settings": settings, "rows": shown, "paired": pairs, "failed": []}


def _row(line: Line, label: str) -> dict[str, Any]:
    costs = ("upload_kb_a_round", "step_mb_a_round")
    return {
        "experiment": line.method,
        "setting": label,
        "rate": line.rows[0].rate,
        "seeds": [row.dealt_seed for row in line.rows],
        **{key: dataclasses.asdict(line.spread(field)) for key, field in SPREADS.items()},
        **{key: line.spread(key).mean for key in costs},
        "accuracy_by_round": line.by_round,
    }


def _pair(line: Line) -> dict[str, Any]:
    together, alone = line.difference, spread(line.apart)
    return {
        **{key: getattr(together, key) for key in ("mean", "low", "high")},
        **{f"{key}_alone": getattr(alone, key) for key in ("low", "high")},
        "comparisons": line.comparisons,
        "seeds": [row.dealt_seed for row in line.rows],
    }
