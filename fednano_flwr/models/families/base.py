"""What the project has to know of a model family: the fields and methods of one `Family`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from accelerate import init_empty_weights
from torch import Tensor
from transformers import PretrainedConfig

from fednano_flwr.config import ConfigError

ENCODERS = {"image": "vision_config", "audio": "audio_config"}
"""Sections of a config, by modality."""
WHOLE = {"truncation": False, "padding": False}
"""Said to a tokenizer each time: one may have been saved with a length to cut or to pad to."""


@dataclass(frozen=True)
class Connector:
    """Which tensors make a connector's output what it is, by their canonical names.

    Attributes:
        linear: the last linear layer; its weight (d, k) and, where there is one, its bias.
        rows: tensors (n, d) or (d,) that are features themselves, or give them from the right.
        cannot: why an adapter cannot be merged into this family's connector; "" where it can.
    """

    linear: str = ""
    rows: tuple[str, ...] = ()
    cannot: str = ""

    @property
    def module(self) -> str:
        """Canonical name of the connector that the linear layer is of; "" where there is none.

        Where encoder and connector are one module `visual`, it is a part of that.
        """
        first, _, rest = self.linear.partition(".")
        return f"{first}.{rest.partition('.')[0]}" if first == "visual" else first

    def parts(self) -> tuple[str, ...]:
        """Tensors that have to be there; a bias need not be."""
        return (*([f"{self.linear}.weight"] if self.linear else []), *self.rows)


@dataclass(frozen=True)
class Family:
    """A transformers architecture that is cut between its embeddings and its language model.

    Its `get_image_features` (`get_audio_features` of sounds) gives the connector's output, its
    `forward` accepts input embeddings, and between the two nothing is computed but the embeddings.
    A family that differs from the defaults sets a field, or overrides a method in a subclass.

    Attributes:
        model_type: as config.json has it.
        architecture: class in transformers.
        language: the language model in its module tree; head and vision parts lie outside.
        host: what the server calls with input embeddings: "" is the whole model without its vision
            parts, with all that its forward does besides (masks, caps on logits).
        position_axes: 3 where positions are those of a token in time, height and width, which
            `position_ids` gives; 0 where they are 0 to T-1.
        first_position: where its positions begin, if they have one axis.
        token_types: whether the language model needs `token_type_ids`.
        causal: whether no token sees a later one, although there are token types.
        other_processors: classes in transformers that fit beside its own.
        picture_keys: settings by which its processor computes how many tokens a picture takes.
        prompt: a prompt without a chat template, with {} for pictures and text; "" where the
            model's own chat template writes it.
        thinks: whether its chat template lets answers begin with thoughts, unless told not to.
        processor_text: text with {} for a question that its processor takes beside one picture, in
            the code of a model card; for families with a `prompt`.
        connector: where exported adapters are merged into the weights.
        modalities: "image", "audio" or both; of a second one, a config may have no encoder.
        second_connector: as `connector`, of the second modality.
        spaced: whether there is a space between a prompt that does not end with one and an answer.
        videos: whether features of videos pass the same connector.
        vision_keys: what `tensors` gives for `features` besides the processor's outputs.
        outputs: of `get_image_features`, what the image adapter acts on.
        stacks: whether its processor's outputs for several pictures are always of one shape.
    """

    model_type: str
    architecture: str
    language: str = "model.language_model"
    host: str = ""
    position_axes: int = 0
    first_position: int = 0
    token_types: bool = False
    causal: bool = False
    other_processors: tuple[str, ...] = ()
    picture_keys: tuple[str, ...] = ()
    prompt: str = ""
    thinks: bool = False
    processor_text: str = ""
    connector: Connector = Connector(cannot="its connector is not known")
    second_connector: Connector = Connector(cannot="its second connector is not known")
    modalities: tuple[str, ...] = ("image",)
    spaced: bool = True
    videos: bool = False
    vision_keys: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("pooler_output",)
    stacks: bool = True

    @property
    def model_class(self) -> Any:
        return getattr(transformers, self.architecture)

    @property
    def processors(self) -> tuple[str, ...]:
        """Names of the processor classes that fit; some families have none of their own."""
        own = self.architecture.removesuffix("ForConditionalGeneration") + "Processor"
        return (*([own] if hasattr(transformers, own) else []), *self.other_processors)

    def build(self, config: PretrainedConfig) -> Any:
        """The whole model with its parameters on the meta device, where they take no memory.

        Buffers that no checkpoint holds (rotary frequencies, embedding scales) are real.

        Raises:
            ConfigError: the config describes no such model.
        """
        try:
            with init_empty_weights(include_buffers=False):
                return self.model_class(config)
        except Exception as error:  # a config's values reach deep into transformers
            raise ConfigError(
                f"{config.name_or_path} describes no {self.architecture} that can be built: "
                f"{' '.join(str(error).split())}"
            ) from error

    def picture_tokens(self, config: PretrainedConfig) -> int | None:
        """Tokens that one picture becomes; None where that depends on the picture."""
        return None

    def deep_layers(self, config: PretrainedConfig) -> int:
        """Layers of the language model that add features of pictures of their own ("deep-stack").

        `features` has them, and `token_type_ids` are 1 at pictures.
        """
        return 0

    def layer_vocabulary(self, config: PretrainedConfig) -> int:
        """Token ids that the language model's layers look up in tables of their own; 0: none."""
        return 0

    def refusal(self, config: PretrainedConfig) -> str:
        """Why a model with this config is not cut; "" where it is."""
        return ""

    def feature_token(self, processor: Any) -> str:
        """The token whose place a picture's features take; "" where the processor does not say.

        In some families a prompt has another where a picture stands.
        """
        own = getattr(processor.tokenizer, "image_token", None)
        return _text(own) or image_text(processor)

    def feature_ids(self, config: PretrainedConfig) -> tuple[int, ...]:
        """Ids of all tokens whose place features take; the first one is `feature_token`'s."""
        return (config.image_token_id,)

    def check_processor(self, processor: Any) -> str:
        """What the processor lacks to write prompts; "" where it lacks nothing."""
        return ""

    def modalities_of(self, config: PretrainedConfig) -> tuple[str, ...]:
        """The modalities that a model with this config has an encoder for."""
        first, *more = self.modalities
        return (first, *(m for m in more if getattr(config, ENCODERS[m], None) is not None))

    def own_processor(self, folder: Path) -> Any:
        """The processor in a model's folder, where transformers' own loading gives no such."""
        return None

    def longest_sound(self, processor: Any) -> float:
        """Seconds of the longest sound that is heard to its end."""
        return math.inf

    def tensors(self, processor: Any, prompt: str, media: list[Any]) -> dict[str, Tensor]:
        """`input_ids` (1, T) and what the encoders take, of one prompt.

        Args:
            media: PIL images and sounds, which are float32 arrays (n,) at the processor's sampling
                rate; each kind in the order of its placeholders in `prompt`.
        """
        sounds = [one for one in media if isinstance(one, np.ndarray)]
        pictures = [one for one in media if not isinstance(one, np.ndarray)]
        more: dict[str, Any] = {"images": [pictures]} if pictures else {}
        if sounds:
            rate = processor.feature_extractor.sampling_rate
            more |= {"audio": sounds, "audio_kwargs": {"sampling_rate": rate}}
        options: dict[str, Any] = dict(WHOLE)
        first = processor.tokenizer.bos_token
        if first and prompt.startswith(first):  # the template wrote it; once is enough
            options["add_special_tokens"] = False
        tensors = "pt" if self.stacks else None
        return dict(processor(text=[prompt], return_tensors=tensors, text_kwargs=options, **more))

    def features(self, model: Any, vision: Mapping[str, Tensor]) -> Tensor | Sequence[Tensor]:
        """The connector's output (…, d), or one a picture, in the order of their places.

        Where there are `deep_layers`, a row has what these take as well: (…, d + L·d).

        Args:
            model: the client's half.
            vision: what `tensors` made of one sample's pictures.
        """
        return encoder_of(model).get_image_features(**vision).pooler_output

    def sound_features(self, model: Any, sounds: Mapping[str, Tensor]) -> Any:
        """The same of sounds: the connector's output (…, d), or one a sound."""
        return model.get_audio_features(**sounds).pooler_output

    def encoder_ids(self, processor: Any, prompt: str) -> list[int]:
        """Tokens that the vision encoder reads beside the pictures; in most families none."""
        return []

    def text_ids(self, ids: Tensor, config: PretrainedConfig) -> Tensor:
        """Tokens (n,) of text as the model reads them; some read a mark of a picture as padding."""
        return ids

    def position_ids(
        self, model: Any, ids: Tensor, pictures: Tensor, vision: Mapping[str, Tensor]
    ) -> Tensor | None:
        """(position_axes, T) positions of one sample's tokens; None where they are 0 to T-1.

        Args:
            model: the client's half.
            ids: (T,) tokens.
            pictures: (T,) bool, where pictures' features go.
            vision: what the processor made of the sample's pictures.
        """
        return None

    def logits(self, host: Any, **inputs: Any) -> Tensor:
        """Logits of what the server calls, of input embeddings and what goes with them.

        Args:
            host: the module that `host` names.
            inputs: `inputs_embeds` (B, T, d), mask and cache; and where the family has them
                `position_ids` (axes, B, T), `token_type_ids` (B, T), which answers' tokens lack,
                `token_ids` (B, T) for `layer_vocabulary`, any at pictures, and `deep` (n, L·d) for
                `deep_layers`, one sample after another.
        """
        return host(**inputs).logits

    def token_type_ids(self, pictures: Tensor, prompt: int) -> Tensor | None:
        """(T,) 0 or 1, the types of one sample's tokens; None where `token_types` is false.

        Args:
            pictures: (T,) bool, where features go, of sounds as well.
            prompt: how many tokens are the prompt; the others are an answer.
        """
        return None


def place_text(processor: Any, modality: str) -> str:
    """What a prompt has where a picture or sound stands; "" where the processor does not say."""
    return _text(getattr(processor, f"{modality}_token", None))


image_text = partial(place_text, modality="image")


def _text(token: Any) -> str:
    return str(getattr(token, "content", token) or "")  # an AddedToken in older processors


def encoder_of(model: Any) -> Any:
    """What has `get_image_features`: the model, or in some families only the one without a head."""
    return model if hasattr(model, "get_image_features") else model.base_model
