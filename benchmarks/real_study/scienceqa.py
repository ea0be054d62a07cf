"""ScienceQA's text-only questions, dealt anew by a seed, in the authors' layout."""

from __future__ import annotations

import json
import random
from pathlib import Path

TRAIN, VAL, TEST = 200, 60, 234
"""Questions; of the sample of 834, others are left over, which bounds the time of a run."""


def write_text_only(folder: Path, source: Path, seed: int) -> None:
    """Write the questions without a picture of all splits of a copy of ScienceQA.

    Args:
        source: the folder with problems.json.

    Raises:
        OSError: it cannot be read.
    """
    problems = json.loads((source / "problems.json").read_text(encoding="utf-8"))
    kept = {pid: one for pid, one in sorted(problems.items()) if not one.get("image")}
    order = random.Random(seed).sample(list(kept), len(kept))
    splits = {"train": order[:TRAIN], "val": order[TRAIN:][:VAL], "test": order[-TEST:]}
    for name, content in (("problems", kept), ("pid_splits", splits)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
