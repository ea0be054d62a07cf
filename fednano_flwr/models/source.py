"""Where a model lies, on disk or on the hub, and whether its config is one that can be cut."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, PretrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import MergeModulelist

from fednano_flwr.base.resources import ResourceError, resolve
from fednano_flwr.config import SITES, ConfigError, Model
from fednano_flwr.models.families import (
    AUTO,
    EXPERTS,
    FAMILIES,
    LLAVA_FORMAT,
    REFUSED,
    Family,
    find,
    of,
)
from fednano_flwr.models.families.base import ENCODERS

SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
TEXT, TIMM = "text_config", "timm_wrapper"
LONGEST_REASON = 300  # some of transformers' errors list every family it knows


def check_model(name: str, revision: str = "") -> None:
    """Refuse a model that is not there or cannot be cut, before any weight is read.

    Raises:
        ConfigError: with the families that work.
    """
    read_config(name, locate(name, revision)[0])


def model_sites(config: PretrainedConfig) -> tuple[str, ...]:
    """Where a model's adapters may be, in the order of `SITES`."""
    there = ("text", *of(config).modalities_of(config))
    return tuple(site for site in SITES if site in there)


def sites_of(model: Model) -> tuple[str, ...]:
    """`model_sites` of a model by its name.

    Raises:
        ConfigError: there is no such model, or it cannot be cut.
    """
    return model_sites(read_config(model.name, locate(model.name, model.revision)[0], model.family))


def locate(
    name: str, revision: str = "", small_files: Sequence[str] = SMALL_FILES
) -> tuple[Path, str]:
    """Folder that holds config and processor, and the commit if the model is on the hub.

    Args:
        revision: branch, tag or commit on the hub; "" is the default branch.
        small_files: patterns of what is downloaded where `name` is a hub id.

    Returns:
        The folder, and the full hash of the commit; "" where the model is a folder.

    Raises:
        ConfigError: there is no such model or revision.
    """
    try:
        folder = resolve("model.name", name)
    except ResourceError as error:
        raise ConfigError(str(error)) from error
    if (folder / "config.json").exists():
        if revision:
            raise ConfigError(
                f"model.revision = {revision!r}: model {name!r} is the folder {folder}, which has "
                "no revisions; leave model.revision empty, or give the model's hub id"
            )
        return folder, ""
    if folder.exists() or name.startswith("package:"):
        raise ConfigError(f"model {name!r}: {folder} has no config.json")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ConfigError(f"model {name!r}: there is no folder {folder}")
    try:
        folder = snapshot(name, revision, small_files)
    except (OSError, HFValidationError) as error:
        at = f" at model.revision = {revision!r}" if revision else ""
        wrong = set("@:") & set(name)
        hint = "; a revision goes into model.revision, not into the name" if wrong else ""
        raise ConfigError(
            f"model {name!r}{at}: neither a folder here nor a model that the Hugging Face hub "
            f"(or its cache) could give: {str(error).splitlines()[0]}{hint}"
        ) from error
    return folder, folder.name


def snapshot(hub_id: str, revision: str, patterns: Sequence[str]) -> Path:
    """The cache's folder of a model at one commit, called by it; what it lacks is downloaded.

    Args:
        patterns: of the files that are needed.

    Raises:
        OSError, HFValidationError: the hub is not reached and the cache lacks it, or there is no
            such model or revision.
    """
    load = partial(
        snapshot_download, hub_id, revision=revision or None, allow_patterns=list(patterns)
    )
    try:
        return Path(load(local_files_only=constants.HF_HUB_OFFLINE))
    except httpx.TransportError:  # of a commit, the hub's client asks even for what it has
        return Path(load(local_files_only=True))


