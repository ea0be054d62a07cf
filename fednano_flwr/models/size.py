"""How large the parts of a model are and what a client needs of it, counted from its config alone.

parts = count(read_size_config("llava-1.5-7b").config)
sizes = Sizes(parts, Setting(rank=64, rows=5_481, dtype_bytes=2, tokens=704, batch_size=8))
sizes.client_bytes / sizes.model_bytes
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from torch import nn
from transformers import PretrainedConfig

from fednano_flwr.config import ConfigError
from fednano_flwr.models import configs, skeleton
from fednano_flwr.models.families import of
from fednano_flwr.models.lora import lora_targets
from fednano_flwr.models.source import locate, model_sites, read_config

FLOAT32, INT64 = 4, 8  # bytes
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
INSIDE_ENCODER = "merger"
"""In transformers' names of connectors that are parts of the vision encoder's module."""


class SizeConfig(NamedTuple):
    """A model's config, where it came from in words, and its folder where that is here."""

    config: PretrainedConfig
    origin: str
    folder: Path | None = None


@dataclass(frozen=True)
class Parts:
    """Parameters of each part of a model; what two parts share is counted with the first.

    Attributes:
        encoder: of pictures, of sounds, or both.
        encoder_used: the same without the layers whose output is never used.
        layers_unused: how many layers those are.
        connector: all else that a client holds but its token embeddings.
        vocabulary: rows of the token embeddings.
        hidden_size: d, numbers in a row.
        language_model: without token embeddings and head.
        head: 0 where it is the token embeddings (`tied`).
        tied: whether head and token embeddings are one matrix.
        picture_tokens: tokens that a picture becomes; None where that depends on the picture.
        sites: where its adapters may be.
        deep_layers: L, layers of the language model that take features of pictures of their own.
        connector_reads: numbers that the connector reads for a feature; 0 where it is not known.
        attention: Σ (inputs + outputs) of the attention's linear layers, in how many layers.
    """

    encoder: int
    encoder_used: int
    layers_unused: int
    connector: int
    vocabulary: int
    hidden_size: int
    language_model: int
    head: int
    tied: bool
    picture_tokens: int | None
    sites: tuple[str, ...]
    deep_layers: int = 0
    connector_reads: int = 0
    attention: tuple[int, int] = (0, 0)

    @property
    def encoder_name(self) -> str:
        return "vision encoder" if self.sites == ("image", "text") else "encoder"

    @property
    def token_embeddings(self) -> int:
        return self.vocabulary * self.hidden_size

    @property
    def model(self) -> int:
        """All parameters that pictures and text go through, each once."""
        return self.encoder + self.connector + self.server

    @property
    def server(self) -> int:
        """What the LLM host loads; the token embeddings are on both sides."""
        return self.token_embeddings + self.language_model + self.head


@dataclass(frozen=True)
class Setting:
    """What sizes depend on beside the model.

    Attributes:
        rank: r of the NanoAdapters.
        rows: token embeddings that a client keeps.
        dtype_bytes: of a number of the frozen parts, and of one on the wire.
        tokens: T, of a sample.
        picture_tokens: how many of them are a picture's.
        llm_rank: of a LoRA inside the language model.
        batch_size: samples in a step.
        file_bytes: config, processor and tokenizer; 0 where they are not known.
    """

    rank: int
    rows: int
    dtype_bytes: int
    tokens: int
    batch_size: int
    file_bytes: int = 0
    picture_tokens: int = 0
    llm_rank: int = 16


@dataclass(frozen=True)
class Item:
    """One thing that is stored: its parameters (0 where it has none) and bytes."""

    name: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class StepTraffic:
    """Bytes of numbers that a sample sends and gets in one training step, and once in a run."""

    up: int
    down: int
    once: int = 0


