"""A family that is not listed: cut where transformers' conventions for such models put the cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from fednano_flwr.config import ConfigError
from fednano_flwr.models.families.base import Family

HEAD = "lm_head"
_found: dict[str, Family] = {}


@dataclass(frozen=True)
class Auto(Family):
    """What is assumed of it is what defaults of `Family` say; `fednano check` shows if it holds."""

    def refusal(self, config: PretrainedConfig) -> str:
        text = config.get_text_config()
        if config.is_encoder_decoder or text.is_encoder_decoder:
            return f"its language model ({text.model_type}) is an encoder-decoder"
        return ""


def family_of(config: PretrainedConfig) -> Family:
    """What transformers' own accessors tell of the model that a config describes.

    Raises:
        ConfigError: says which convention the model does not follow.
    """
    kind = config.model_type
    if kind not in _found:
        try:
            _found[kind] = _look_at(config)
        except ConfigError as error:
            raise ConfigError(f"its family {kind} cannot be cut: {error}") from None
    return _found[kind]


def _look_at(config: PretrainedConfig) -> Family:
    kind = config.model_type
    architecture = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    if architecture is None:
        raise ConfigError("transformers has no model for it that reads pictures and writes text")
    host, language = _language(Auto(kind, architecture).build(config))
    processor = PROCESSOR_MAPPING_NAMES.get(kind)
    return Auto(
        kind,
        architecture,
        language=language,
        host=host,
        other_processors=(processor,) if processor else (),
        thinks=True,  # a template that knows no thoughts does not look at what it is told of them
    )


def _language(whole: Any) -> tuple[str, str]:
    """Paths of what the host calls, and of the language model in it.

    Raises:
        ConfigError: they are not where such models have them.
    """
    if not any(hasattr(one, "get_image_features") for one in (whole, whole.base_model)):
        raise ConfigError(f"{type(whole).__name__} has no get_image_features")
    encoder, paths = whole.get_encoder("image"), _paths(whole)
    if encoder is whole:
        raise ConfigError("its vision encoder is not found by get_encoder")
    head = paths.get(whole.get_output_embeddings(), "none")
    host, _, leaf = head.rpartition(".")
    if leaf != HEAD:
        raise ConfigError(f"its head is {head}, and not called {HEAD}")
    language = host or paths.get(whole.get_decoder(), "")
    if not language or encoder in _paths(whole.get_submodule(language)):
        raise ConfigError("its language model is not found by get_decoder apart from its encoder")
    above = language.rpartition(".")[0]
    beside = {name for name, _ in whole.named_children()} - {above, HEAD}
    if above and beside:
        raise ConfigError(f"it has parts outside of {above}: {', '.join(sorted(beside))}")
    return host, language


def _paths(module: nn.Module) -> dict[Any, str]:
    return {part: name for name, part in module.named_modules()}
