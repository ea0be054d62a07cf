"""NanoEdge: the client's half of the model with its two NanoAdapters."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

from fednano_flwr.adapters.site import low_rank
from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.feature_cache import Features
from fednano_flwr.edge.questions import Question, lengths
from fednano_flwr.exchange.protocol import AdaptedBatch, Feature, FrozenBatch, Layout
from fednano_flwr.models.edge_half import EdgeHalf, TokenTable


class NanoEdge(nn.Module):
    """Embeds questions: frozen features, adapted by `h' = h + s·B(A h)` on image and on text.

    The two steps can be taken apart: `embed` a batch in one thread while another is adapted and
    sent. `embed` may be called from several threads; they take turns.

    Args:
        frozen: vision encoder and connector, shared by all clients of a process.
        tokens: the token embeddings that this client holds.
        adapters: from `build_adapters`; moved to the frozen half's device.
        encoder: with the model's processor.
        cache: image features computed before, by `QuestionEncoder.vision_key`.

    Attributes:
        encoded: how many questions' pictures went through the vision encoder.
        encoder_seconds: how long that took, preprocessing included; part of it while the host
            worked.
    """

    def __init__(
        self,
        frozen: EdgeHalf,
        tokens: TokenTable,
        adapters: PeftModel,
        encoder: QuestionEncoder,
        cache: Features | None = None,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        self.tokens = tokens
        self.adapters = adapters.to(frozen.device)
        self.encoder = encoder
        self.cache: Features = {} if cache is None else cache
        self.encoded = 0
        self.encoder_seconds = 0.0
        self._turn = threading.Lock()  # over cache and counters

    def forward(
        self, questions: Sequence[Question], endings: Sequence[tuple[int, ...]] | None = None
    ) -> AdaptedBatch:
        """Both steps: `adapt(embed(questions, endings))`."""
        return self.adapt(self.embed(questions, endings))

    @torch.no_grad()
    def embed(
        self, questions: Sequence[Question], endings: Sequence[tuple[int, ...]] | None = None
    ) -> FrozenBatch:
        """Frozen embeddings of a batch; the same whenever and in whichever thread it is called.

        Args:
            endings: tokens after each prompt: of its answer in training, or what was generated.

        Raises:
            MissingRowError: a token's embedding is not among those that this client holds.
            ValueError: pictures and their placeholders do not agree.
            DataError, FileNotFoundError: a picture cannot be read.
            FloatingPointError: its features are not finite.
        """
        ids, is_image = _laid_out(questions, endings, self.frozen.feature_ids)
        ids, is_image = ids.to(self.frozen.device), is_image.to(self.frozen.device)
        read = torch.where(is_image, ids, self.frozen.text_ids(ids))
        text = self.tokens(read[~is_image])
        hidden = text.new_empty(len(ids), self.frozen.hidden_size)
        hidden[~is_image] = text
        with self._turn:
            features = self._features(questions)
        count = sum(len(feature.rows) for feature in features)
        if count != int(is_image.sum()):
            raise ValueError(
                f"the pictures have {count} features, the prompts ask for {int(is_image.sum())}"
            )
        layout = self._layout(questions, ids.cpu(), lengths(questions, endings))
        if self.frozen.reads_ids:
            layout = layout._replace(token_ids=read.cpu())
        if features:
            rows = torch.cat([feature.rows for feature in features])
            hidden[is_image], deep = rows.tensor_split([self.frozen.hidden_size], dim=1)
            if self.frozen.deep_size:
                layout = layout._replace(deep=deep)
        return FrozenBatch(hidden, is_image, read, tuple(features), layout)

    @torch.no_grad()
    def next_tokens(
        self, questions: Sequence[Question], endings: Sequence[tuple[int, ...]]
    ) -> AdaptedBatch:
        """The last token of what was generated after each prompt, as a batch of their own.

        Raises:
            MissingRowError: an embedding is not among those that this client holds.
        """
        last = torch.tensor([ending[-1] for ending in endings]).to(self.frozen.device)
        last = self.frozen.text_ids(last)
        positions = []
        for question, ending in zip(questions, endings, strict=True):
            ids = torch.cat([question.ids, torch.tensor(ending)])
            own = self.frozen.position_ids(ids, len(question.ids), question.geometry)
            positions.append(None if own is None else own[:, -1:])
        frozen = FrozenBatch(
            hidden=self.tokens(last),
            is_image=torch.zeros_like(last, dtype=torch.bool),
            token_ids=last,
            features=(),
            layout=Layout((1,) * len(last), _joined(positions)),
        )
        return self.adapt(frozen)

    def adapt(self, batch: FrozenBatch) -> AdaptedBatch:
        """What the adapters add to a batch, differentiable and, in training, with dropout."""
        z, b = {}, {}
        for site, where in (("image", batch.is_image), ("text", ~batch.is_image)):
            factors = low_rank(self.adapters, site, batch.hidden[where])
            if factors is not None and where.any():
                z[site], b[site] = factors
        return AdaptedBatch(**vars(batch), z=z, b=b)

    def _layout(self, questions: Sequence[Question], ids: Tensor, sizes: tuple[int, ...]) -> Layout:
        """With positions and types of all tokens, where the language model needs them."""
        positions, types = [], []
        for question, own in zip(questions, ids.split(sizes), strict=True):
            prompt = len(question.ids)
            positions.append(self.frozen.position_ids(own, prompt, question.geometry))
            types.append(self.frozen.token_type_ids(own, prompt))
        return Layout(sizes, _joined(positions), _joined(types))

    def _features(self, questions: Sequence[Question]) -> list[Feature]:
        """Frozen features of the questions that have pictures, in order."""
        samples = [question.sample for question in questions if question.sample.pictures]
        keys = [self.encoder.vision_key(sample) for sample in samples]
        wanted = dict(zip(keys, samples, strict=True))
        known = {key: found for key in wanted if (found := self.cache.get(key)) is not None}
        missing = [key for key in wanted if key not in known]
        for key in missing:
            started = time.perf_counter()
            inputs = self.encoder.vision_inputs(wanted[key])
            known[key] = self.frozen.image_features(inputs)
            if not known[key].isfinite().all():
                raise FloatingPointError(
                    f"question {wanted[key].uid}: the vision encoder's features are not finite in "
                    f'{self.frozen.dtype}: set edge.dtype to "bfloat16" or "float32"'
                )
            self.encoder_seconds += time.perf_counter() - started
            self.encoded += 1
            if self.encoder.vision_key(wanted[key]) == key:  # no picture changed meanwhile
                self.cache[key] = known[key]
        return [Feature(feature_key(key), known[key]) for key in keys]


def feature_key(key: str) -> bytes:
    """What a client calls features before the host: a digest of what they were made from."""
    return hashlib.sha256(key.encode()).digest()[:16]


def _laid_out(
    questions: Sequence[Question], endings: Sequence[tuple[int, ...]] | None, feature_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Ids (N,) of a batch laid one after another, and where pictures' features go (N,) bool."""
    ids, is_image = [], []
    for question, ending in zip(questions, endings or [()] * len(questions), strict=True):
        ids += [question.ids, torch.tensor(ending, dtype=torch.int64)]
        in_prompt = torch.isin(question.ids, feature_ids)
        is_image += [in_prompt, torch.zeros(len(ending), dtype=torch.bool)]
    return torch.cat(ids), torch.cat(is_image)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known, dim=-1) if known else None