@dataclass(frozen=True)
class Sizes:
    """Bytes of everything, for one model and setting."""

    parts: Parts
    setting: Setting

    @property
    def model_bytes(self) -> int:
        return self.parts.model * self.setting.dtype_bytes

    @property
    def server_bytes(self) -> int:
        return self.parts.server * self.setting.dtype_bytes

    @property
    def adapter_parameters(self) -> int:
        """A (r, d) and B (d, r) at each site."""
        return len(self.parts.sites) * 2 * self.setting.rank * self.parts.hidden_size

    @property
    def adapter_bytes(self) -> int:
        """In float32, whatever the frozen parts have."""
        return self.adapter_parameters * FLOAT32

    def client(self, with_options: bool = True) -> list[Item]:
        """What a client stores, with or without a bundle's options.

        The options leave out the encoder's unused layers and keep `setting.rows` token embeddings.
        """
        parts, setting = self.parts, self.setting
        rows = setting.rows if with_options else parts.vocabulary
        frozen = {
            parts.encoder_name: parts.encoder_used if with_options else parts.encoder,
            "connector": parts.connector,
            "token embeddings": rows * parts.hidden_size,
        }
        return [
            *(Item(name, count, count * setting.dtype_bytes) for name, count in frozen.items()),
            Item("ids of the kept rows", 0, rows * INT64 if rows < parts.vocabulary else 0),
            Item("NanoAdapters", self.adapter_parameters, self.adapter_bytes),
            Item("config, processor, tokenizer", 0, setting.file_bytes),
        ]

    @property
    def client_bytes(self) -> int:
        """All that a client stores with a bundle's options."""
        return _total(self.client())

    @property
    def client_bytes_without_options(self) -> int:
        return _total(self.client(with_options=False))

    def training_memory(self) -> list[Item]:
        """What training the adapters takes beside what is stored; activations are not in it."""
        return [
            Item("gradients", self.adapter_parameters, self.adapter_bytes),
            Item("AdamW's two moments", 2 * self.adapter_parameters, 2 * self.adapter_bytes),
        ]

    def session(self) -> list[Item]:
        """What a client's training inside the language model takes at the host, in float32.

        AdamW, no proximal term and no Fisher diagonal.
        """
        widths, layers = self.parts.attention
        numbers = widths * self.setting.llm_rank
        names = {f"LoRA in {layers} layers": 1, "gradient": 1, "AdamW's two moments": 2}
        return [Item(name, n * numbers, n * numbers * FLOAT32) for name, n in names.items()]

    def embeddings_step(self) -> StepTraffic:
        """The plain exchange: T·d numbers up, as many down; and up what deeper layers take."""
        row = self.parts.hidden_size * self.setting.dtype_bytes
        each = self.setting.tokens * row
        return StepTraffic(each + self.parts.deep_layers * self.setting.picture_tokens * row, each)

    def lowrank_step(self) -> StepTraffic:
        """The low-rank exchange: z up and dz down, T·r each, and a share of a step's B and dB.

        Image features go up once, for the host to keep; of text the host has the embeddings.
        """
        setting, d = self.setting, self.parts.hidden_size
        b = len(self.parts.sites) * d * setting.rank / setting.batch_size
        each = round((setting.tokens * setting.rank + b) * setting.dtype_bytes)
        once = (self.parts.picture_tokens or 0) * (1 + self.parts.deep_layers) * d
        return StepTraffic(each, each, once * setting.dtype_bytes)

    def alternating_step(self) -> StepTraffic:
        """The same where rounds train one factor in turns and the connector is at the host.

        Up go z or B, and down the gradient of one of them. Once a picture, what the connector
        reads, where that is smaller than its features.
        """
        both, parts = self.lowrank_step(), self.parts
        read = (parts.picture_tokens or 0) * parts.connector_reads * self.setting.dtype_bytes
        smaller = 0 < read < both.once and not parts.deep_layers
        return StepTraffic(both.up // 2, both.down // 2, read if smaller else both.once)

    def most_rows(self, share: float) -> int | None:
        """The most token embeddings with which a bundle stays within `share` of the model's bytes.

        None where it does not with any.
        """
        sizes = {rows: self._with_rows(rows) for rows in (0, self.parts.vocabulary)}
        room = int(share * self.model_bytes)
        if sizes[self.parts.vocabulary] <= room:
            return self.parts.vocabulary
        if sizes[0] > room:
            return None
        return (room - sizes[0]) // (self.parts.hidden_size * self.setting.dtype_bytes + INT64)

    def _with_rows(self, rows: int) -> int:
        return replace(self, setting=replace(self.setting, rows=rows)).client_bytes


def read_size_config(name: str, revision: str = "", family: str = "") -> SizeConfig:
    """The config called `name`; from the hub nothing else is downloaded.

    Args:
        name: a shipped config's short name, a config file, or what `model.name` may be.
        revision: branch, tag or commit of a model on the hub.
        family: `model.family`.

    Raises:
        ConfigError: there is no such model, or its family cannot be cut.
    """
    file = Path(name).expanduser()
    if revision and (name in configs.shipped() or file.is_file()):
        raise ConfigError(f"--revision {revision}: {name} is a file, which has no revisions")
    if name in configs.shipped():
        file = configs.FOLDER / f"{name}.json"
        return SizeConfig(read_config(name, file, family), "shipped config")
    if file.is_file():
        return SizeConfig(read_config(name, file, family), "config file")
    if file.suffix == ".json":
        raise ConfigError(f"model {name!r}: there is no such file")
    try:
        folder, commit = locate(name, revision, ["config.json"])
    except ConfigError as error:
        raise ConfigError(
            f"{error}. Configs that are always there: {', '.join(configs.shipped())}"
        ) from error
    config = read_config(name, folder, family)
    return SizeConfig(config, "hub") if commit else SizeConfig(config, "folder", folder)


def count(config: PretrainedConfig) -> Parts:
    """Count the parameters of the module tree that `config` builds; nothing takes memory."""
    family = of(config)
    whole = family.build(config)
    whole.tie_weights()
    table = whole.get_input_embeddings().weight
    head = whole.get_output_embeddings()
    modalities = family.modalities_of(config)
    encoders = [whole.get_encoder(modality) for modality in modalities]
    inside = [p for e in encoders for name, p in e.named_children() if INSIDE_ENCODER in name]
    language = whole.get_submodule(family.language)
    in_head = _numel([head]) - (table.numel() if head.weight is table else 0)
    in_language = _numel([language, head]) - table.numel() - in_head
    in_encoder = _numel(encoders) - _numel(inside)
    trimmed = copy.deepcopy(config)
    unused = skeleton.trim_encoder(trimmed)
    used = in_encoder
    if unused:
        shorter = family.build(trimmed)
        used = _numel([shorter.get_encoder(modality) for modality in modalities])
    return Parts(
        encoder=in_encoder,
        encoder_used=used,
        layers_unused=unused,
        connector=_numel([whole]) - _numel([language, head, *encoders]) + _numel(inside),
        vocabulary=table.shape[0],
        hidden_size=table.shape[1],
        language_model=in_language,
        head=in_head,
        tied=head.weight is table,
        picture_tokens=family.picture_tokens(config),
        sites=model_sites(config),
        deep_layers=family.deep_layers(config),
        connector_reads=_connector_reads(whole, modalities[0]),
        attention=_attention(language),
    )


def _attention(language: nn.Module) -> tuple[int, int]:
    """As `Parts.attention`; (0, 0) of a model whose attention has no linear layers."""
    try:
        found = lora_targets(language, "").values()
    except ConfigError:
        return 0, 0
    return sum(layer.in_features + layer.out_features for layer in found), len(found)


def _connector_reads(whole: nn.Module, modality: str) -> int:
    """As `Parts.connector_reads`: its first linear layer takes all that a feature is made of."""
    module = skeleton.connectors(whole).get(modality)
    layers = [] if module is None else [m for m in module.modules() if isinstance(m, nn.Linear)]
    return layers[0].in_features if layers else 0


def _numel(modules: Sequence[nn.Module]) -> int:
    """Numbers that a checkpoint has of several modules, each once."""
    stored = (tensor for module in modules for tensor in skeleton.stored(module).values())
    found = {id(tensor): tensor.numel() for tensor in stored}
    return sum(found.values())


def _total(items: Sequence[Item]) -> int:
    return sum(item.bytes for item in items)
