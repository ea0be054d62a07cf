"""A merged checkpoint scored by lmms-eval, beside the run's own scores of the same questions.

    python -m benchmarks.merged_scores RUN MERGED --lmms PYTHON

MERGED is what `fednano export RUN --format merged` wrote, PYTHON the interpreter of an environment
with lmms-eval (docs/export.md); the questions are the test questions that all clients shared. The
run's own score is that of its adapters on the split model: the likeliest letter, or a greedy answer
by `dataset.metric`. lmms-eval lets plain transformers generate, and compares as its GQA task does:
the whole text, without case and punctuation. Its task is of local rows, with the run's prompts; for
free answers without an instruction also with GQA's. Prints a table and writes JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.report import options_of, table, write_json
from fednano_flwr.ask.opening import open_asker, shared_questions
from fednano_flwr.data import prompts
from fednano_flwr.data.metrics import find_metric
from fednano_flwr.data.sample import Sample
from fednano_flwr.runs import comparable
from fednano_flwr.runs.results import load_run

OWN, USUAL = "the run's prompt", "lmms-eval's instruction added"
SHOWN = 5  # questions that are answered differently, at most
NAME = "fednano_questions"
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: generate_until
doc_to_visual: !function pictures.opened
doc_to_text: prompt
doc_to_target: answers
generation_kwargs: {{max_new_tokens: {tokens}, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true,
  ignore_punctuation: true}}]
"""
PICTURES = """from PIL import Image
def opened(row):
    return [Image.open(file).convert("RGB") for file in row["pictures"]]
"""
Answers = list[tuple[str, float]]  # what is said, and its score


def text_of(sample: Sample) -> str:
    """The user's turn without its pictures, which an adapter of lmms-eval puts before the text."""
    turns = prompts.conversation(sample)
    kinds = [part["type"] for part in turns[0]["content"]]
    if len(turns) > 1 or kinds != sorted(kinds) or len(sample.choices) > len(prompts.LETTERS):
        why = "it is a dialogue, has pictures after text, or more options than letters"
        raise SystemExit(f"question {sample.uid} cannot be put to lmms-eval here: {why}")
    return "".join(part.get("text", "") for part in turns[0]["content"])


def answers_of(sample: Sample) -> list[str]:
    """All that count as right."""
    return [prompts.answer_text(sample), *sample.references]


def own_answers(run: Path, samples: Sequence[Sample], tokens: int) -> Answers:
    """The run's own answers, of its best round's adapters."""
    score = find_metric(load_run(run).config.dataset.metric).score
    found: Answers = []
    with open_asker(run, max_tokens=tokens) as asker:
        for sample in samples:
            answer = asker.answer_sample(sample)
            if prompts.by_letter(sample):
                likeliest = answer.probabilities.index(max(answer.probabilities))
                found.append((prompts.LETTERS[likeliest], float(likeliest == sample.answer)))
            else:
                found.append((answer.text, score(answer.text, answers_of(sample))))
    return found


def lmms_answers(
    options: Any, samples: Sequence[Sample], texts: Sequence[str], tokens: int
) -> Answers:
    """lmms-eval's answers to questions with these texts."""
    with tempfile.TemporaryDirectory() as folder:
        with Path(folder, "rows.jsonl").open("w", encoding="utf-8") as rows:
            for number, (sample, text) in enumerate(zip(samples, texts, strict=True)):
                files = [f"{folder}/{number}-{i}" for i, _ in enumerate(sample.pictures)]
                for file, picture in zip(files, sample.pictures, strict=True):
                    Path(file).write_bytes(picture.read())
                row = {"prompt": text, "pictures": files, "answers": answers_of(sample)}
                rows.write(json.dumps(row) + "\n")
        Path(folder, "pictures.py").write_text(PICTURES)
        Path(folder, "task.yaml").write_text(TASK.format(name=NAME, folder=folder, tokens=tokens))
        command = [options.lmms, "-m", "lmms_eval", "--tasks", NAME, "--include_path", folder]
        command += ["--model", options.adapter, "--device", options.device, "--batch_size", "1"]
        where = f"pretrained={options.merged.resolve()},device_map={options.device}"
        command += ["--model_args", where, "--output_path", f"{folder}/out", "--log_samples"]
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        done = subprocess.run(command, cwd=folder, env=offline, capture_output=True, text=True)
        files = [str(file) for file in Path(folder, "out").rglob(f"*_samples_{NAME}.jsonl")]
        if done.returncode or not files or "in generating" in done.stdout:  # it only logs that one
            raise SystemExit(f"lmms-eval failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        lines = [json.loads(line) for line in Path(files[0]).read_text().splitlines()]
    lines.sort(key=lambda line: line["doc_id"])
    return [(line["filtered_resps"].strip(), line["exact_match"]) for line in lines]


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("merged_scores", __doc__)
    for name in ("run", "merged"):
        parser.add_argument(name, type=Path, help="folder")
    parser.add_argument("--lmms", required=True, metavar="PYTHON", help="imports lmms_eval")
    parser.add_argument("--adapter", default="llava_hf", help="lmms-eval's name of the model class")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    run, samples = load_run(options.run), list(shared_questions(options.run))
    tokens, texts = run.config.max_answer_tokens, [text_of(sample) for sample in samples]
    own = own_answers(options.run, samples, tokens)
    ways = {OWN: texts}
    if not samples[0].num_options and prompts.FREE_INSTRUCTION not in texts[0]:
        ways[USUAL] = [f"{text}\n{prompts.FREE_INSTRUCTION}" for text in texts]
    found: dict[str, dict[str, Any]] = {}
    for way, asked in ways.items():
        said = lmms_answers(options, samples, asked, tokens)
        pairs = list(zip(samples, own, said, strict=True))
        other = [(sample, a[0], b[0]) for sample, a, b in pairs if a[0] != b[0]]
        found[way] = {
            "score": fmean(score for _, score in said),
            "same_answer": 1 - len(other) / len(pairs),
            "same_score": fmean(a[1] == b[1] for _, a, b in pairs),
            "examples": [(s.question, *answers_of(s), a, b) for s, a, b in other[:SHOWN]],
        }
    recorded = comparable.best(run.rounds)["accuracy_by"]["all"]
    score, used = fmean(score for _, score in own), run.config.dataset.name
    setting = {"dataset": used, "adapter": options.adapter, "max_tokens": tokens}
    write_json(options, setting=setting, recorded=recorded, run_score=score, lmms_eval=found)
    keys = ("score", "same_answer", "same_score")
    rows = [(way, *(f"{100 * found[way][key]:.1f}" for key in keys)) for way in ways]
    rows.insert(0, ("the run's own way", f"{100 * score:.1f}", "", ""))
    print(table(("", "score, %", "same answer, %", "same score, %"), rows))


if __name__ == "__main__":
    main()
