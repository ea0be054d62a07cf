"""Made sounds: tones and noise, as files' bytes."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from fednano_flwr.data.sample import Sound

RATE = 16_000


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE, loud: float = 0.5) -> np.ndarray:
    """(n,) float32."""
    return (loud * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype("f4")


def noise(seed: int, seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    """(n,) float32."""
    draw = np.random.default_rng(seed).standard_normal(int(rate * seconds))
    return (0.1 * draw).astype("f4")


def as_file(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", **how: str) -> bytes:
    """A file's bytes, of samples (n,) or (n, channels)."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, **how)
    return file.getvalue()


def sound(samples: np.ndarray, rate: int = RATE) -> Sound:
    return Sound(data=as_file(samples, rate))
