"""The client's half of a multimodal LLM: encoders, connectors and token embeddings."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fednano_flwr.models import skeleton
from fednano_flwr.models.bundle import open_checkpoint
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.connector import connector_digest
from fednano_flwr.models.source import model_sites

VisionInputs = Mapping[str, Tensor]


class MissingRowError(ValueError):
    """A token turned up whose embedding this client does not hold."""


class TokenTable(nn.Module):
    """Frozen token embeddings: of the whole vocabulary, or only the rows that a shard needs.

    Args:
        layer: the family's own embedding layer (some scale what they look up); its weight is
            replaced.
        table: (n, d), the rows of `ids`.
        ids: (n,) ascending token ids; None where the table has every row.
    """

    ids: Tensor | None

    def __init__(self, layer: nn.Embedding, table: Tensor, ids: Tensor | None = None) -> None:
        super().__init__()
        layer.weight = nn.Parameter(table, requires_grad=False)
        layer.num_embeddings = len(table)
        layer.padding_idx = None  # may lie outside the rows; only matters for training the table
        for key, value in layer.named_buffers(recurse=False):
            setattr(layer, key, value.to(table.device))
        self._layer = layer
        self.register_buffer("ids", None if ids is None else ids.to(table.device))

    @property
    def weight(self) -> Tensor:
        return self._layer.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings (T, d) of token ids (T,).

        Raises:
            MissingRowError: a token has no row here.
        """
        if self.ids is None:
            return self._layer(ids)
        rows = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        missing = ids[self.ids[rows] != ids]
        if len(missing):
            raise MissingRowError(
                f"token {int(missing[0])} has no embedding here: this client holds the "
                f'{len(self.ids)} rows that its shard uses (edge.vocabulary = "shard", or an edge '
                'bundle split for another shard); use edge.vocabulary = "full" with a full bundle'
            )
        return self._layer(rows)


