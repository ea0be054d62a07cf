"""GLM-4.6V: positions on three axes, for a part of each head."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import TinyFamily, thinking
from tests.families.glm4v import glm
from tests.families.qwen2_vl import KINDS


def make() -> tuple[Any, Any]:
    return glm(tf.Glm46VConfig, "Glm46V", thinking)


TINY = TinyFamily("glm46v", make, kinds=KINDS, first_position=None)
