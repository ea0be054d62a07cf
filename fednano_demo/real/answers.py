"""The loss that the model has at answers to questions about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from fednano_demo.real.easy import ANSWERS, Question
from fednano_demo.real.processor import IMAGE, IMAGE_TOKENS
from fednano_demo.real.sheets import Asked, Batch, Sheet, lay_out
from fednano_flwr.data.prompts import conversation


class Writer:
    """Writes a picture's questions as a sheet, by the prompts that fednano uses."""

    def __init__(self, processor: LlavaProcessor) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_token: int = processor.image_token_id
        self.answers = {word: [*self._ids(word), self.tokenizer.eos_token_id] for word in ANSWERS}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def sheet(self, asked: Sequence[tuple[Question, bool]], every: bool) -> Sheet:
        """
        Args:
            asked: questions of one picture, and whether each is asked with its options.
            every: whether all 13 answers follow a question, or its right one.
        """
        questions = []
        for question, options in asked:
            turns = conversation(question.sample(Path(), options))
            prompt = self.processor.apply_chat_template(turns, add_generation_prompt=True)
            before, _, after = prompt.partition(IMAGE)
            answers = list(self.answers.values()) if every else [self.answers[question.answer]]
            questions.append(Asked(self._ids(after), answers))
        opening = self._ids(before) + [self.image_token] * IMAGE_TOKENS
        return lay_out(opening, questions)


def encode_pictures(model: LlavaForConditionalGeneration, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 16, width) the vision tower's output, and (n, 16, d) the connector's, both float32."""
    patches = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    return patches, model.model.multi_modal_projector(patches)


def answer_losses(
    model: LlavaForConditionalGeneration, image_token: int, features: Tensor, batch: Batch
) -> Tensor:
    """(A,) float32, Σ −log p over the tokens of each answer and its end.

    Args:
        features: (B, 16, d), of each sheet's picture.
    """
    embeddings = model.get_input_embeddings()(batch.ids)
    places = (batch.ids == image_token)[..., None]
    hidden = model.model.language_model(
        inputs_embeds=embeddings.masked_scatter(places, features.to(embeddings.dtype)),
        attention_mask=batch.sees,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.rows]).float()
    each = cross_entropy(logits, batch.targets, reduction="none")
    return torch.zeros(int(batch.owners[-1]) + 1).index_add(0, batch.owners, each)
