"""Which features of a picture make the frozen language model answer questions about it."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from fednano_demo.real.easy import COLOURS, SHAPES
from fednano_demo.real.pictures import Pictures
from fednano_demo.real.processor import IMAGE_TOKENS

CAPTION = "The only {colour} shape is a {shape}. Answer yes or no:\n"
"""What features say at first. After other sentences the model hardly tells whether a question's
word was in the sentence."""
_SHARPNESS = 4.0  # of the distances between features of different pictures
_NEARNESS = 20.0  # weight of the mean distance: telling pictures apart does not make it small


class Descriptions(nn.Module):
    """Features of a picture by the shape and the colour that it shows, trained through the LLM.

    They are a sum of what all pictures have, what a shape has and what a colour has, so that each
    question teaches something of all pictures. At first they are token embeddings of `CAPTION`.
    """

    def __init__(self, embeddings: Tensor, tokenizer: TokenizersBackend) -> None:
        super().__init__()
        ids, fill = [], tokenizer.encode("\n") * IMAGE_TOKENS
        for shape, colour in product(SHAPES, COLOURS):
            caption = tokenizer.encode(CAPTION.format(shape=shape, colour=colour))
            ids.append((caption + fill)[:IMAGE_TOKENS])
        self.scale = float(embeddings.square().mean().sqrt())  # parameters are about 1
        start = (embeddings[torch.tensor(ids)] / self.scale).unflatten(0, (len(SHAPES), -1))
        common = start.mean((0, 1))
        self.common = nn.Parameter(common)
        self.shapes = nn.Parameter(start.mean(1) - common)
        self.colours = nn.Parameter(start.mean(0) - common)

    def forward(self) -> Tensor:
        """(3 · 8, 16, d) float32, of each shape in each colour."""
        return self.scale * (self.common + self.shapes[:, None] + self.colours).flatten(0, 1)

    def loss(self, features: Tensor, pictures: Pictures) -> Tensor:
        """Pull features towards those of their shape and colour, more than towards all others.

        Their mean squared distance, and a cross-entropy over all shapes and colours by distance.

        Args:
            features: (n, 16, d), the connector's output.
        """
        known = pictures.named >= 0
        named, table = pictures.named[known], self().detach()
        apart = torch.cdist(features[known].flatten(1), table.flatten(1)).square()
        apart = apart / (self.scale**2 * table.shape[-1])
        near = apart.gather(1, named[:, None]).mean() / IMAGE_TOKENS
        return _NEARNESS * near + cross_entropy(-_SHARPNESS * apart, named)
