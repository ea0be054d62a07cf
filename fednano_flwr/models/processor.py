"""A model's own processor: tokenizer, picture preprocessing and chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fednano_flwr.config import ConfigError

FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def has_processor(folder: Path) -> bool:
    """Whether a model's folder has a file of a processor: a server's may hold the LLM alone."""
    return any((folder / file).is_file() for file in FILES)


def load_processor(folder: Path) -> Any:
    """The processor saved in a model's folder.

    Of a family that also takes videos it is loaded without that part: nothing here uses it, and
    it would ask for torchvision.

    Raises:
        ConfigError: the folder has no processor that can be loaded; the message says why.
    """
    import transformers
    from transformers import AutoProcessor, ProcessorMixin

    try:
        whole: Any = getattr(transformers, _class_name(folder), None)
        known = isinstance(whole, type) and issubclass(whole, ProcessorMixin)
        if known and "video_processor" in whole.get_attributes():
            kind = _without_videos(whole)
            return kind.from_pretrained(folder, video_processor=None, trust_remote_code=False)
        found = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a file's values reach deep into transformers and tokenizers
        says = " ".join(str(error).split())
        raise ConfigError(f"the processor in {folder} cannot be loaded: {says}") from error
    if not (hasattr(found, "tokenizer") and hasattr(found, "image_processor")):
        raise ConfigError(
            f"the processor in {folder} is only a {type(found).__name__}: one of "
            f"{', '.join(FILES)} is missing"
        )
    return found


def _without_videos(whole: Any) -> Any:
    parts = [part for part in whole.get_attributes() if part != "video_processor"]
    changes = {"get_attributes": classmethod(lambda cls: parts), "video_processor": VideosNotTaken}
    return type(whole.__name__, (whole,), changes)


class VideosNotTaken:
    """What a processor without its video part reads settings for videos from."""

    fps = num_frames = None


def _class_name(folder: Path) -> str:
    """The processor class that one of the folder's files names, or ""."""
    for file in FILES:
        path = folder / file
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            name = content.get("processor_class") if isinstance(content, dict) else None
            if name and isinstance(name, str):
                return name
    return ""
