"""Random models of any size: a LLaVA on disk with the demo's processor, or a half in memory."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
)

from fednano_flwr.base.resources import resolve
from fednano_flwr.models.checkpoint import ModelCheckpoint, Target
from fednano_flwr.models.families import canonical
from fednano_flwr.models.llm_half import LLMHalf
from fednano_flwr.models.size import count

DEMO = "package:fednano_demo/model"  # whose tokenizer and prompt are used
SPREAD = 0.02  # standard deviation of random weights


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaVA; the vision encoder is the demo's where `vision` is None.

    Attributes:
        width, layers, heads, inner: of the language model; `inner` is its MLP's width.
        vocabulary: rows of the token table; 0 is the demo's number of words.
        vision: of the encoder, as CLIPVisionConfig takes it.
        encoder_layer: whose output the connector takes.
    """

    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int = 0
    vision: dict[str, Any] | None = None
    encoder_layer: int = -1

    def text(self, words: int, **more: Any) -> LlamaConfig:
        """The language model's config, for a tokenizer of `words` words."""
        return LlamaConfig(
            vocab_size=self.vocabulary or words,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            **more,
        )


CLIP_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
SHAPES = {
    "tiny": Shape(width=64, layers=2, heads=2, inner=128),
    "25m": Shape(width=512, layers=8, heads=8, inner=1376),
    "7b": Shape(4096, 32, 32, 11008, 32064, CLIP_LARGE, encoder_layer=-2),
}


def write_llava(
    folder: Path, shape: Shape, dtype: str = "float32", device: str = "cpu", **text: Any
) -> int:
    """A random LLaVA in the hub's format; returns how many parameters its LLM has, head included.

    Args:
        device: where the weights are drawn; a GPU is faster for large ones.
        text: further settings of the language model.
    """
    transformers.utils.logging.disable_progress_bar()
    demo = resolve("model.name", DEMO)
    processor: Any = AutoProcessor.from_pretrained(demo)
    words: Any = LlavaConfig.from_pretrained(demo)
    vision = words.vision_config
    if shape.vision:
        vision = CLIPVisionConfig(**shape.vision)
        side, patch = shape.vision["image_size"], shape.vision["patch_size"]
        pictures = processor.image_processor
        pictures.size = {"shortest_edge": side}
        pictures.crop_size = {"height": side, "width": side}
        processor.patch_size = patch
        processor.tokenizer.model_max_length = 2048
    config = LlavaConfig(
        vision_config=vision,
        text_config=shape.text(
            words.text_config.vocab_size,
            pad_token_id=words.text_config.pad_token_id,
            bos_token_id=words.text_config.bos_token_id,
            eos_token_id=words.text_config.eos_token_id,
            tie_word_embeddings=False,
            **text,
        ),
        image_token_index=words.image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=shape.encoder_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    parts: tuple[Any, ...] = (model.model.language_model, model.lm_head)
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options for `put_model`."""
    parser.add_argument("--shape", choices=SHAPES, default="25m", help="of a random LLaVA")
    parser.add_argument("--model", help="a LLaVA's folder, as in model.name; else a random one")


def put_model(
    options: argparse.Namespace, folder: Path, dtype: str = "float32", device: str = "cpu"
) -> int:
    """Let `folder` be the LLaVA that is asked for; returns how many parameters its LLM has."""
    if not options.model:
        return write_llava(folder, SHAPES[options.shape], dtype, device)
    folder.symlink_to(resolve("--model", options.model).resolve())
    return count(ModelCheckpoint(str(folder)).config).server


class RandomCheckpoint(ModelCheckpoint):
    """A checkpoint without files: whatever is read of it is drawn at once, where it is wanted."""

    fingerprint = ""

    def __init__(self, config: PretrainedConfig) -> None:
        self.name, self.hub_id, self.revision = "random weights", "", ""
        self.config = config

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        whole = self.tree
        return {canonical(name): value.shape for name, value in whole.named_parameters()}

    @cached_property
    def files(self) -> dict[str, tuple[str, str]]:
        return {name: ("", name) for name in self._shapes}

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Nothing is stored that could differ."""

    def read(
        self,
        names: Iterable[str],
        device: Target = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            shape, place = self._shapes[name], device(name) if callable(device) else device
            if len(shape) == 1:  # a norm's
                yield name, torch.ones(shape, device=place, dtype=dtype)
            else:
                yield name, SPREAD * torch.randn(shape, device=place, dtype=dtype)


def random_half(
    shape: Shape, device: str = "cpu", dtype: str = "float32", **loading: Any
) -> LLMHalf:
    """The server's half of a LLaVA of this shape, which has a vocabulary, drawn on the device.

    Args:
        loading: as `LLMHalf` takes it; the weights are the same before they are quantized.
    """
    torch.manual_seed(0)
    text = shape.text(shape.vocabulary, tie_word_embeddings=False)
    checkpoint = RandomCheckpoint(LlavaConfig(text_config=text))
    return LLMHalf(checkpoint, torch.device(device), getattr(torch, dtype), **loading)
