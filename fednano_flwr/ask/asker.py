"""Questions to a run's tuned model, from Python: `Asker`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.images import open_image
from fednano_flwr.data.prompts import LETTERS
from fednano_flwr.data.sample import Picture, Sample, Sound
from fednano_flwr.edge.generation import answer_tokens, option_probabilities
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question
from fednano_flwr.exchange.exchange import Exchange

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""How a tokenizer writes a character of which not all bytes are there."""


class AskError(ValueError):
    """A question that cannot be asked; the message says what to change."""


@dataclass(frozen=True)
class Answer:
    """What the model answers.

    Attributes:
        text: a free answer, or the likeliest choice.
        probabilities: of each choice among all of them; () for a free answer.
        tokens: how many were generated.
        cut: whether there may be more, which was not asked for.
        notes: what is to be known of it, for people.
    """

    text: str
    probabilities: tuple[float, ...] = ()
    tokens: int = 0
    cut: bool = False
    notes: tuple[str, ...] = ()


class Asker:
    """A model that can be asked: a client's half here, the language model wherever `llm` leads.

    Not for several threads at once.

    Args:
        tuned: the client's half with a run's adapters.
        frozen: the same with adapters that change nothing.
        llm: as in training.
        max_tokens: most tokens of a free answer.
        instruction: what follows a free question, as in the run's data; None for the usual.
        frozen_llm: without the run's LoRA inside; None where it has none.
    """

    def __init__(
        self,
        tuned: NanoEdge,
        frozen: NanoEdge,
        llm: Exchange,
        max_tokens: int,
        instruction: str | None = None,
        frozen_llm: Exchange | None = None,
    ) -> None:
        self.tuned, self.frozen, self.llm = tuned, frozen, llm
        self.frozen_llm = frozen_llm or llm
        self.max_tokens, self.instruction = max_tokens, instruction

    def answer(
        self,
        question: str,
        image: Path | str | None = None,
        choices: Sequence[str] = (),
        hint: str = "",
        frozen: bool = False,
        sound: Path | None = None,
    ) -> Answer:
        """Ask one question and wait for the whole answer.

        Args:
            image: a picture's file.
            choices: to choose from; without, the answer is free.
            hint: context that belongs to the question.
            frozen: ask the model as it was before training.
            sound: a sound's file.

        Raises:
            AskError: the question cannot be asked.
            HostRefusedError, HostUnreachableError: of the language model's service.
        """
        return self.answer_sample(self._sample(question, image, choices, hint, sound), frozen)

    def answer_sample(self, sample: Sample, frozen: bool = False) -> Answer:
        """`answer` to a question of a data set, whose right answer is not looked at."""
        edge, llm = self._halves(frozen)
        asked = self._encoded(sample)
        if asked.options:
            probabilities = option_probabilities(edge, llm, asked)
            best = max(range(sample.num_options), key=probabilities.__getitem__)
            notes = self._notes(asked, 0, False)
            return Answer(sample.option_names[best], tuple(probabilities), notes=notes)
        tokens = list(answer_tokens(edge, llm, asked, self.max_tokens))
        return self._free(asked, tokens)

    def stream(
        self,
        question: str,
        image: Path | str | None = None,
        hint: str = "",
        frozen: bool = False,
        ended: Callable[[Answer], object] = lambda answer: None,
        sound: Path | None = None,
    ) -> Iterator[str]:
        """A free answer piece by piece, each as soon as its token is there.

        Arguments and errors as in `answer`; joined and stripped the pieces are its text.

        Args:
            ended: gets the whole answer after its last piece.
        """
        asked = self._encoded(self._sample(question, image, (), hint, sound))
        return self._pieces(frozen, asked, ended)

    def _halves(self, frozen: bool) -> tuple[NanoEdge, Exchange]:
        return (self.frozen, self.frozen_llm) if frozen else (self.tuned, self.llm)

    def _pieces(
        self, frozen: bool, asked: Question, ended: Callable[[Answer], object]
    ) -> Iterator[str]:
        edge, llm = self._halves(frozen)
        shown, tokens = "", []
        for token in answer_tokens(edge, llm, asked, self.max_tokens):
            tokens.append(token)
            text = edge.encoder.decode(tokens)
            if text.startswith(shown) and not text.endswith(UNFINISHED):
                yield text[len(shown) :]
                shown = text
        text = edge.encoder.decode(tokens)
        if text.startswith(shown) and text != shown:
            yield text[len(shown) :]
        ended(self._free(asked, tokens))

    def _free(self, asked: Question, tokens: list[int]) -> Answer:
        cut = len(tokens) == self.max_tokens
        text = self.tuned.encoder.decode(tokens).strip()
        return Answer(text, (), len(tokens), cut, self._notes(asked, len(tokens), cut))

    def _notes(self, asked: Question, answered: int, cut: bool) -> tuple[str, ...]:
        """What is to be known of an answer of so many tokens."""
        notes = [f"cut after {answered} tokens; --max-tokens N lets it go on"] if cut else []
        config = self.tuned.frozen.checkpoint.config.get_text_config()
        count, longest = len(asked.ids) + answered, getattr(config, "max_position_embeddings", 0)
        if longest and count > longest:
            notes.append(
                f"question and answer are {count} tokens, and the model was made for {longest} "
                "(max_position_embeddings): the answer may be nonsense"
            )
        return tuple(notes)

    def _sample(
        self,
        question: str,
        image: Path | str | None,
        choices: Sequence[str],
        hint: str,
        sound: Path | None = None,
    ) -> Sample:
        sounds = () if sound is None else (Sound(path=sound.expanduser()),)
        sample = replace(_sample(question, image, choices, hint), sounds=sounds)
        known = self.instruction == sample.question  # of captions, it is the question itself
        return replace(sample, instruction="" if known else self.instruction)

    def _encoded(self, sample: Sample) -> Question:
        """The prompt that training used."""
        try:
            return self.tuned.encoder.unanswered(sample)
        except ValueError as error:
            raise AskError(f"the question cannot be asked: {error}") from error


def _sample(question: str, image: Path | str | None, choices: Sequence[str], hint: str) -> Sample:
    """A question whose answer is not known."""
    texts = tuple(_text("text of a choice", choice) for choice in choices)
    if texts and not 2 <= len(texts) <= len(LETTERS):
        raise AskError(f"{len(texts)} choices; there can be 2 to {len(LETTERS)}, or none")
    sample = Sample(
        uid=f"asked-{time.time_ns()}",
        question=_text("question", question),
        group="",
        subject="",
        choices=texts,
        answer=0 if choices else None,  # which is right does not show in the prompt
        images=() if image is None else (_picture(Path(image)),),
        context=_text("context", hint),
    )
    if not sample.question:
        raise AskError("the question is empty")
    if not all(texts):
        raise AskError("one of the choices is empty")
    return sample


def _text(name: str, text: str) -> str:
    """The text, stripped; bytes of a terminal that are no text are refused."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = text[max(0, error.start - 10) : error.start].encode(errors="replace").decode()
        raise AskError(f"the {name} is not UTF-8 after {before!r}: type it anew") from None
    return text.strip()


def _picture(file: Path) -> Picture:
    picture = Picture(path=file.expanduser())
    try:
        open_image(picture)
    except FileNotFoundError:
        raise AskError(f"image {file}: there is no such file") from None
    except DataError as error:
        reason = str(error.__cause__ or error)
        raise AskError(f"image {file} cannot be read as a picture: {reason}") from None
    return picture
