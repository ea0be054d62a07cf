"""Services for replicas' tests, built in the replicas' own processes."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fednano_flwr.exchange.errors import FeaturesMissingError, GraphGoneError
from fednano_flwr.exchange.protocol import LLMInfo


def frozen(folder: str) -> Any:
    """A real host."""
    from fednano_flwr.llm.host import FrozenLLM  # the others need not load transformers
    from fednano_flwr.models.llm_half import load_llm_half

    torch.set_num_threads(1)
    return FrozenLLM(load_llm_half(folder))


def training(folder: str) -> Any:
    """A real host that trains a LoRA."""
    from fednano_flwr.config import Adapter
    from fednano_flwr.llm.host import FrozenLLM
    from fednano_flwr.llm.sessions import Sessions
    from fednano_flwr.models.llm_half import load_llm_half

    torch.set_num_threads(1)
    half = load_llm_half(folder, lora=Adapter(4, 8.0, 0.0, "llm", llm_rank=2))
    assert half.lora is not None
    return FrozenLLM(half, sessions=Sessions(half.lora, 4, 2**30))


class OddError(ValueError):
    """Has arguments that its `__init__` would not take back."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")


class Fake:
    """Answers `score` with its process and the sum of what it was sent; does odd things if told.

    While a file `full` lies in its folder it cannot be made; `model` there is the model's name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.graphs: dict[bytes, int] = {}
        self.inside, self.most, self.lock = 0, 0, threading.Lock()
        if (folder / "full").exists():
            raise MemoryError("no room")
        model = folder / "model"
        self.model = model.read_text() if model.exists() else "fake"
        tempfile.mkdtemp(prefix="fednano-features-")
        with (folder / "starts").open("a") as file:
            file.write(f"{os.getpid()}\n")

    def describe(self) -> Any:
        return LLMInfo(self.model, "f", "", 8, 16, "float32", 100)

    def score(self, inputs: Any, positions: Tensor, candidates: Any, owner: bytes = b"") -> Tensor:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(float(candidates))
        with self.lock:
            self.inside -= 1
        return torch.tensor([float(os.getpid()), float(positions.sum()), float(self.most)])

    def token_losses(self, inputs: Any, positions: Any, tokens: Any, owner: bytes = b"") -> Any:
        """Does what `inputs` says."""
        if inputs == "hang" and (self.folder / "hang").read_text() == str(os.getpid()):
            time.sleep(60)
        if inputs == "device":
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        if inputs == "odd":
            raise OddError("odd", 7)
        if inputs == "missing":
            raise FeaturesMissingError((b"a", b"b"))
        if inputs == "code":
            import fednano_flwr

            return fednano_flwr.__file__
        return os.getpid()

    def forward(self, inputs: Any, positions: Tensor, owner: bytes = b"") -> tuple[int, Tensor]:
        self.graphs[owner] = time.time_ns()
        return self.graphs[owner], positions * 2.0

    def backward(self, graph: int, gradient: Tensor, owner: bytes = b"") -> Any:
        if self.graphs.get(owner) != graph:
            raise GraphGoneError(f"graph {graph}")
        return gradient + 1
