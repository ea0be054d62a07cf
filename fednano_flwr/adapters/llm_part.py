"""The parameters of a merged model that are inside the language model, and those at the clients.

A strategy merges all alike. Clients are sent their own, and the host has the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from fednano_flwr.models.lora import PREFIX

T = TypeVar("T")


def at_clients(state: Mapping[str, T]) -> dict[str, T]:
    """What clients hold of it."""
    return {name: value for name, value in state.items() if not name.startswith(PREFIX)}


def at_llm(state: Mapping[str, T]) -> dict[str, T]:
    """What is inside the language model."""
    return {name: value for name, value in state.items() if name.startswith(PREFIX)}
