"""Rows that others made, written as files: easy-VQA, captions of it, and the ScienceQA sample."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import easy_vqa

ROWS = 400


def write_easy(folder: Path) -> None:
    """easy-VQA's first questions of each split: messages/<split>.jsonl and table/<split>.csv."""
    for kind in ("messages", "table"):
        (folder / kind).mkdir()
    for split, questions, pictures in (
        ("train", easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        ("test", easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    ):
        (folder / "messages" / split).symlink_to(Path(pictures[0]).parent)
        rows = list(zip(*questions, strict=True))[:ROWS]
        with (folder / "messages" / f"{split}.jsonl").open("w") as lines:
            for question, answer, picture in rows:
                turns = [
                    {"role": "user", "content": f"<image>{question}"},
                    {"role": "assistant", "content": answer},
                ]
                row = {"messages": turns, "images": [f"{split}/{picture}.png"]}
                print(json.dumps(row), file=lines)
        (folder / "table" / split).symlink_to(Path(pictures[0]).parent)
        with (folder / "table" / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["picture", "question", "answer", "options"])
            for question, answer, picture in rows:
                writer.writerow(
                    [f"{split}/{picture}.png", question, answer, easy_vqa.get_answers()]
                )


def write_captions(folder: Path) -> int:
    """captions.csv and pictures/; how many rows there are."""
    (folder / "pictures").symlink_to(Path(easy_vqa.get_train_image_paths()[0]).parent)
    texts, answers, pictures = easy_vqa.get_train_questions()
    said: dict[int, str] = {}
    for text, answer, picture in zip(texts, answers, pictures, strict=True):
        if text in ("what color is the shape?", "what shape is in the image?"):
            said[picture] = f"{said.get(picture, 'A picture:')} {answer}"
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        writer.writerows((f"pictures/{picture}.png", text) for picture, text in said.items())
    return len(said)


def write_scienceqa(sample: Path, out: Path) -> None:
    """The sample's questions as rows that are both dialogues and a table: <split>.jsonl."""
    problems = json.loads((sample / "problems.json").read_text("utf-8"))
    splits = json.loads((sample / "pid_splits.json").read_text("utf-8"))
    (out / "images").symlink_to(sample / "images")
    for split in ("train", "test"):
        with (out / f"{split}.jsonl").open("w") as file:
            for pid in splits[split]:
                raw = problems[pid]
                image = raw["image"] and f"images/{split}/{pid}/{raw['image']}"
                answer = raw["choices"][raw["answer"]]
                turns = [("user", raw["question"]), ("assistant", answer)]
                messages = [{"role": role, "content": text} for role, text in turns]
                row = {**raw, "pid": pid, "image": image, "messages": messages}
                print(json.dumps(row), file=file)
