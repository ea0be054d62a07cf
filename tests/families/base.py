"""Parts of tiny random checkpoints: tokenizers, templates, configs, processors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import transformers as tf
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from fednano_flwr.models import processor
from fednano_flwr.models.families import FAMILIES, Family
from tests.tiny import WORDS

WORDS_KNOWN = 96
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}
PIXELS = {"height": 24, "width": 24}
Kinds = Callable[[Tensor, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class TinyFamily:
    """What tests know of a family.

    Attributes:
        model_type: as config.json has it.
        make: a config and a processor.
        kinds: what its processor says of the kinds of tokens, from two (B, T) bool: where pictures'
            features go, and where an answer is.
        first_position: of the whole model's positions; None where it counts them from the mask.
        needs_picture: whether the whole model cannot read a prompt without one.
        tolerance: relative, of a float64 model that computes partly in float32.
        adjust: changes random weights that would hide what is particular.
        variant: what tells a second kind of one `model_type` from the first.
    """

    model_type: str
    make: Callable[[], tuple[Any, Any]]
    kinds: Kinds = lambda pictures, answers: {}
    first_position: int | None = 0
    needs_picture: bool = False
    tolerance: float = 1e-6
    adjust: Callable[[Any], None] = lambda model: None
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.model_type}-{self.variant}" if self.variant else self.model_type

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]


def tokenizer(special: dict[str, str], extra: tuple[str, ...] = ()) -> Any:
    """Words, and a family's own tokens by the names its processor looks for."""
    own = [*special.values(), *extra]
    words = ["<pad>", "<unk>", "</s>", "<s>", *own, "Answer:", "Context:", *WORDS]
    words += [f"w{i}" for i in range(WORDS_KNOWN - len(words))]
    text = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    text.normalizer = normalizers.Replace(Regex(r"[?.,]"), " ")
    text.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=text,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        bos_token="<s>",
        extra_special_tokens=special,
    )
    fast.add_special_tokens({"additional_special_tokens": list(extra)})
    return fast


def template(image: str, audio: str = "") -> str:
    """A chat template that writes `image` where a picture stands, `audio` where a sound does."""
    return (
        "{% for m in messages %}{% if m['role'] == 'assistant' %} w1 {% endif %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + image
        + " {% elif c['type'] == 'audio' %}"
        + audio
        + " {% else %}{{ c['text'] }}{% endif %}{% endfor %}"
        "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %} w1"
    )


def thinking(image: str) -> str:
    """As `template`, but an answer begins with thoughts, unless it is told to have none."""
    return template(image) + " w2{% if enable_thinking is false %} w3{% endif %}"


def pictures_only(name: str, **parts: Any) -> Any:
    """A processor without its video part, which needs torchvision."""
    return processor._without_videos(getattr(tf, name))(video_processor=None, **parts)


def clip(**changes: Any) -> Any:
    return tf.CLIPVisionConfig(**VISION, projection_dim=32, **changes)


def siglip(**changes: Any) -> Any:
    return tf.SiglipVisionConfig(**{**VISION, **changes}, vision_use_head=False)


def llama(kind: Any = tf.LlamaConfig, **changes: Any) -> Any:
    return kind(vocab_size=WORDS_KNOWN, **{**TEXT, **changes})


def image_processor(module: str, name: str, **settings: Any) -> Any:
    source = f"transformers.models.{module}.image_processing_pil_{module}"
    return getattr(__import__(source, fromlist=[name]), name)(**settings)


def pixel_tiles(**settings: Any) -> Any:
    """Pictures cut into tiles of 32 x 32, at most three and the whole."""
    return image_processor(
        "got_ocr2",
        "GotOcr2ImageProcessorPil",
        size={"height": 32, "width": 32},
        crop_to_patches=True,
        max_patches=3,
        **settings,
    )


def timm(architecture: str, **changes: Any) -> Any:
    """A small encoder of the package timm; without that, the test is skipped."""
    pytest.importorskip("timm")
    return tf.TimmWrapperConfig(architecture=architecture, **changes)


def qformer(config: Any) -> Any:
    return config(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        encoder_hidden_size=32,
        vocab_size=WORDS_KNOWN,
        initializer_range=0.2,
    )
