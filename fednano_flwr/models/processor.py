"""A model's own processor: tokenizer, preprocessing of pictures and sounds, chat template."""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fednano_flwr.config import ConfigError
from fednano_flwr.models.families.base import Family

READERS = ("image_processor", "feature_extractor")
"""Parts of a processor that read pictures, and sounds."""
FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
PIXTRAL, VIDEOS = "PixtralProcessor", "video_processor"


def has_processor(folder: Path) -> bool:
    """Whether a model's folder has a file of a processor: a server's may hold the LLM alone."""
    return any((folder / file).is_file() for file in FILES)


def load_processor(folder: Path, family: Family | None = None) -> Any:
    """The processor saved in a model's folder.

    Of a family that also takes videos it is loaded without that part: nothing here uses it, and
    it would ask for torchvision.

    Raises:
        ConfigError: the folder has no processor that can be loaded; the message says why.
    """
    import transformers
    from transformers import AutoProcessor, ProcessorMixin
    from transformers.utils import is_torchvision_available

    try:
        if family is not None and (own := family.own_processor(folder)) is not None:
            return own
        if (name := _class_name(folder)) == PIXTRAL and not is_torchvision_available():
            kind = _pixtral()
            return kind.from_pretrained(folder, trust_remote_code=False)
        whole: Any = getattr(transformers, name, None)
        known = isinstance(whole, type) and issubclass(whole, ProcessorMixin)
        if known and VIDEOS in whole.get_attributes():
            kind = _without_videos(whole)
            return kind.from_pretrained(folder, trust_remote_code=False)
        found = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a file's values reach deep into transformers and tokenizers
        says = " ".join(str(error).split())
        raise ConfigError(f"the processor in {folder} cannot be loaded: {says}") from error
    if not (hasattr(found, "tokenizer") and any(hasattr(found, part) for part in READERS)):
        raise ConfigError(
            f"the processor in {folder} is only a {type(found).__name__}: one of "
            f"{', '.join(FILES)} is missing"
        )
    return found


@cache
def _pixtral() -> Any:
    """`PixtralProcessor`, whose module imports torchvision for a function that its PIL twin has."""
    package = "transformers.models.pixtral"
    module = f"{package}.image_processing_pixtral"
    sys.modules[module] = import_module(f"{package}.image_processing_pil_pixtral")
    try:
        return getattr(import_module(f"{package}.processing_pixtral"), PIXTRAL)
    finally:
        del sys.modules[module]


def _without_videos(whole: Any) -> Any:
    """A processor's class less its video part, whichever place among the parts that has."""
    from transformers import ProcessorMixin

    parts = whole.get_attributes()
    place = parts.index(VIDEOS)

    class Pictures(ProcessorMixin):
        get_attributes = classmethod(lambda cls: [part for part in parts if part != VIDEOS])
        video_processor = VideosNotTaken

        def __init__(self, *found: Any, **more: Any) -> None:  # called by the processor's own
            more.pop(VIDEOS, None)
            super().__init__(*found[:place], *found[place + 1 :], **more)

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: Any, **kwargs: Any) -> Any:
            found = [*args[:place], None, *args[place:]]
            return super().from_args_and_dict(found, processor_dict, **kwargs)

    return type(whole.__name__, (whole, Pictures), {})


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