def read_config(name: str, place: Path, family: str = "") -> PretrainedConfig:
    """The config of a model that can be cut.

    Args:
        place: the model's folder, or its config file.
        family: `model.family`.

    Raises:
        ConfigError: it cannot; the message says why, and which families can.
    """
    file = place / "config.json" if place.is_dir() else place

    def refused(why: str) -> ConfigError:
        return ConfigError(f"model {name!r}: {why}")

    try:
        written = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise refused(f"{file} is no config that can be read: {error}") from error
    if not isinstance(written, dict):
        raise refused(f"{file} is no config: it holds no JSON object")
    kind = str(written.get("model_type", "none"))
    listed = find(kind)
    if listed is None and (family != AUTO or kind in REFUSED):
        other = (
            f"`fednano check {name} --family auto` tries it; docs/extending.md shows how to add one"
        )
        hint = f". {REFUSED.get(kind, other)}"
        known = ", ".join(FAMILIES)
        raise refused(f"its family is {kind}; those that can be cut are: {known}{hint}")
    if listed and (lacking := _of_another_format(listed, written)):
        raise refused(f"{file} has model_type {kind}, but {lacking}")
    if missing := _missing_package(written):
        raise refused(f"its family is {kind}, and {missing}")
    try:
        config = AutoConfig.from_pretrained(file, trust_remote_code=False)
    except Exception as error:  # a config's values reach deep into transformers
        says = " ".join(str(error).split())[:LONGEST_REASON]
        raise refused(f"{file} is no config of the family {kind}: {says}") from error
    for part in (config, config.get_text_config()):
        if quantized := getattr(part, "quantization_config", None):
            method = quantized.get("quant_method", "") if isinstance(quantized, Mapping) else ""
            raise refused(
                f"{file} has a quantization_config ({method or quantized}): weights that are "
                "stored quantized are not read; take the model it was made from, and set "
                "llm.quantization"
            )
    try:
        found = of(config)
    except ConfigError as error:
        raise refused(str(error)) from error
    if lacking := _of_another_format(found, written):
        raise refused(f"{file} has model_type {kind}, but {lacking}")
    if refusal := found.refusal(config):
        raise refused(refusal)
    if _joins_experts(text := config.get_text_config().model_type):
        raise refused(f"its family is {kind}, its language model {text}. {EXPERTS}one without them")
    _set_how_it_runs(config)
    return config


def _missing_package(written: Mapping[str, Any]) -> str:
    """Why a model's encoder cannot be made on this machine; "" where it can."""
    kinds = {part.get("model_type") for part in written.values() if isinstance(part, Mapping)}
    if TIMM not in kinds:
        return ""
    try:
        import timm  # noqa: F401
    except ImportError as error:
        return (
            f"its encoder ({TIMM}) is of the package timm, which cannot be imported ({error}): "
            f'pip install "fednano-flwr[timm]", with a torchvision for torch {torch.__version__}'
        )
    return ""


def _joins_experts(kind: str) -> bool:
    """Whether transformers makes one tensor of a layer's experts when it reads such a model."""
    rules = get_checkpoint_conversion_mapping(kind) or []
    steps = chain.from_iterable(getattr(rule, "operations", ()) for rule in rules)
    return any(isinstance(step, MergeModulelist) for step in steps)


def _set_how_it_runs(config: PretrainedConfig) -> None:
    """Leave how a model runs to this program: a config says it of where the model was tuned."""
    for part in (config, *(getattr(config, key, None) for key in config.sub_configs)):
        if part is not None:
            part.output_attentions = part.output_hidden_states = False
            part.return_dict = True
            part._attn_implementation = part._experts_implementation = None  # transformers' choice


def _of_another_format(family: Family, written: Mapping[str, Any]) -> str:
    """What shows that a config with a family's `model_type` is of another class or format.

    transformers would read it, with defaults of its own for what it does not find.
    """
    wanted, found = family.architecture, written.get("architectures")
    flat = "hidden_size" in written  # older configs of Qwen2.5-VL have the text's keys at the top
    parts = (TEXT, ENCODERS[family.modalities[0]])
    lacking = [part for part in parts if part not in written and not (part == TEXT and flat)]
    hint = f". {LLAVA_FORMAT}" if "mm_vision_tower" in written else ""
    if found and isinstance(found, list) and wanted not in found:
        classes = ", ".join(map(str, found))
        return f"architectures is {classes}; of this family {wanted} is cut{hint}"
    return f"{' and '.join(lacking)} missing{hint}" if lacking else ""
