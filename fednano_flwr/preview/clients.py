"""What each client has: its first rows as the model gets them, and figures of all its questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fednano_flwr.base.reasons import by_reason
from fednano_flwr.config import RunConfig
from fednano_flwr.data.errors import SampleError
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.shard import Shard
from fednano_flwr.edge import process_cache
from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.fit import Fit
from fednano_flwr.edge.questions import Limits, Question
from fednano_flwr.edge.shard import too_many
from fednano_flwr.preview.pieces import Piece, pieces


@dataclass(frozen=True)
class Row:
    """One row as the model gets it.

    Attributes:
        sample: as the data set has it.
        cut: whether its text was cut to `dataset.max-tokens`.
        pieces: its prompt and right answer; () where it is left out.
        left_out: why; "" where it is not.
    """

    sample: Sample
    pieces: tuple[Piece, ...] = ()
    left_out: str = ""
    cut: bool = False


@dataclass(frozen=True)
class Figures:
    """Of all questions of one client.

    Attributes:
        train, test: questions that it can use.
        tokens: of prompt and right answer: median, 95th percentile, longest.
        files: pictures and sounds of a question: fewest and most.
        left_out: names of the questions that it cannot use, by reason.
        too_many: whether these are more than `dataset.max-skipped` allows.
        cut: how many are cut to `dataset.max-tokens`.
        groups: training questions by group.
    """

    train: int
    test: int
    tokens: tuple[int, int, int]
    files: tuple[int, int]
    left_out: dict[str, list[str]]
    too_many: bool
    cut: int
    groups: dict[str, int]


class Preview:
    """Data as a model's processor takes it; no weight is read.

    Raises:
        ConfigError: model and processor are not as the config says.
    """

    def __init__(self, config: RunConfig) -> None:
        source = process_cache.source_of(config)
        checkpoint = process_cache.checkpoint(source)
        self._encoder: QuestionEncoder = process_cache.encoder(source)
        self._fit = Fit.of(config.dataset)
        answer = config.max_answer_tokens
        self._limits = Limits(config.llm.max_tokens, checkpoint.longest, answer)

    def rows(self, samples: Sequence[Sample], count: int) -> Iterator[Row]:
        """The first rows of some."""
        for sample in islice(samples, count):
            question = self._question(sample)
            if isinstance(question, str):
                yield Row(sample, left_out=question)
            else:
                shown = tuple(pieces(question, self._encoder))
                yield Row(sample, shown, cut=question.sample != sample)

    def figures(
        self, shard: Shard, max_skipped: float, each: Callable[[], object] = lambda: None
    ) -> Figures:
        """Figures of all questions of a client.

        Args:
            max_skipped: `dataset.max-skipped`.
            each: called after each question.
        """
        lengths, files, groups = [0], [0], Counter[str]()
        used = {"train": 0, "test": 0}
        left_out, cut = [], 0
        for split, questions in (("train", shard.train), ("test", shard.test)):
            for sample in questions:
                question = self._question(sample)
                if isinstance(question, str):
                    left_out.append((sample.uid, question))
                else:
                    used[split] += 1
                    groups.update([sample.group] * (split == "train"))
                    lengths.append(len(question.ids) + len(question.answer))
                    files.append(sum(map(len, sample.media.values())))
                    cut += question.sample != sample
                each()
        found = lengths[1:] or lengths
        median, most = np.percentile(found, (50, 95), method="inverted_cdf")
        shown = files[1:] or files
        return Figures(
            **used,
            tokens=(int(median), int(most), max(found)),
            files=(min(shown), max(shown)),
            left_out={reason: names for names, reason in by_reason(left_out)},
            too_many=too_many(len(left_out), len(shard.train) + len(shard.test), max_skipped),
            cut=cut,
            groups=dict(groups),
        )

    def _question(self, sample: Sample) -> Question | str:
        """The question, or why it is left out."""
        try:
            question = self._fit.encode(self._encoder, sample)
        except SampleError as error:
            return error.reason
        return self._limits.refusal(question) or question
