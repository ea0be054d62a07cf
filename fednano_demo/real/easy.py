"""easy-VQA: 5,000 pictures of 64×64 pixels with one coloured shape each, and 48,000 questions.

    python -m fednano_demo.real.easy OUT [--train 600] [--test 200] [--seed 0]

writes some of the questions, with other names for the shapes, as a table (`dataset.name=table`).
The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import easy_vqa
import numpy as np

from fednano_flwr.base.files import write_once
from fednano_flwr.data.sample import Picture, Sample

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
ANSWERS = tuple(easy_vqa.get_answers())
RENAMED = {"circle": "disc", "rectangle": "box", "triangle": "wedge"}
KINDS = ("which shape", "which colour", "is it there", "is it not there")
TRAIN, TEST = 600, 200


def is_negated(text: str) -> bool:
    """Whether a question asks for what is not there."""
    return not {"no", "not"}.isdisjoint(text.split())


def kind_number(text: str, answer: str) -> int:
    """Index into `KINDS` of a question with this answer."""
    if answer in SHAPES:
        return 0
    return 1 if answer in COLOURS else 2 + is_negated(text)


class Question(NamedTuple):
    """One of easy-VQA's questions, and the number of its picture."""

    text: str
    answer: str
    picture: int

    @property
    def negated(self) -> bool:
        return is_negated(self.text)

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return KINDS[kind_number(self.text, self.answer)]

    @property
    def told(self) -> set[str]:
        """Words that its answer says are true of the picture."""
        if self.answer in ("yes", "no") and (self.answer == "no") != self.negated:
            return set()
        return {self.answer, *self.text.rstrip("?").split()}.intersection((*SHAPES, *COLOURS))

    def sample(self, picture: Path, options: bool) -> Sample:
        """The question with its picture, answered by one of 13 options or freely."""
        return Sample(
            uid="",
            question=self.text,
            group=self.kind,
            subject=self.kind,
            choices=ANSWERS if options else (),
            answer=ANSWERS.index(self.answer) if options else None,
            free_answer="" if options else self.answer,
            images=(Picture(path=picture),),
        )


def read_questions(split: str) -> list[Question]:
    """All questions of `train` or `test`."""
    read = {"train": easy_vqa.get_train_questions, "test": easy_vqa.get_test_questions}[split]
    return [Question(*row) for row in zip(*read(), strict=True)]


def read_pictures(split: str) -> dict[int, Path]:
    """Files of the pictures of `train` or `test`, by number."""
    read = {"train": easy_vqa.get_train_image_paths, "test": easy_vqa.get_test_image_paths}[split]
    return {number: Path(file) for number, file in sorted(read().items())}


def by_picture(questions: Iterable[Question]) -> dict[int, list[Question]]:
    """The questions of each picture."""
    found: dict[int, list[Question]] = {}
    for question in questions:
        found.setdefault(question.picture, []).append(question)
    return found


def renamed(text: str) -> str:
    """A text with other names for the shapes."""
    return re.sub(r"\w+", lambda word: RENAMED.get(word[0], word[0]), text)


def write_dataset(folder: Path, train: int = TRAIN, test: int = TEST, seed: int = 0) -> None:
    """Write questions that are drawn by a seed, with renamed shapes, as <split>.jsonl.

    Raises:
        ValueError: easy-VQA has not so many questions, or no question is asked for.
    """
    for split, count in (("train", train), ("test", test)):
        questions, pictures = read_questions(split), read_pictures(split)
        if not 1 <= count <= len(questions):
            raise ValueError(f"{split}: from 1 to {len(questions):,} questions, not {count:,}")
        drawn = np.random.default_rng(seed).permutation(len(questions))[:count]
        (folder / split).mkdir(parents=True)
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for question in (questions[index] for index in drawn):
                picture = f"{split}/{question.picture}.png"
                shutil.copyfile(pictures[question.picture], folder / picture)
                row = {
                    "image": picture,
                    "question": renamed(question.text),
                    "answer": renamed(question.answer),
                    "subject": question.kind,
                    "group": renamed(question.answer),
                }
                print(json.dumps(row), file=file)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write questions of easy-VQA as a table.")
    parser.add_argument("out", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--train", type=int, default=TRAIN, help="questions; default %(default)s")
    parser.add_argument("--test", type=int, default=TEST, help="questions; default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of which questions are drawn")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists: name another folder")
    sizes = {"train": options.train, "test": options.test, "seed": options.seed}
    try:
        write_once(options.out, partial(write_dataset, **sizes))
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"{options.out} written")


if __name__ == "__main__":
    main()
