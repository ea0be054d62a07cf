"""One adapter, named x, as a state, and what it does."""

from __future__ import annotations

import torch
from torch import Tensor

from fednano_flwr.adapters.product import DOWN, UP
from fednano_flwr.adapters.update import State


def drawn(seed: int, rank: int = 3, d: int = 7) -> State:
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"x{DOWN}": (rank, d), f"x{UP}": (d, rank)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def product(theta: State) -> Tensor:
    return theta[f"x{UP}"].double() @ theta[f"x{DOWN}"].double()
