"""The server's half of a multimodal LLM: language model and head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fednano_flwr.models.checkpoint import Checkpoint


class LLMHalf(nn.Module):
    """Frozen language model and head of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        family = checkpoint.family
        text = checkpoint.config.get_text_config()
        self.model = checkpoint.name
        self.fingerprint = checkpoint.fingerprint
        self.hidden_size: int = text.hidden_size
        self.vocabulary: int = text.vocab_size
        self.dtype = dtype
        self.device = device
        language = checkpoint.skeleton(without=family.vision)
        if "lm_head.weight" not in checkpoint.files:
            language.lm_head.weight = language.get_input_embeddings().weight
        checkpoint.fill(language, device, dtype)
        if "lm_head.weight" not in checkpoint.files:
            language.lm_head.weight = language.get_input_embeddings().weight
        self._language_model = language.get_submodule(family.language[0])
        self._head: nn.Module = language.lm_head

    def hidden(self, embeds: Tensor) -> Tensor:
        """Last hidden states (B, T, d) of right-padded input embeddings (B, T, d)."""
        return self._language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (…, vocabulary) of hidden states (…, d)."""
        return self._head(hidden)


def load_llm_half(name: str, device: str = "cpu", dtype: str = "float32") -> LLMHalf:
    """Read the server's half of `name` and nothing of the vision encoder.

    Raises:
        ConfigError: no such model, or its family cannot be cut.
    """
    return LLMHalf(Checkpoint(name), torch.device(device), getattr(torch, dtype))
