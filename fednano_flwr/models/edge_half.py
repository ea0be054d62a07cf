"""The client's half of a multimodal LLM: vision encoder, connector and token embeddings."""

from __future__ import annotations

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from fednano_flwr.models.checkpoint import Checkpoint


class EdgeHalf(nn.Module):
    """Frozen vision encoder, connector and token embeddings of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        config, family = checkpoint.config, checkpoint.family
        text = config.get_text_config()
        self.model = checkpoint.name
        self.fingerprint = checkpoint.fingerprint
        self.hidden_size: int = text.hidden_size
        self.image_token_id: int = config.image_token_id
        vision = checkpoint.skeleton(without=family.language)
        with init_empty_weights(include_buffers=False):
            self.token_embeddings = nn.Embedding(text.vocab_size, text.hidden_size)
        checkpoint.fill(vision, device, dtype)
        (_, table), *_ = checkpoint.read([family.embeddings])
        self.token_embeddings.weight = nn.Parameter(table.to(device, dtype), requires_grad=False)
        self._vision = vision

    @property
    def device(self) -> torch.device:
        return self.token_embeddings.weight.device

    @torch.no_grad()
    def image_features(self, pixel_values: Tensor) -> list[Tensor]:
        """Connector outputs (n, d), one tensor an image of `pixel_values` (images, 3, H, W)."""
        pixels = pixel_values.to(self.device, self.token_embeddings.weight.dtype)
        return list(self._vision.get_image_features(pixel_values=pixels).pooler_output)


def load_edge_half(name: str, device: str = "cpu", dtype: str = "float32") -> EdgeHalf:
    """Read the client's half of `name` and nothing of the language model.

    Raises:
        ConfigError: no such model, or its family cannot be cut.
    """
    return EdgeHalf(Checkpoint(name), torch.device(device), getattr(torch, dtype))
