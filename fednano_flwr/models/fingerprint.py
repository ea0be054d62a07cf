"""What tells two checkpoints apart, of which each side needs to have no more than its own half.

    SHARED-EDGE-LLM

SHARED is a digest of what both sides read. EDGE and LLM are digests of samples of all tensors of
the client's and of the server's half; a side that lacks files of a half leaves that empty.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

LANGUAGE = ("language_model.", "lm_head.")
LONGEST_HEADER = 10**8  # as safetensors has it
PIECES, PIECE_BYTES = 8, 64  # of a tensor: fine-tuning changes nearly every number of what it tunes
DIGITS = 8


def same_checkpoint(one: str, other: str) -> bool:
    """Whether two fingerprints can be of one checkpoint: what both know of it is equal."""
    (shared, *halves), (other_shared, *other_halves) = one.split("-"), other.split("-")
    known = zip(halves, other_halves, strict=False)  # older fingerprints have no halves
    return shared == other_shared and all(a == b for a, b in known if a and b)


def digests_of_halves(folder: Path, files: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Of samples of the client's and of the server's tensors; "" where not all of them are here.

    No tensor is loaded, and nothing is downloaded: a few hundred bytes a tensor are read.

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
            keys = {key: name for name, (place, key) in files.items() if place == file}
            samples |= {keys[key]: sample for key, sample in _samples(folder / file, keys)}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""  # who loads such a file says what is wrong with it
    digest = hashlib.sha256()
    for name in sorted(samples):
        digest.update(f"{name} {len(samples[name])}\n".encode() + samples[name])
    return digest.hexdigest()[:DIGITS]


def _samples(file: Path, keys: Iterable[str]) -> Iterable[tuple[str, bytes]]:
    """Some bytes of each of these tensors of a safetensors file.

    Raises:
        OSError, ValueError, TypeError, KeyError, RecursionError: it is not as it should be.
    """
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > LONGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        header = json.loads(opened.read(size))
        for key in keys:
            first, end = header[key]["data_offsets"]
            wanted = [
                (8 + size + first + offset, length) for offset, length in _places(end - first)
            ]
            pieces = [os.pread(opened.fileno(), length, place) for place, length in wanted]
            if any(len(p) != length for p, (_, length) in zip(pieces, wanted, strict=True)):
                raise ValueError("the file is cut off")
            kind = json.dumps([header[key]["dtype"], header[key]["shape"]])
            yield key, kind.encode() + b"".join(pieces)


def _places(size: int) -> list[tuple[int, int]]:
    """Offsets and lengths of what is read of so many bytes: all, or evenly spread pieces."""
    if size <= PIECES * PIECE_BYTES:
        return [(0, size)]
    last = size - PIECE_BYTES
    return [(last * index // (PIECES - 1), PIECE_BYTES) for index in range(PIECES)]
