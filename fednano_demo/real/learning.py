"""How vision tower and connector are trained: their data, losses and accuracy.

First the connector's features learn to describe each patch by the words of the language model. Then
they learn to make the frozen language model answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from fednano_demo.real.easy import ANSWERS, COLOURS, SHAPES, Question
from fednano_demo.real.processor import IMAGE, IMAGE_TOKENS, PATCH, PIXEL_MEAN, PIXEL_STD
from fednano_demo.real.sheets import Asked, Batch, Sheet, lay_out
from fednano_flwr.data.prompts import conversation

CAPTION = "shape?\n{shape}\ncolor?\n{colour}\n {colour} {shape}?\nyes"
"""What the features of a picture say at first: words as they stand in answers and in questions."""
EMPTY = len(SHAPES)
"""Label of a patch that shows nothing."""
UNKNOWN = -100
_SHARPNESS = 4.0  # of the distances between captions, of which few tokens differ
_CONTRAST, _COVERED = 60, 0.1
"""A patch shows the shape where this share of its pixels differs so much from the corner's."""


@dataclass(frozen=True)
class Pictures:
    """Pictures as tensors.

    Attributes:
        pixels: (n, 3, 64, 64) float32, as the processor makes them.
        shapes, colours: (n,) index into `SHAPES` and `COLOURS`, `UNKNOWN` where no question tells.
        shown: (n, 16) bool, whether a patch shows a part of the shape.
    """

    pixels: Tensor
    shapes: Tensor
    colours: Tensor
    shown: Tensor


def open_pictures(files: Sequence[Path], questions: Sequence[Sequence[Question]]) -> Pictures:
    """Read pictures; what they show is what the questions of each tell."""
    raw = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    pixels = torch.from_numpy(raw).permute(0, 3, 1, 2)
    differs = (pixels.int() - pixels[:, :, :1, :1].int()).abs().amax(1) > _CONTRAST
    covered = differs.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(3).float().mean(-1)
    told = [set[str]().union(*(question.told for question in own)) for own in questions]
    shapes, colours = (
        torch.tensor(
            [next((i for i, word in enumerate(words) if word in one), UNKNOWN) for one in told]
        )
        for words in (SHAPES, COLOURS)
    )
    normal = (pixels.float() / 255 - PIXEL_MEAN) / PIXEL_STD
    return Pictures(normal, shapes, colours, covered.flatten(1) > _COVERED)


class PatchHead(nn.Module):
    """Names what each patch shows from the vision tower's output; for training alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.names = nn.Linear(width, len(SHAPES) + 1 + len(COLOURS))

    def loss(self, patches: Tensor, pictures: Pictures, picks: Tensor) -> Tensor:
        """Σ of two cross-entropies: which shape or none, and which colour.

        Args:
            patches: (b, 16, width), the vision tower's output.
            picks: (b,) which of the pictures they are of.
        """
        shape, colour = self.names(patches).flatten(0, 1).split([len(SHAPES) + 1, len(COLOURS)], -1)
        shown = pictures.shown[picks]
        shapes = torch.where(shown, pictures.shapes[picks][:, None], EMPTY)
        colours = torch.where(shown, pictures.colours[picks][:, None], UNKNOWN)
        pairs = ((shape, shapes), (colour, colours))
        each = [cross_entropy(a, b.flatten(), ignore_index=UNKNOWN) for a, b in pairs]
        return torch.stack(each).sum()


class Captions:
    """What a picture's features should say, as the language model's token embeddings.

    Attributes:
        table: (3 · 8, 16, d) float32, the first tokens of each shape's and colour's caption.
        norm: root of the mean squared norm of all token embeddings.
    """

    def __init__(self, embeddings: Tensor, tokenizer: TokenizersBackend) -> None:
        texts = [CAPTION.format(shape=s, colour=c) for s in SHAPES for c in COLOURS]
        ids = [tokenizer.encode(text + "\n" * IMAGE_TOKENS)[:IMAGE_TOKENS] for text in texts]
        self.table = embeddings[torch.tensor(ids)]
        self.norm = float(embeddings.square().sum(-1).mean().sqrt())

    def loss(self, features: Tensor, pictures: Pictures, picks: Tensor) -> Tensor:
        """Pull features towards their caption, more than towards the other captions.

        Their mean squared distance, and a cross-entropy over all captions by distance.

        Args:
            features: (b, 16, d), the connector's output.
            picks: (b,) which of the pictures they are of.
        """
        shapes, colours = pictures.shapes[picks], pictures.colours[picks]
        known = (shapes >= 0) & (colours >= 0)
        right = (shapes * len(COLOURS) + colours)[known]
        apart = torch.cdist(features[known].flatten(1), self.table.flatten(1)).square()
        apart = apart / self.norm**2
        near = apart.gather(1, right[:, None]).mean() / IMAGE_TOKENS
        return near + cross_entropy(-_SHARPNESS * apart, right)

    def size(self, features: Tensor) -> Tensor:
        """Mean squared norm of features, against that of token embeddings.

        Without a bound on it features grow, and a low-rank adapter on them learns badly.
        """
        return features.square().sum(-1).mean() / self.norm**2


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
