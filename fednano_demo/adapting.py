"""Train low-rank adapters around the frozen demo model, in one process and without federation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from fednano_demo.encode import LETTER_IDS, VOCABULARY, collate, encode
from fednano_demo.evaluate import right_answers
from fednano_demo.network import IMAGE_TOKENS, WIDTH
from fednano_demo.questions import Question
from fednano_demo.words import IMAGE


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one training."""

    epochs: int = 5
    batch_size: int = 16
    learning_rate: float = 2e-3  # at 5e-3 some seeds get stuck near what one adapter reaches
    rank: int = 16
    alpha: float = 32.0


class Adapter(nn.Module):
    """h' = h + s·B(A h) with s = alpha / rank; B = 0 at the start."""

    def __init__(self, recipe: Recipe, generator: torch.Generator) -> None:
        super().__init__()
        down = torch.randn(recipe.rank, WIDTH, generator=generator) / WIDTH**0.5
        self.down, self.up = nn.Parameter(down), nn.Parameter(torch.zeros(WIDTH, recipe.rank))
        self.scale = recipe.alpha / recipe.rank

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, d) to (…, d)."""
        return hidden + self.scale * (hidden @ self.down.T) @ self.up.T


class FrozenQuestions:
    """Questions as what the frozen parts make of them: connector features and token ids."""

    def __init__(self, model: LlavaForConditionalGeneration, questions: list[Question]) -> None:
        self.questions = questions
        batch = collate(questions, [encode(question) for question in questions])
        self.ids, self.last, self.targets = batch.ids, batch.last, batch.targets
        self.features = torch.zeros(len(questions), IMAGE_TOKENS, WIDTH)
        pictured = [i for i, q in enumerate(questions) if q.picture is not None]
        assert batch.pixels is not None
        with torch.no_grad():
            for rows, pixels in zip(
                torch.tensor(pictured).split(512), batch.pixels.split(512), strict=True
            ):
                features = model.get_image_features(pixel_values=pixels).pooler_output
                self.features[rows] = torch.stack(list(features))


def answer_logits(
    model: LlavaForConditionalGeneration,
    image_adapter: nn.Module,
    text_adapter: nn.Module,
    data: FrozenQuestions,
    rows: Tensor,
) -> Tensor:
    """(n, V) logits of the token after each prompt."""
    ids = data.ids[rows, : int(data.last[rows].max()) + 1]
    embedded = text_adapter(model.get_input_embeddings()(ids))
    spots = ids == VOCABULARY[IMAGE]
    features = image_adapter(data.features[rows])[spots.any(1)]
    embedded = embedded.masked_scatter(spots[..., None].expand_as(embedded), features)
    language = model.model.language_model
    hidden = language(inputs_embeds=embedded, use_cache=False).last_hidden_state
    return model.lm_head(hidden[torch.arange(len(rows)), data.last[rows]])


def score(
    model: LlavaForConditionalGeneration,
    image_adapter: nn.Module,
    text_adapter: nn.Module,
    data: FrozenQuestions,
) -> float:
    """Share of right answers."""
    right: list[bool] = []
    with torch.no_grad():
        for rows in torch.arange(len(data.questions)).split(256):
            logits = answer_logits(model, image_adapter, text_adapter, data, rows)
            part = [data.questions[int(row)] for row in rows]
            right += right_answers(logits[:, LETTER_IDS], part)
    return sum(right) / len(right)


def adapt(
    model: LlavaForConditionalGeneration,
    image_adapter: nn.Module,
    text_adapter: nn.Module,
    data: FrozenQuestions,
    recipe: Recipe,
    generator: torch.Generator,
) -> None:
    """Train the adapters' parameters in place; the model must be frozen."""
    parameters = [*image_adapter.parameters(), *text_adapter.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(data.questions), generator=generator)
        for rows in order.split(recipe.batch_size):
            logits = answer_logits(model, image_adapter, text_adapter, data, rows)
            optimizer.zero_grad()
            cross_entropy(logits, data.targets[rows]).backward()
            optimizer.step()
