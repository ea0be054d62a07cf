"""A model's connectors at the host: it makes features of what they read, which may be smaller."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fednano_flwr.config import ConfigError, Model
from fednano_flwr.models import skeleton
from fednano_flwr.models.bundle import open_whole
from fednano_flwr.models.checkpoint import ModelCheckpoint

UNREADABLE = (RuntimeError, TypeError, IndexError)
"""What PyTorch raises for a wrong shape; their subclasses say that the device failed."""


class HostConnectors:
    """Frozen connectors of a checkpoint, and no other tensor of its client's half.

    Args:
        dtype: in which clients compute features, so that both sides round alike.

    Attributes:
        digest: as `connector_digest`.

    Raises:
        ConfigError: the checkpoint lacks one of their tensors.
    """

    def __init__(
        self, checkpoint: ModelCheckpoint, device: torch.device, dtype: torch.dtype
    ) -> None:
        tree = copy.deepcopy(checkpoint.tree)
        self._modules = skeleton.connectors(tree)
        skeleton.drop_all_but(tree, self._modules.values())
        checkpoint.fill(tree, device, dtype)
        for part in tree.modules():
            weight = getattr(part, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.dim() == 1:
                part.register_forward_pre_hook(_check_width)
        self._device, self._dtype = device, dtype
        self._lock = threading.Lock()  # many clients send at once, and memory is for one
        self.digest = connector_digest(self._modules)

    @torch.no_grad()
    def features(self, site: str, read: Tensor) -> Tensor:
        """Features (n, d) of what a site's connector reads (…, k).

        Raises:
            ValueError: there is no such connector, or it reads nothing of this shape.
            OutOfMemoryError: the device has no memory for it now.
        """
        if site not in self._modules:
            raise ValueError(f"this host has no connector of site {site[:32]!r}")
        torch.get_num_threads()  # a new thread's products take all cores until it has been asked
        try:
            with self._lock:
                made = self._modules[site](read.to(self._device, self._dtype))
            return made.reshape(-1, made.shape[-1])
        except UNREADABLE as error:
            if type(error) not in UNREADABLE:
                raise
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"the connector of site {site} reads nothing of shape {tuple(read.shape)}: {reason}"
            ) from error


def _check_width(norm: nn.Module, args: tuple[Any, ...]) -> None:
    """Refuse rows of one number, each of which a norm's weight would make as long as itself."""
    if args and args[0].shape[-1] == 1 < norm.get_parameter("weight").numel():
        raise RuntimeError("rows of one number")


def check_connectors(model: Model) -> str:
    """Refuse a model whose connector is not known.

    Raises:
        ConfigError: says so.
    """
    checkpoint = open_whole(model.name, model.revision, model.family)
    if not (found := skeleton.connectors(checkpoint.tree)):
        raise ConfigError(
            f'exchange.connector-at = "server": in the family {checkpoint.family.model_type} it is '
            'not known which module the connector is; use exchange.connector-at = "client"'
        )
    return f"connector of {' and '.join(found)} at the host"


def connector_digest(modules: Mapping[str, nn.Module]) -> str:
    """SHA-256 of connectors as they were loaded, by their sites; "" where there are none."""
    if not modules:
        return ""
    digest = hashlib.sha256()
    for site, module in sorted(modules.items()):
        digest.update(f"{site}\n".encode())
        skeleton.add_to_digest(digest, module)
    return digest.hexdigest()