class EdgeHalf(nn.Module):
    """Frozen encoders and connectors of one checkpoint; token embeddings on request.

    Attributes:
        placeholders: tokens that stand for features, see `placeholders`.
        sites: where its adapters may be, in the order of `SITES`.
        deep_size: L·d, numbers of a picture's token for L layers of the language model; 0 in most
            families.
        reads_ids: whether the language model's layers look tokens up.
    """

    def __init__(
        self, checkpoint: ModelCheckpoint, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.family = checkpoint.family
        self.model = checkpoint.name
        self.hub_id = checkpoint.hub_id
        self.revision = checkpoint.revision
        self.fingerprint = checkpoint.fingerprint
        self.hidden_size: int = checkpoint.config.get_text_config().hidden_size
        self.deep_size = self.family.deep_layers(checkpoint.config) * self.hidden_size
        self.reads_ids = self.family.layer_vocabulary(checkpoint.config) > 0
        self.placeholders = placeholders(checkpoint)
        self.sites = model_sites(checkpoint.config)
        self.device, self.dtype = device, dtype
        self._vision = copy.deepcopy(checkpoint.edge_tree[0])
        checkpoint.fill(self._vision, device, dtype)
        self._connectors = skeleton.connectors(self._vision)

    def token_table(self, ids: Sequence[int] | None = None) -> TokenTable:
        """Read the embeddings of `ids` (ascending), or of the whole vocabulary.

        Raises:
            ConfigError: the checkpoint, or the bundle, lacks one of them.
        """
        table, held = self.checkpoint.embedding_rows(ids, self.device, self.dtype)
        return TokenTable(copy.deepcopy(self.checkpoint.edge_tree[1]), table, held)

    def vision_digest(self) -> str:
        """SHA-256 of vision encoder and connector as they were loaded, which takes 0.6 s a GB.

        The fingerprint covers no more than samples of these weights.
        """
        digest = hashlib.sha256()
        skeleton.add_to_digest(digest, self._vision)
        return digest.hexdigest()

    @torch.no_grad()
    def features(self, site: str, question: VisionInputs) -> Tensor:
        """Features (n, d + L·d) of one question at a site, in the order of its placeholders.

        They are the connector's outputs and, beside them, what deeper layers take.

        One question a call: the last bits of a matrix product may depend on its number of rows, and
        features must depend on their own question alone.

        Args:
            site: "image" or "audio".
            question: what the model's processor made of its pictures and sounds.

        Raises:
            ConfigError: that is not what this model reads.
        """
        arguments = skeleton.encoder_arguments(self._vision, site, question)
        moved = {key: self._moved(value) for key, value in arguments.items()}
        output = skeleton.features(self._vision, site, moved)
        parts = [output] if isinstance(output, Tensor) else output
        size = self.hidden_size + self.deep_size
        return torch.cat([part.reshape(-1, size) for part in parts])

    @cached_property
    def connector_digest(self) -> str:
        """To be compared with that of a host which has connectors."""
        return connector_digest(self._connectors)

    def features_and_read(self, site: str, question: VisionInputs) -> tuple[Tensor, Tensor | None]:
        """`features`, and what the connector reads (…, k) to make them.

        None where they are not the connector's output alone, as when a family leaves rows out, adds
        some or has features for deeper layers.
        """
        seen: list[list[Any]] = []
        if (module := self._connectors.get(site)) is None:
            return self.features(site, question), None

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
            seen.append([*args, *kwargs.values(), made])

        hook = module.register_forward_hook(note, with_kwargs=True)
        try:
            rows = self.features(site, question)
        finally:
            hook.remove()
        match seen:
            case [[Tensor() as read, Tensor() as made]]:
                if made.numel() == rows.numel() and torch.equal(made.reshape(rows.shape), rows):
                    return rows, read.clone(memory_format=torch.contiguous_format)
        return rows, None

    def _moved(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.dtype if value.is_floating_point() else None)

    def text_ids(self, ids: Tensor) -> Tensor:
        """Tokens (n,) of text as the language model reads them."""
        return self.family.text_ids(ids, self.checkpoint.config)

    def position_ids(self, ids: Tensor, prompt: int, vision: VisionInputs) -> Tensor | None:
        """(axes, T) positions of one sample's tokens; None where they are 0 to T-1.

        Args:
            ids: (T,) tokens.
            prompt: how many of them are the prompt; the others are an answer.
            vision: the sample's `image_grid_thw`, where it has pictures.
        """
        pictures = self._places(ids, prompt, ["image"])
        return self.family.position_ids(self._vision, ids, pictures, vision)

    def token_type_ids(self, ids: Tensor, prompt: int) -> Tensor | None:
        """(T,) types of one sample's tokens, where the family's mask needs them; as above."""
        places = self._places(ids, prompt, self.placeholders)
        return self.family.token_type_ids(places, prompt)

    def _places(self, ids: Tensor, prompt: int, sites: Iterable[str]) -> Tensor:
        """(T,) bool, where features go: never in an answer, whatever was generated."""
        tokens = [token for site in sites for token in self.placeholders.get(site, ())]
        return torch.isin(ids, torch.tensor(tokens)) & (torch.arange(len(ids)) < prompt)


def placeholders(checkpoint: ModelCheckpoint) -> dict[str, tuple[int, ...]]:
    """Ids of the tokens that stand where features go, by the features' site, as in `SITES`.

    The first ones are in every prompt with a picture, or a sound.

    Raises:
        ConfigError: the config does not say.
    """
    found: dict[str, tuple[int, ...]] = {}
    for site in checkpoint.family.modalities_of(checkpoint.config):
        token = getattr(checkpoint.config, f"{site}_token_id", None)
        if token is None:
            raise checkpoint.error(
                f"its config.json has no {site}_token_id ({site}_token_index); add it, or take a "
                "newer version of the checkpoint"
            )
        several = checkpoint.family.feature_ids(checkpoint.config) if site == "image" else ()
        found[site] = several or (token,)
    return found


def load_edge_half(
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str = "",
    family: str = "",
) -> EdgeHalf:
    """Read the client's half of `name` (a checkpoint or an edge bundle), nothing of the LLM.

    Raises:
        ConfigError: no such model, or its family cannot be cut.
    """
    checkpoint = open_checkpoint(name, revision, family)
    return EdgeHalf(checkpoint, torch.device(device), getattr(torch, dtype))
