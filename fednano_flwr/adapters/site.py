"""NanoAdapters: the only parameters that are trained, sent and merged.

h' = h + s · B(A h), A: (r, d), B: (d, r), s = alpha / r, B = 0 at the start (FedNano,
arXiv 2506.14824). PEFT's LoRA drives them: it sits on two identity layers, so its handling of
trainable parameters, state dicts, saving and several named adapters works unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import set_peft_model_state_dict
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn

from fednano_flwr.adapters.product import is_part
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.config import SITES, Adapter

GLOBAL, LOCAL = "default", "local"
"""Names of adapters in PEFT: the one that every client has, and one that a client may add."""


class AdapterSite(nn.Linear):
    """A place for a LoRA: the identity on d features, owning no d × d weight."""

    def __init__(self, features: int) -> None:
        nn.Module.__init__(self)
        self.in_features = self.out_features = features
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.bias = None  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        return input


class AdapterSites(nn.Module):
    """The places of the cut: connectors' outputs and the token embeddings."""

    def __init__(self, hidden_size: int, model: str | None) -> None:
        super().__init__()
        self.name_or_path = model  # PEFT writes it into the adapter's config
        self.image_adapter = AdapterSite(hidden_size)
        self.text_adapter = AdapterSite(hidden_size)
        self.audio_adapter = AdapterSite(hidden_size)


def build_adapters(
    hidden_size: int,
    config: Adapter,
    seed: int,
    model: str | None = None,
    sites: Sequence[str] = ("image", "text"),
) -> PeftModel:
    """Fresh NanoAdapters in float32; the same seed gives the same A (B is zero).

    Args:
        hidden_size: d, the LLM's embedding size.
        config: rank, alpha, dropout and which of the sites have an adapter.
        seed: of A's initial values.
        model: written into PEFT's config as the base model's name.
        sites: of the model.

    Raises:
        ConfigError: the model lacks a site that is named.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(Purpose.ADAPTERS, seed))
        place = AdapterSites(hidden_size, model)
        # None where the only site is inside the language model, which is the host's.
        return get_peft_model(place, _lora(config, config.sites_on(sites)))  # type: ignore[arg-type]


def add_adapter(adapters: PeftModel, name: str, config: Adapter, seed: int) -> None:
    """Put a fresh adapter beside those there are, on the same sites; all are active and trained.

    h' = h + Σ s · B(A h) over the adapters. One of that name is left as it is.
    """
    if name not in adapters.peft_config:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapters.add_adapter(name, _lora(config, sites_in(adapter_state(adapters))))
    base: Any = adapters.base_model
    base.set_adapter(list(adapters.peft_config))


def _at(site: str) -> str:
    return f"{site}_adapter"


def _lora(config: Adapter, sites: Sequence[str]) -> LoraConfig:
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT divides by it; a float is fine
        lora_dropout=config.dropout,
        target_modules=[_at(site) for site in sites] or DUMMY_TARGET_MODULES,
    )


def adapter_state(adapters: PeftModel, name: str = GLOBAL) -> dict[str, Tensor]:
    """Copies of one adapter's parameters on the CPU, by PEFT's names, sorted."""
    state = get_peft_model_state_dict(adapters, adapter_name=name)
    return {key: state[key].detach().cpu().clone() for key in sorted(state)}


def sites_in(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The sites that these parameters are of."""
    return tuple(site for site in SITES if any(f".{_at(site)}." in key for key in state))


def load_adapter_state(
    adapters: PeftModel, state: Mapping[str, Tensor], name: str = GLOBAL
) -> None:
    """Set one adapter's parameters.

    Raises:
        ValueError: names or shapes are not those of `adapters`.
    """
    own = get_peft_model_state_dict(adapters, adapter_name=name)
    if set(own) != set(state):
        raise ValueError(f"adapter has parameters {sorted(own)}, got {sorted(state)}")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ValueError(f"{key} has shape {tuple(own[key].shape)}, got {tuple(value.shape)}")
    set_peft_model_state_dict(adapters, dict(state), adapter_name=name)


def named_trainable(adapters: PeftModel) -> dict[str, nn.Parameter]:
    """Trainable parameters of all adapters, sorted by name.

    Those of the global adapter have the names that `adapter_state` uses, others their adapter's
    name in theirs.
    """
    trainable = {
        name.replace(f".{GLOBAL}.", "."): parameter
        for name, parameter in adapters.named_parameters()
        if parameter.requires_grad
    }
    return dict(sorted(trainable.items()))


def train_only(adapters: PeftModel, factor: str) -> None:
    """Have only the factor "A" or "B" of all adapters trained, or "both"."""
    for name, parameter in adapters.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(is_part(name, factor))


def randomize(adapters: PeftModel, scale: float, seed: int) -> PeftModel:
    """Draw each B from N(0, scale²): fresh adapters, whose B is zero, change nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in named_trainable(adapters).items():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return adapters


def constant_factors(
    adapters: PeftModel, site: str
) -> tuple[Tensor | None, Tensor | None, float] | None:
    """A (r, d) and B (d, r) of a site's adapter, each as far as it is constant, and the scale s.

    It is where nothing trains it now and dropout does not touch its input. None where the site has
    no adapter, or several.
    """
    layer, names = _active(adapters, site)
    if len(names) != 1:
        return None
    (name,) = names
    down: Any = layer.lora_A[name]
    up: Any = layer.lora_B[name]
    a, b = down.weight, up.weight
    drops = layer.lora_dropout[name]
    whole = isinstance(drops, nn.Identity) or not drops.training
    return (
        a.detach() if whole and not _trains(a) else None,
        None if _trains(b) else b.detach(),
        layer.scaling[name],
    )


def _active(adapters: PeftModel, site: str) -> tuple[Any, list[str]]:
    """A site's layer, and the names of the adapters that are active there."""
    layer: Any = getattr(adapters.base_model.model, _at(site))
    if not isinstance(layer, LoraLayer):
        return layer, []
    return layer, [name for name in layer.active_adapters if name in layer.lora_A]


def _trains(parameter: Tensor) -> bool:
    return torch.is_grad_enabled() and parameter.requires_grad


def low_rank(adapters: PeftModel, site: str, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
    """The two factors that a site's adapters add at `hidden`: h' = h + z Bᵀ with z = s · A h.

    Several active adapters lie side by side along the rank.

    Args:
        site: one of `SITES`.
        hidden: (n, d) frozen embeddings.

    Returns:
        z (n, R) and B (d, R), both in float32 and differentiable; None where there is no adapter.
    """
    layer, names = _active(adapters, site)
    if not names:
        return None
    z, b = [], []
    for name in names:
        down: Any = layer.lora_A[name]
        up: Any = layer.lora_B[name]
        moved = layer.lora_dropout[name](hidden.to(down.weight.dtype))
        z.append(layer.scaling[name] * down(moved))
        b.append(up.weight)
    return torch.cat(z, dim=1), torch.cat(b, dim=1)
