"""The model families that can be cut in two, and where each is cut."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """How one transformers architecture is cut between token embeddings and language model.

    Names of parts are those of the model's module tree; `renames` turn the names that older
    checkpoints use into them.
    """

    architecture: str
    vision: tuple[str, ...]
    language: tuple[str, ...]
    embeddings: str
    renames: tuple[tuple[str, str], ...]

    def canonical(self, key: str) -> str:
        """A tensor's name, whichever version of transformers wrote it."""
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key


LLAVA = Family(
    architecture="LlavaForConditionalGeneration",
    vision=("model.vision_tower", "model.multi_modal_projector"),
    language=("model.language_model", "lm_head"),
    embeddings="model.language_model.embed_tokens.weight",
    renames=(
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
        (r"\.vision_model\.", "."),
    ),
)

FAMILIES: Mapping[str, Family] = {"llava": LLAVA}
