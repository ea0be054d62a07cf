"""A model's module tree without weights, and the cut through it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import PretrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Transpose,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from fednano_flwr.config import ConfigError
from fednano_flwr.models.families import canonical, of
from fednano_flwr.models.families.base import encoder_of

NOT_READ = {"num_crops"}
"""What a processor says of pictures for itself alone."""
OF_SOUNDS = {"input_features", "input_features_mask", "feature_attention_mask"}
"""What processors call what they make of sounds."""


def checkpoint_names(whole: Any) -> Callable[[str], tuple[str, bool] | None]:
    """How `from_pretrained` calls what a checkpoint's file calls so: by transformers' own rules.

    Returns:
        Gives, of a tensor's key, the name in the module tree, and whether the tensor (n, a, b) may
        be stored as (n, b, a), as its shape will say; None where no part is called so.

    Raises:
        ValueError: by what is returned; the tensor has to be converted in another way.
    """
    known, rules = whole.state_dict(), get_model_conversion_mapping(whole)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    turns = {p for rule in converters if _only_turns(rule) for p in rule.source_patterns}

    def called(key: str) -> tuple[str, bool] | None:
        prefix = whole.base_model_prefix
        name, conversion = rename_source_key(key, renamings, converters, prefix, known)
        if name not in known and key in known:
            name, conversion = key, None
        if conversion is not None and conversion not in turns:
            raise ValueError(f"{key} is stored in another form than {name}, which is not read")
        return (name, conversion is not None) if name in known else None

    return called


def _only_turns(rule: WeightConverter) -> bool:
    """Whether all it does is to exchange the last two axes of three where the shape needs it."""
    step, *more = rule.operations
    turns = isinstance(step, Transpose) and {step.dim0, step.dim1} == {1, 2} and step.check_dims
    return turns and not more


def drop_language(whole: Any) -> nn.Embedding:
    """Leave a client's half in the tree; returns the token embeddings, which are taken out, too."""
    embeddings = whole.get_input_embeddings()
    _remove(whole, of(whole.config).language)
    if hasattr(whole, "lm_head"):
        _remove(whole, "lm_head")
    return embeddings


def drop_vision(whole: Any) -> None:
    """Take everything out of the tree but the language model and the head."""
    owner_path, _, leaf = of(whole.config).language.rpartition(".")
    owner = whole.get_submodule(owner_path)
    for name in [name for name, _ in owner.named_children()]:
        if name not in (leaf, "lm_head"):
            delattr(owner, name)
    for name in [name for name, _ in owner.named_parameters(recurse=False)]:
        delattr(owner, name)


def connectors(whole: Any) -> dict[str, nn.Module]:
    """The modules whose outputs are features, by site, of those that the family knows."""
    family = of(whole.config)
    by_name = {canonical(path): module for path, module in whole.named_modules() if path}
    pairs = zip(family.modalities, (family.connector, family.second_connector), strict=False)
    return {site: by_name[one.module] for site, one in pairs if one.module in by_name}


def drop_all_but(whole: nn.Module, kept: Iterable[nn.Module]) -> None:
    """Leave some modules in the tree, each at its place."""
    parts = {part for module in kept for part in module.modules()}
    for owner in [module for module in whole.modules() if module not in parts]:
        gone = [name for name, one in owner.named_children() if parts.isdisjoint(one.modules())]
        gone += [name for name, _ in owner.named_parameters(recurse=False)]
        gone += [name for name, _ in owner.named_buffers(recurse=False)]
        for name in gone:
            delattr(owner, name)


def add_to_digest(digest: hashlib._Hash, module: nn.Module) -> None:
    """Add a module's parameters and buffers, names and values, to a digest."""
    for parts in (module.named_parameters(), module.named_buffers()):
        for name, tensor in parts:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)


def stored(tree: nn.Module) -> dict[str, Tensor]:
    """What is read of a module tree: parameters, each once, and saved buffers.

    But for the number of batches that a batch norm was trained on, which only training reads.
    """
    buffers = {
        name: value
        for name, value in tree.state_dict(keep_vars=True).items()
        if not (isinstance(value, nn.Parameter) or name.endswith(".num_batches_tracked"))
    }
    return dict(tree.named_parameters()) | buffers


