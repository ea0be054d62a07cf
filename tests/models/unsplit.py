"""The whole model with the adapters put inside it, as `fednano check` has it, on batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from fednano_flwr.check import unsplit
from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.questions import Question, teacher_forced
from tests.families import TINY


class Unsplit(unsplit.Unsplit):
    """A transformers model, called with its processor's tensors on a padded batch."""

    def __init__(self, folder: Path, family: str, dtype: str) -> None:
        plain = replace(TINY["llava"], model_type=family)  # what is not listed is called so
        self.tiny = TINY.get(family, plain)
        super().__init__(folder, self.tiny.family, dtype)
        if dtype == "float64":
            use_plain_experts(self.model)
        self.modalities = self.tiny.family.modalities_of(self.model.config)
        self.image_token = getattr(self.model.config, "image_token_id", -1)

    def logits(
        self,
        questions: Sequence[Question],
        encoder: QuestionEncoder,
        adapters: PeftModel | None,
        side: str,
    ) -> Tensor:
        """Logits (P, vocabulary) before each token that is learned, padded on `side`."""
        adapters = None if adapters is None else adapters.to(self.model.dtype)
        rows = [
            torch.cat([q.ids, torch.tensor(ending, dtype=torch.int64)])
            for q, ending in zip(questions, teacher_forced(questions), strict=True)
        ]
        width = max(len(row) for row in rows)
        gaps = [width - len(row) for row in rows]
        pads = [(0, gap) if side == "right" else (gap, 0) for gap in gaps]
        ids = torch.stack([F.pad(row, pad) for row, pad in zip(rows, pads, strict=True)])
        mask = torch.stack(
            [F.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads, strict=True)]
        )
        arguments = {"input_ids": ids, "attention_mask": mask}
        answers = [torch.arange(len(r)) >= len(q.ids) for r, q in zip(rows, questions, strict=True)]
        padded = [F.pad(own, pad) for own, pad in zip(answers, pads, strict=True)]
        arguments |= self._kinds(ids, torch.stack(padded))
        if (first := self.tiny.first_position) is not None:
            arguments["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + first
        vision = merged([self._vision(encoder, q) for q in questions if q.sample.media])
        arguments |= {
            key: value.to(self.model.dtype) if value.is_floating_point() else value
            for key, value in vision.items()
        }
        with self.with_any(adapters):
            if self.tiny.needs_picture and not vision:
                del arguments["input_ids"]
                embeds = self.model.get_input_embeddings()(ids)
                logits = self.model.language_model(inputs_embeds=embeds, **arguments).logits
            else:
                logits = self.model(**arguments).logits
        wanted = []
        for row, (question, gap) in enumerate(zip(questions, gaps, strict=True)):
            learned = [*question.learned[1:].tolist(), *[True] * len(question.answer)]
            start = 0 if side == "right" else gap
            wanted.append(logits[row, start : start + len(learned)][torch.tensor(learned)])
        return torch.cat(wanted)

    def loss(
        self, question: Question, encoder: QuestionEncoder, adapters: PeftModel | None
    ) -> Tensor:
        """The model's own loss on one question, with labels -100 on all that is not learned."""
        ids = torch.cat([question.ids, torch.tensor(question.answer)])[None]
        learned = torch.cat([question.learned, torch.ones(len(question.answer)).bool()])[None]
        answer = (torch.arange(ids.shape[1]) >= len(question.ids))[None]
        arguments = {"input_ids": ids, "labels": ids.where(learned, -100)}
        arguments |= self._kinds(ids, answer)
        if question.sample.media:
            arguments |= self._vision(encoder, question)
        with self.with_any(adapters):
            return self.model(**arguments).loss

    def _vision(self, encoder: QuestionEncoder, question: Question) -> dict[str, Tensor]:
        """What the family's own processor makes of the pictures."""
        found = encoder.vision_inputs(question.sample)
        return {key: v for key, v in found.items() if key not in self.family.vision_keys}

    def _kinds(self, ids: Tensor, answers: Tensor) -> dict[str, Tensor]:
        """What the family's own processor says of the kinds of tokens (B, T)."""
        return self.tiny.kinds(ids == self.image_token, answers)

    def with_any(self, adapters: PeftModel | None) -> AbstractContextManager[None]:
        return nullcontext() if adapters is None else self.adapted(adapters)


def use_plain_experts(model: Any) -> None:
    """Let a model of experts compute in float64, which PyTorch's grouped product does not take."""
    model.set_experts_implementation("eager")


def merged(questions: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Vision inputs of several questions as one batch, padded where patches or sizes differ."""
    batch = {}
    for key in dict.fromkeys(key for question in questions for key in question):
        own = [question[key] for question in questions if key in question]
        padded = key.startswith(("qformer", "input_features"))
        if own[0].dim() >= 4 or padded:  # (pictures, patches, …), (…, H, W), (n, width, …)
            own = [_padded(value, [v.shape for v in own]) for value in own]
        batch[key] = torch.cat(own)
    return batch


def _padded(value: Tensor, shapes: Sequence[torch.Size]) -> Tensor:
    """Zeros at the end of each axis but the first, as long as the longest."""
    gaps = [max(sizes) - size for size, *sizes in zip(value.shape, *shapes, strict=True)]
    return F.pad(value, [n for gap in reversed(gaps[1:]) for n in (0, gap)])
