"""Seeds of random draws, each derived from the run's seed, a purpose and numbers.

Without the purpose, two draws of one run could share a seed, such as the local adapter of client 1
and the order of round 1's questions, and what they draw would not be independent.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum


class Purpose(StrEnum):
    """What is drawn; the text is part of the seed."""

    PARTITIONS = "training questions of each client"
    TEST_PARTITIONS = "test questions of each client"
    HELD_OUT = "one client's own training questions that are tested on"
    TRAINERS = "clients that train in a round"
    SCORERS = "clients that are scored in a round"
    ADAPTERS = "A of the first adapters"
    LLM_ADAPTERS = "A of the first LoRA inside the language model"
    ROUND_ADAPTERS = "A of the adapters that a merge begins anew"
    LOCAL_ADAPTER = "A of a client's local adapter"
    UNUSED_DIRECTIONS = "rows of A that a merged product does not use"
    TRAINING = "one client's training in a round"
    ORDER = "order of the questions in training"
    DROPOUT = "dropout in training"
    DRAWN_ANSWERS = "answers of a Fisher pass, drawn from the model"
    AUDITED = "questions of a client that an audit plays again"
    AUDIT_TRAINING = "one client's training in an audit"


def derive_seed(purpose: Purpose, *parts: int) -> int:
    """A 63-bit seed from a purpose and numbers, such as the run's seed, round and partition.

    Another purpose, number, order or count of numbers makes another seed.
    """
    text = ",".join([purpose.value, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
