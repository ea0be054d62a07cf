"""The one form in which every data set reaches the rest of the project."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class MediaFile:
    """A picture's or a sound's file that has not been decoded; exactly one of the two is set.

    Attributes:
        path: where the file lies.
        data: its content (png, wav, …), where it is in no file of its own.
    """

    noun: ClassVar[str]
    path: Path | None = None
    data: bytes | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise ValueError(f"a {self.noun} has either a path or data")

    def __str__(self) -> str:
        own = None if self.data is None else len(self.data)
        return str(self.path) if own is None else f"a {self.noun} of {own} bytes"

    def read(self) -> bytes:
        """The file's content.

        Raises:
            OSError: it cannot be read.
        """
        if self.path is not None:
            return self.path.read_bytes()
        assert self.data is not None
        return self.data


class Picture(MediaFile):
    noun = "picture"


class Sound(MediaFile):
    noun = "sound"


class Place(Enum):
    """Where the next of a sample's pictures, or of its sounds, stands; by its modality."""

    PICTURE = "image"
    SOUND = "audio"


@dataclass(frozen=True)
class Turn:
    """One turn of a dialogue.

    Attributes:
        role: "system", "user" or "assistant".
        parts: its text in order, with the places of pictures and sounds.
    """

    role: str
    parts: tuple[str | Place, ...]

    @property
    def text(self) -> str:
        """Its text without the places."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(part for part in self.parts if isinstance(part, Place))


@dataclass(frozen=True)
class Sample:
    """One question, or a dialogue that ends with one.

    Attributes:
        uid: unique within its data set, stable between runs and machines.
        question: the question as the data set has it.
        group: what partitioning splits by (a skill, a topic, a grade and task).
        subject: what accuracy is reported by.
        choices: the options in words, in the data set's order; empty if they are pictures or none.
        choice_images: the options as pictures; at most one of the two is non-empty.
        answer: index of the right option, None for a free answer.
        free_answer: text of a free answer, else "".
        images: the question's own pictures, in the order in which the prompt shows them.
        context: text given with the question (a hint), or "".
        turns: of a dialogue, all turns before the answer, as the prompt has them; `question` is the
            text of the last. () of a single question, which is written as `prompts` says.
        references: other answers that are right, too.
        instruction: what follows a free question in the prompt, "" for nothing; None for the usual.
        sounds: in the order in which the prompt has them.
    """

    uid: str
    question: str
    group: str
    subject: str
    choices: tuple[str, ...] = ()
    choice_images: tuple[Picture, ...] = ()
    answer: int | None = None
    free_answer: str = ""
    images: tuple[Picture, ...] = ()
    context: str = ""
    turns: tuple[Turn, ...] = ()
    references: tuple[str, ...] = ()
    instruction: str | None = None
    sounds: tuple[Sound, ...] = ()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures in the order in which the prompt shows them."""
        return self.images + self.choice_images

    @property
    def media(self) -> dict[str, tuple[MediaFile, ...]]:
        """Pictures and sounds by their modality, where there are some, in the prompt's order."""
        found = {Place.PICTURE.value: self.pictures, Place.SOUND.value: self.sounds}
        return {modality: files for modality, files in found.items() if files}

    @property
    def num_options(self) -> int:
        """How many options there are to choose from; 0 for a free answer."""
        return len(self.choices) or len(self.choice_images)

    @property
    def option_names(self) -> tuple[str, ...]:
        """The options as people are told of them; () for a free answer."""
        return self.choices or tuple(f"picture {n}" for n in range(1, self.num_options + 1))
