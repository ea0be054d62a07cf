"""The model families that can be cut: one file of this folder each.

A family of one's own is a `Family` that an installed package names in its entry points, in the
group `fednano_flwr.families`; `register` adds one to the running process.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from transformers import PretrainedConfig

from fednano_flwr.models.families import auto
from fednano_flwr.models.families.base import Connector, Family

__all__ = [
    "AUTO",
    "FAMILIES",
    "REFUSED",
    "Connector",
    "Family",
    "canonical",
    "find",
    "of",
    "register",
]
AUTO = "auto"
"""`model.family` where any family is cut, and not only those that are listed."""
ENTRY_POINTS = "fednano_flwr.families"
FAMILIES: dict[str, Family] = {}
"""By `model_type`."""


def register(family: Family) -> None:
    """Add a family.

    Raises:
        ValueError: another family has its `model_type`.
    """
    if FAMILIES.setdefault(family.model_type, family) != family:
        raise ValueError(f"there is another family {family.model_type!r}")


def find(model_type: str) -> Family | None:
    """The family with this `model_type`, of this folder or of an installed package."""
    if model_type not in FAMILIES:
        _register_installed()
    return FAMILIES.get(model_type)


def of(config: PretrainedConfig) -> Family:
    """The family of a model's config: the listed one, else what transformers tells of it.

    Raises:
        ConfigError: it is not listed, and nothing tells where to cut it.
    """
    return find(config.model_type) or auto.family_of(config)


@cache
def _register_installed() -> None:
    for point in entry_points(group=ENTRY_POINTS):
        register(point.load())


for _module in iter_modules(__path__):
    if _family := getattr(import_module(f"{__name__}.{_module.name}"), "FAMILY", None):
        register(_family)

LLAVA_FORMAT = (
    "It is in the LLaVA authors' own format: take its version for transformers, whose name on the "
    "hub ends in -hf (of LLaVA-1.5, llava-hf/llava-1.5-7b-hf and llava-hf/llava-1.5-13b-hf)"
)
NO_EMBEDDINGS = (
    "Its language model attends to pictures in cross-attention layers of its own, not as embeddings"
)
EXPERTS = "Its experts' weights are joined when they are read, which is not done here; take "
REFUSED = {
    "gemma3_text": "It reads no pictures; Gemma 3 does from 4B on (google/gemma-3-4b-it)",
    "gemma3n": "Take Gemma 4, such as google/gemma-4-E2B-it",
    "gemma4_unified": "It has no encoder of pictures; take one that has (google/gemma-4-E4B-it)",
    "glm4v_moe": f"{EXPERTS}GLM-4.1V (glm4v) or GLM-4.6V-Flash (glm46v)",
    "idefics": NO_EMBEDDINGS,
    "instructblipvideo": "It reads videos; for pictures take InstructBLIP",
    "internvl_chat": "It is in InternVL's own format: take the checkpoint whose name on the hub "
    "ends in -hf, such as OpenGVLab/InternVL3-1B-hf",
    **dict.fromkeys(("llava_llama", "llava_mistral", "llava_qwen"), LLAVA_FORMAT),
    "llava_qwen2": "It is FastVLM in its authors' own format: take its version for transformers, "
    "such as KamilaMila/FastVLM-0.5B",
    "mllama": NO_EMBEDDINGS,
    "ovis": "It is in Ovis' own format: take the version of Ovis2 for transformers, whose name on "
    "the hub ends in -hf, such as thisisiron/Ovis2-2B-hf",
    "qwen2_5_omni": "Take Qwen3-VL, which is qwen3_vl",
    "qwen3_5_moe": f"{EXPERTS}Qwen3.5 without experts (qwen3_5)",
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
