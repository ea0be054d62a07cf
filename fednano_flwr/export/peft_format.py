"""A run's adapters in PEFT's layout, without what ties them to one machine or to this project."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fednano_flwr.export.card import label
from fednano_flwr.export.result import CONFIG, WEIGHTS, RunResult


def write_adapters(result: RunResult, folder: Path) -> None:
    """Write config and weights into `folder`, which is there and empty."""
    config = dict(result.adapter_config)
    hub = result.model.get("hub_id")
    config["base_model_name_or_path"] = hub or label(str(result.config["model.name"]))
    config["auto_mapping"] = None  # would have PEFT import this project
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    shutil.copyfile(result.folder / "adapters" / result.which / WEIGHTS, folder / WEIGHTS)
