"""What IconQA in full costs a client in memory: 107,439 made-up problems in the original layout.

    python -m benchmarks.iconqa_memory [--questions 107439] [--clients 10]

Writes a folder with IconQA's numbers of problems a task and split (data.json and tiny PNGs), then
measures in processes of their own: reading it for the first time, reading it again from the cache
with one client's shard opened and every picture of it decoded, and the same from the shard's own
folder. Prints a table, writes JSON. Needs about 2 GB of disk for a while.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, memory, options_of, table, write_json

TASKS = {"choose_txt": 31_578, "choose_img": 57_672, "fill_in_blank": 18_189}  # 107,439
SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}
SKILLS = (
    "geometry counting comparing spatial scene pattern time fraction estimation algebra "
    "measurement commonsense probability"
).split()


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("iconqa_memory", __doc__)
    parser.add_argument("--questions", type=int, default=sum(TASKS.values()))
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        what, folder = options.measure[0], Path(options.measure[1])
        print(json.dumps(measure(what, folder, options.clients, name="iconqa", path=str(folder))))
        return
    with tempfile.TemporaryDirectory(prefix="iconqa-memory-") as name:
        folder = Path(name)
        started = time.perf_counter()
        made = write_iconqa(folder, options.questions)
        print(f"{made:,} problems written in {time.perf_counter() - started:.0f} s", flush=True)
        results = measure_apart(["benchmarks.iconqa_memory"], folder, options.clients)
    options.questions = made
    write_json(options, results=results)


def measure_apart(module: Sequence[str], folder: Path, clients: int) -> dict[str, Any]:
    """What `measure` finds, each time in a process of its own; a table is printed.

    Args:
        module: what `python -m` runs, with options; it takes `--measure` and `--clients`.
    """
    environment = {**os.environ, "FEDNANO_CACHE": str(folder / "cache")}
    results = {}
    for what in ("read for the first time", "read from the cache", "shard's own folder"):
        command = [sys.executable, "-m", *module, "--measure", what, str(folder)]
        command += ["--clients", str(clients)]
        answer = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        results[what] = json.loads(answer.stdout)
    rows = [(what, f"{r['peak_mib']:.0f}", f"{r['seconds']:.1f}") for what, r in results.items()]
    print(table(["", "peak memory, MiB", "seconds"], rows))
    return results


def measure(what: str, folder: Path, clients: int, **changes: Any) -> dict[str, Any]:
    """Load, split and go through client 0's pictures in this process, and say what it took.

    Args:
        changes: of the run config's `dataset` section.
    """
    from fednano_flwr.config import RunConfig
    from fednano_flwr.config.project import PACKAGE, defaults
    from fednano_flwr.data.load import load_questions
    from fednano_flwr.data.media import first_defect
    from fednano_flwr.data.shard import all_shards
    from fednano_flwr.data.shard_folder import load_shard, write_shard

    config = RunConfig.parse(defaults(PACKAGE.parent))
    dataset = dataclasses.replace(config.dataset, **changes)
    own = folder / "shard"
    started = time.perf_counter()
    counts: dict[str, int] = {}
    if what == "shard's own folder":
        part = load_shard(own)
    else:
        questions = load_questions(dataset)
        part = all_shards(questions, dataset, config.seed, clients)[0]
        counts = {"all_train": len(questions.train), "all_test": len(questions.test)}
    broken = pictures = 0
    for questions_of in (part.train, part.test):
        for sample in questions_of:
            pictures += len(sample.pictures)
            broken += first_defect(sample) is not None
    seconds = time.perf_counter() - started
    peak = memory("VmHWM") / 2**20
    if what == "read from the cache":
        write_shard(own, part, {})
    counts |= {"train": len(part.train), "test": len(part.test)}
    counts |= {"pictures": pictures, "broken": broken}
    return {"peak_mib": peak, "seconds": seconds, **counts}


def write_iconqa(folder: Path, questions: int) -> int:
    """Write about `questions` problems in the original layout; their number is returned."""
    from io import BytesIO

    from PIL import Image

    shades = []
    for shade in range(256):
        buffer = BytesIO()
        Image.new("L", (16, 16), shade).save(buffer, "png")
        shades.append(buffer.getvalue())
    rng = random.Random(0)
    root = folder / "iconqa_data"
    pids: dict[str, list[str]] = {}
    skills: dict[str, list[str]] = {}
    pid = 0
    for task, number in TASKS.items():
        for index in range(round(number * questions / sum(TASKS.values()))):
            pid += 1
            split = rng.choices(list(SPLITS), list(SPLITS.values()))[0]
            place = root / "iconqa" / split / task / str(pid)
            place.mkdir(parents=True)
            options = rng.randint(2, 5)
            problem: dict[str, Any] = {
                "question": f"Which of the pictures shows {index} things in a row, or a group?",
                "choices": [f"about {10 * n}" for n in range(options)],
                "answer": rng.randrange(options),
                "ques_type": task,
                "grade": f"grade{rng.randint(1, 3)}",
                "label": "U7",
            }
            (place / "image.png").write_bytes(rng.choice(shades))
            if task == "fill_in_blank":
                del problem["choices"]
                problem["answer"] = str(problem["answer"])
            elif task == "choose_img":
                problem["choices"] = [f"choice_{n}.png" for n in range(options)]
                for name in problem["choices"]:
                    (place / name).write_bytes(rng.choice(shades))
            (place / "data.json").write_text(json.dumps(problem))
            pids.setdefault(f"{task}_{split}", []).append(str(pid))
            skills[str(pid)] = rng.sample(SKILLS, rng.randint(1, 3))
    (root / "pid_splits.json").write_text(json.dumps(pids))
    (root / "pid2skills.json").write_text(json.dumps(skills))
    return pid


if __name__ == "__main__":
    main()
