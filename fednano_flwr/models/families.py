"""The model families that can be cut in two, and what is particular to each.

A family is a transformers architecture: `get_image_features` gives the connector's output, its own
forward accepts input embeddings, and between the two nothing is computed but the embeddings
themselves. The cut goes there. All that differs from family to family is in this table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What the cut has to know of one architecture.

    Attributes:
        architecture: class in transformers.
        language: the language model in its module tree; head and vision parts lie outside.
        host: what the server calls with input embeddings: "" is the whole model without its vision
            parts, so that all its forward does besides (masks, caps on logits) is done.
        token_types: what the language model has to know of a token to build its attention mask:
            "" (nothing: causal), "image" (a picture's tokens see each other) or "prefix" (all
            tokens of the prompt see each other).
        rotary_axes: 3 where positions are those of a token in time, height and width.
        other_processors: classes in transformers that fit beside its own.
        one_size: whether pictures are all scaled to one size, and so become equally many tokens.
    """

    architecture: str
    language: str = "model.language_model"
    host: str = ""
    token_types: str = ""
    rotary_axes: int = 1
    other_processors: tuple[str, ...] = ()
    one_size: bool = False

    @property
    def processors(self) -> tuple[str, ...]:
        """Classes in transformers of the processors that fit."""
        own = self.architecture.removesuffix("ForConditionalGeneration") + "Processor"
        return (own, *self.other_processors)


FAMILIES: Mapping[str, Family] = {
    "llava": Family(
        "LlavaForConditionalGeneration", other_processors=("PixtralProcessor",), one_size=True
    ),
    "llava_next": Family("LlavaNextForConditionalGeneration"),
    "llava_onevision": Family("LlavaOnevisionForConditionalGeneration"),
    "internvl": Family("InternVLForConditionalGeneration"),
    "smolvlm": Family("SmolVLMForConditionalGeneration", language="model.text_model"),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        rotary_axes=3,
        other_processors=("Qwen2VLProcessor",),
    ),
    "paligemma": Family("PaliGemmaForConditionalGeneration", token_types="prefix", one_size=True),
    "gemma3": Family("Gemma3ForConditionalGeneration", token_types="image", one_size=True),
    "instructblip": Family(
        "InstructBlipForConditionalGeneration",
        language="language_model",
        host="language_model",
    ),
    "blip-2": Family(
        "Blip2ForConditionalGeneration",
        language="language_model",
        host="language_model",
        one_size=True,
    ),
}

LLAVA_FORMAT = (
    "It is in the LLaVA authors' own format: take its version for transformers, whose name on the "
    "hub ends in -hf (of LLaVA-1.5, llava-hf/llava-1.5-7b-hf and llava-hf/llava-1.5-13b-hf)"
)
NO_EMBEDDINGS = "Its language model attends to pictures in layers of its own, not as embeddings"
REFUSED: Mapping[str, str] = {
    "gemma3_text": "It reads no pictures; Gemma 3 does from 4B on (google/gemma-3-4b-it)",
    "gemma3n": "Its language model looks up embeddings by token id in every layer; take Gemma 3",
    "idefics": NO_EMBEDDINGS,
    "idefics3": "SmolVLM's first generation is of this family: take SmolVLM2, which is smolvlm",
    "instructblipvideo": "It reads videos; for pictures take InstructBLIP",
    "internvl_chat": "It is in InternVL's own format: take the checkpoint whose name on the hub "
    "ends in -hf, such as OpenGVLab/InternVL3-1B-hf",
    **dict.fromkeys(("llava_llama", "llava_mistral", "llava_qwen"), LLAVA_FORMAT),
    "llava_next_video": "It reads videos; for pictures take LLaVA-NeXT",
    "mllama": NO_EMBEDDINGS,
    **dict.fromkeys(("qwen2_vl", "qwen2_5_omni"), "Take Qwen2.5-VL, which is qwen2_5_vl"),
    **dict.fromkeys(
        ("qwen3_vl", "qwen3_vl_moe"),
        "Its vision encoder feeds several layers of the language model; take Qwen2.5-VL",
    ),
}
"""Families that people ask for and that are not cut: why not, or what to take instead."""

# A module's place in the tree changed between versions of transformers, and checkpoints keep the
# names of the version that wrote them. Dropping what changed leaves names that agree.
_RENAMES = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^model\.", ""),
    (r"^(language_model|text_model)\.(model\.)?", "language_model."),
    (r"^(layers|embed_tokens|norm)\.", r"language_model.\1."),
    (r"^(vision_tower|visual)\.vision_model\.", r"\1."),
)


def canonical(name: str) -> str:
    """A tensor's name, whichever version of transformers wrote or built it."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
