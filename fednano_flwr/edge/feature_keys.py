"""What frozen image features depend on besides the sample, as one digest."""

from __future__ import annotations

import hashlib
import importlib.metadata

import torch

from fednano_flwr.edge.questions import QuestionEncoder
from fednano_flwr.models.edge_half import EdgeHalf

FORMAT = 3
"""Of the files and of how features are computed; raise it with every change of either."""
LIBRARIES = ("torch", "torchvision", "transformers", "pillow", "numpy")


def model_digest(half: EdgeHalf, encoder: QuestionEncoder) -> str:
    """Digest of model, weights, preprocessing, libraries and hardware.

    Processors of different kinds round differently, and so does one with another number of threads,
    so features are shared only among those that are alike.
    """
    digest = hashlib.sha256(f"{FORMAT}\n".encode())
    for part in (
        half.fingerprint.partition("-")[0],  # the rest depends on which files are here
        half.vision_digest(),
        half.dtype,
        _hardware(half.device),
        *encoder.processor_classes,
        *(f"{name} {_version(name)}" for name in LIBRARIES),
    ):
        digest.update(f"{part}\n".encode())
    for file in sorted(half.checkpoint.folder.glob("*processor_config.json")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return device.type


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"
