"""Sounds as the sound encoder takes them: decoded, one channel, at the encoder's sampling rate."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.sample import MediaFile, Sound

WHOLE = 0.99
"""The least share of what a file says it has: of an MP3 that may be an estimate."""
ENDLESS = 0x7FFFF000
"""Bytes from here on are said of a file whose length was not known when it was begun."""
_DATA = re.compile(r"(?:data|SSND|Data Size) +: (\d+) \(should be (\d+)\)")
"""libsndfile's words of a file with fewer bytes of samples than its header says."""
INSTALL = 'pip install "fednano-flwr[audio]"'


def open_sound(sound: MediaFile, rate: int) -> np.ndarray:
    """(n,) float32 samples at `rate` a second; several channels are averaged.

    Raises:
        FileNotFoundError, DataError: as `read_sound`.
    """
    import soxr

    samples, own = read_sound(sound)
    return samples if own == rate else soxr.resample(samples, own, rate)


def read_sound(sound: MediaFile) -> tuple[np.ndarray, int]:
    """(n,) float32 samples, and how many of them make a second.

    Raises:
        FileNotFoundError: the file is gone.
        DataError: it is no sound, is damaged or cut off, or has no samples or infinite ones.
    """
    import soundfile

    source: Any = sound.path or io.BytesIO(sound.read())
    if sound.path is not None and not sound.path.exists():
        raise FileNotFoundError(2, "no such file", str(sound.path))
    try:
        with soundfile.SoundFile(source) as file:
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
            lengths = [(file.frames, len(samples)), *_DATA.findall(file.extra_info)]
        if any(int(there) < WHOLE * int(said) < WHOLE * ENDLESS for said, there in lengths):
            raise ValueError("the file is cut off")
        if not len(samples) or not np.isfinite(samples).all():
            raise ValueError("it has no samples, or some that are not finite")
    except (ValueError, TypeError, RuntimeError, OSError) as error:  # libsndfile's, and soundfile's
        raise DataError(
            f"{sound} cannot be decoded: {error}. Get the file anew, or leave its question out "
            "(fednano_flwr.data.media.first_defect finds such questions)."
        ) from error
    return samples.mean(axis=1), rate


def noise(count: int = 8_000, seed: int = 0) -> Sound:
    """A sound of so many samples, 16,000 a second."""
    import soundfile

    file, samples = io.BytesIO(), np.random.default_rng(seed).uniform(-0.5, 0.5, count)
    soundfile.write(file, samples, 16_000, format="WAV")
    return Sound(data=file.getvalue())


def missing_libraries() -> str:
    """What has to be installed for sounds to be read; "" where it is."""
    try:
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except (ImportError, OSError) as error:  # soundfile looks for libsndfile
        return f"sounds are read by soundfile and soxr ({error}): {INSTALL}"
    return ""
