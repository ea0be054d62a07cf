"""NanoEdge: the client's half of the model with its two NanoAdapters."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping, Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

from fednano_flwr.edge.questions import Question, QuestionEncoder
from fednano_flwr.exchange.protocol import LLMInputs
from fednano_flwr.models.edge_half import EdgeHalf

ENCODE_BATCH = 16


class FeatureCache(MutableMapping[str, Tensor]):
    """Frozen image features by sample, up to a number of bytes; what does not fit is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._features: dict[str, Tensor] = {}
        self._free = max_bytes

    def __getitem__(self, key: str) -> Tensor:
        return self._features[key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        size = value.numel() * value.element_size()
        if key not in self._features and size <= self._free:
            self._features[key] = value
            self._free -= size

    def __delitem__(self, key: str) -> None:
        value = self._features.pop(key)
        self._free += value.numel() * value.element_size()

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)


class NanoEdge(nn.Module):
    """Embeds questions: frozen features, adapted by `h' = h + s·B(A h)` on image and on text.

    Args:
        frozen: the client's half, shared by all clients of a process.
        adapters: from `build_adapters`; moved to the frozen half's device.
        encoder: with the model's processor.
        cache: image features that earlier calls computed.
    """

    def __init__(
        self,
        frozen: EdgeHalf,
        adapters: PeftModel,
        encoder: QuestionEncoder,
        cache: MutableMapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        self.adapters = adapters.to(frozen.device)
        self.encoder = encoder
        self.cache = {} if cache is None else cache
        self.encoder_seconds = 0.0

    def forward(self, questions: Sequence[Question]) -> LLMInputs:
        """Adapted embeddings of a batch, (N, d), in the dtype of the frozen half."""
        ids = torch.cat([question.ids for question in questions]).to(self.frozen.device)
        is_image = ids == self.frozen.image_token_id
        text = self.adapters.text_adapter(self.frozen.token_embeddings(ids[~is_image]))
        embeds = text.new_empty(len(ids), self.frozen.hidden_size)
        embeds[~is_image] = text
        features = self._features(questions)
        if features:
            image = torch.cat(features)
            if len(image) != int(is_image.sum()):
                raise ValueError(
                    f"the pictures have {len(image)} features, the prompts ask for "
                    f"{int(is_image.sum())}"
                )
            embeds[is_image] = self.adapters.image_adapter(image)
        return LLMInputs(embeds, tuple(len(question.ids) for question in questions))

    def _features(self, questions: Sequence[Question]) -> list[Tensor]:
        """Frozen connector outputs (n, d) of the questions that have a picture, in order."""
        samples = [question.sample for question in questions if question.sample.image is not None]
        missing = {s.uid: s for s in samples if s.uid not in self.cache}
        fresh: dict[str, Tensor] = {}
        started = time.perf_counter()
        pending = list(missing.values())
        for start in range(0, len(pending), ENCODE_BATCH):
            chunk = pending[start : start + ENCODE_BATCH]
            features = self.frozen.image_features(self.encoder.pixel_values(chunk))
            fresh |= {sample.uid: feature for sample, feature in zip(chunk, features, strict=True)}
        self.encoder_seconds += time.perf_counter() - started
        self.cache.update(fresh)
        return [fresh[s.uid] if s.uid in fresh else self.cache[s.uid] for s in samples]