def name_of(whole: nn.Module, module: nn.Module) -> str:
    """Path of `module` in the tree."""
    return next(name for name, other in whole.named_modules() if other is module)


def trim_encoder(config: PretrainedConfig) -> int:
    """Shorten the vision config to the layers whose output the connector takes.

    LLaVA-1.5 takes the output of the second-last layer, so the last one is never used. Only done
    for CLIP, whose intermediate outputs are those of its layers as they are.

    Returns:
        How many layers are gone.
    """
    wanted = getattr(config, "vision_feature_layer", None)
    vision: Any = getattr(config, "vision_config", None)
    if wanted is None or getattr(vision, "model_type", "") != "clip_vision_model":
        return 0
    count = vision.num_hidden_layers
    several = isinstance(wanted, list | tuple)
    # Output 0 is that of the patch embeddings, output k that of layer k.
    outputs = [index % (count + 1) for index in (wanted if several else [wanted])]
    vision.num_hidden_layers = max(outputs)
    config.vision_feature_layer = outputs if several else outputs[0]
    return count - max(outputs)


def encoder_arguments(whole: Any, modality: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What features of a modality are made from, of a processor's outputs: all that are of it.

    Some are named by the model's `forward` alone, which passes them on (`image_sizes` of Pixtral).

    Raises:
        ConfigError: one is not for this model.
    """
    own = {k: value for k, value in inputs.items() if (k in OF_SOUNDS) == (modality == "audio")}
    known = set(of(whole.config).vision_keys)
    owner = whole if modality == "audio" else encoder_of(whole)
    for method in (getattr(owner, f"get_{modality}_features", whole.forward), whole.forward):
        known |= inspect.signature(method).parameters.keys()
    unknown = own.keys() - known - NOT_READ
    if unknown:
        raise ConfigError(
            f"the processor makes {', '.join(sorted(unknown))} ({modality}), which "
            f"{type(whole).__name__} does not read; take the processor that it was saved with"
        )
    return {name: value for name, value in own.items() if name in known}


def features(edge: Any, modality: str, arguments: Mapping[str, Tensor]) -> Any:
    """What the family makes of a question's pictures, or of its sounds."""
    family = of(edge.config)
    make = family.features if modality == "image" else family.sound_features
    return make(edge, arguments)


@torch.no_grad()
def count_features(edge: Any, modality: str, inputs: Mapping[str, Tensor]) -> int | None:
    """How many features the connector makes of a question's pictures or sounds, by shapes alone.

    The model's own code runs, on tensors without values wherever a weight takes part.

    Args:
        edge: the client's half on the meta device.
        inputs: what the model's processor made of the question.

    Returns:
        None where the model's code asks for a value that only weights can give.

    Raises:
        ConfigError: an output of the processor is not for this model.
        Exception: of the model's code, where the inputs do not fit its config.
    """
    family, arguments = of(edge.config), encoder_arguments(edge, modality, inputs)
    size = edge.config.get_text_config().hidden_size * (1 + family.deep_layers(edge.config))
    try:
        with _WithoutWeights():
            output = features(edge, modality, arguments)
    except (RuntimeError, NotImplementedError) as error:
        if "meta tensor" in str(error):
            return None
        raise
    found = [output] if isinstance(output, Tensor) else output
    return sum(part.numel() for part in found) // size


class _WithoutWeights(TorchDispatchMode):
    """An operation with a meta tensor gives one; all others have values (masks, positions)."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            if func is torch.ops.aten.index.Tensor:
                args = (args[0], _places(args[1]))
            args, kwargs = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
        elif torch.device(kwargs.get("device") or "cpu").type == "meta":
            kwargs = kwargs | {"device": "cpu"}
        return func(*args, **kwargs)


def _places(index: Sequence[Tensor | None]) -> list[Tensor | None]:
    """An index with numbers in the place of masks, whose values say how many are chosen."""
    found: list[Tensor | None] = []
    for one in index:
        if one is not None and one.dtype is torch.bool and not one.is_meta:
            found += one.nonzero().unbind(1)
        else:
            found.append(one)
    return found


def _remove(whole: nn.Module, path: str) -> None:
    owner, _, leaf = path.rpartition(".")
    delattr(whole.get_submodule(owner), leaf)
