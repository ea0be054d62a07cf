"""What tells two checkpoints apart, of which each side needs to have no more than its own half.

    SHARED-EDGE-LLM

SHARED is a digest of what both sides read. EDGE and LLM are digests of samples of all tensors of
the client's and of the server's half; a side that lacks files of a half leaves that empty.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LANGUAGE = ("language_model.", "lm_head.")
LONGEST_HEADER = 10**8  # bytes, as safetensors has it
PIECES, PIECE_BYTES = 8, 64  # of a tensor: fine-tuning changes nearly every number of what it tunes
DIGITS = 8


def same_checkpoint(one: str, other: str) -> bool:
    """Whether two fingerprints can be of one checkpoint: what both know of it is equal."""
    (shared, *halves), (other_shared, *other_halves) = one.split("-"), other.split("-")
    known = zip(halves, other_halves, strict=False)  # older fingerprints have no halves
    return shared == other_shared and all(a == b for a, b in known if a and b)


def digests_of_halves(folder: Path, files: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Of samples of the client's and of the server's tensors; "" where not all of them are here.

    Nothing is downloaded, and a few hundred bytes a tensor are read. They are not read through a
    mapping, of which the neighbouring pages would count as this process's memory.

    Args:
        files: canonical tensor name → (file in the folder, the tensor's name in it).
    """
    edge = {name: place for name, place in files.items() if not name.startswith(LANGUAGE)}
    llm = {name: place for name, place in files.items() if name.startswith(LANGUAGE)}
    return _digest(folder, edge), _digest(folder, llm)


def _digest(folder: Path, files: Mapping[str, tuple[str, str]]) -> str:
    samples: dict[str, bytes] = {}
    try:
        for file in {file for file, _ in files.values()}:
            with (folder / file).open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                if size > LONGEST_HEADER:
                    return ""
                header = json.loads(opened.read(size))
                for name, (place, key) in files.items():
                    if place == file:
                        samples[name] = _sample(opened.fileno(), 8 + size, header[key])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""  # reported when such a file is loaded
    digest = hashlib.sha256()
    for name in sorted(samples):
        digest.update(f"{name} {len(samples[name])}\n".encode() + samples[name])
    return digest.hexdigest()[:DIGITS]


def _sample(file: int, start: int, tensor: Mapping[str, Any]) -> bytes:
    """Dtype, shape and some bytes of a tensor: all, or evenly spread pieces.

    Raises:
        OSError, ValueError, TypeError, KeyError: the file is not as it should be.
    """
    first, end = tensor["data_offsets"]
    length, last = PIECE_BYTES, end - first - PIECE_BYTES
    places = [last * index // (PIECES - 1) for index in range(PIECES)]
    if end - first <= PIECES * PIECE_BYTES:
        places, length = [0], end - first
    pieces = [os.pread(file, length, start + first + place) for place in places]
    if any(len(piece) != length for piece in pieces):
        raise ValueError("the file is cut off")
    return json.dumps([tensor["dtype"], tensor["shape"]]).encode() + b"".join(pieces)
