"""A small random checkpoint of a model's architecture, for a model that is too large."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fednano_flwr.base.console import human_bytes
from fednano_flwr.base.output import OutputError, require_space
from fednano_flwr.config import ConfigError
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.families import AUTO, of
from fednano_flwr.models.size import FLOAT32, count
from fednano_flwr.models.source import read_config
from fednano_flwr.models.split import small_files

LAYERS, HEADS, MLP, EXPERTS = 4, 4, 256, 8
"""The most that are left of each."""
DEPTHS = ("num_hidden_layers", "depth", "num_layers")
Part = dict[str, Any]
"""As config.json has a model's config, or a part of it."""


def write_shrunk(checkpoint: ModelCheckpoint, folder: Path, room: int) -> None:
    """Write a small random checkpoint of a model's architecture, with the model's processor.

    Which numbers of a config can be changed alone differs from family to family. So several ways
    are tried, and one is taken whose model computes and fits the processor.

    Args:
        checkpoint: has config, processor and tokenizer; it need not have weights.
        folder: is there, and empty.
        room: bytes of memory that it may take.

    Raises:
        ConfigError: the processor does not fit the model as it is, or no smaller one.
        OutputError: the disk has no room for it.
    """
    load_encoder(checkpoint)
    for file in small_files(checkpoint.folder):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.folder / file, folder / file)
    whole, reason = json.loads(checkpoint.config.to_json_string(use_diff=False)), ""
    for narrow in (True, False):
        config = copy.deepcopy(whole)
        if narrow:
            _narrow(config)
        shorten(config)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            _write_random(folder, room)
            load_encoder(ModelCheckpoint(str(folder), family=AUTO))
            return
        except OutputError:
            raise
        except Exception as error:  # of transformers' code, deep below a number that does not fit
            reason = " ".join(str(error).split())
    raise checkpoint.error(f"no smaller model of its architecture can be made: {reason}")


def _write_random(folder: Path, room: int) -> None:
    """Weights for the config in `folder`, large enough for attention to look somewhere."""
    config = read_config(str(folder), folder, AUTO)
    needed = FLOAT32 * count(config).model
    if needed > room:
        raise ConfigError(f"{human_bytes(needed)} are too many for the {human_bytes(room)} free")
    require_space(folder, needed, "a small random model")
    family = of(config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = family.model_class(config).float().eval()
        for parameter in model.parameters():
            _randomize(parameter)
        model.get_submodule(family.host)(input_ids=torch.ones(1, 3, dtype=torch.int64))
    model.save_pretrained(folder)


def _randomize(parameter: nn.Parameter) -> None:
    """Values that keep the size of what they are multiplied with; of biases and norms, near."""
    if parameter.dim() < 2:
        parameter.add_(0.1 * torch.randn_like(parameter))
    else:
        inputs = parameter.numel() // len(parameter) if parameter.dim() > 3 else parameter.shape[-1]
        parameter.normal_(0, inputs**-0.5)


def _narrow(config: Part) -> None:
    """Fewer heads of the language model, as wide as they are, and smaller MLPs."""
    text = config.get("text_config", config)
    width, heads = text["hidden_size"], text["num_attention_heads"]
    kept = min(HEADS, heads)
    narrow = kept * (text.get("head_dim") or width // heads)
    if groups := text.get("num_key_value_heads"):
        text["num_key_value_heads"] = max(1, kept * groups // heads)
    text |= {"hidden_size": narrow, "num_attention_heads": kept}
    for part in _parts(config):
        for key, value in part.items():
            own = "num_attention_heads" in part  # else it is what goes to the language model
            if value == width and key.endswith(("size", "dim")) and not own:
                part[key] = narrow
            if key.endswith("intermediate_size") and isinstance(value, int):
                part[key] = min(value, MLP)
            if "experts" in key and "per_tok" not in key and isinstance(value, int):
                part[key] = min(value, EXPERTS)


def shorten(config: Part) -> None:
    """Fewer layers, of every kind that there is, and as many as are named by their number."""
    for part in _parts(config):
        for key in DEPTHS:
            if isinstance(depth := part.get(key), int):
                part[key] = kept = min(depth, _least(part, config, depth))
                for name, value in part.items():
                    if isinstance(value, list) and len(value) == depth:  # one for each layer
                        part[name] = value[:kept]


def _least(part: Part, config: Part, depth: int) -> int:
    """The fewest layers that may be left of `depth`."""
    text = part is config.get("text_config")
    numbers = [*_layer_numbers(part), *(() if text else _layer_numbers(config))]
    named = [n + 1 if n >= 0 else -n for n in numbers if -depth <= n < depth]
    kinds = part.get("layer_types") or []
    every = next(n for n in range(len(kinds) + 1) if set(kinds[:n]) == set(kinds))
    return max(LAYERS, every, *named)


def _layer_numbers(part: Part) -> Iterator[int]:
    """Layers that a config names by their number, such as those whose output is taken."""
    for key, value in part.items():
        if ("layer" in key or "index" in key) and not key.startswith(("num_", "max_")):
            for one in value if isinstance(value, list | tuple) else [value]:
                if type(one) is int:
                    yield one


def _parts(config: Part) -> Iterator[Part]:
    """The config and those in it."""
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _parts(value)
