"""The unsplit transformers model in NanoEdge's own loop: what the split is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LlavaForConditionalGeneration

from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.exchange.protocol import IGNORE, AdaptedBatch, FrozenBatch, Generated
from fednano_flwr.models.edge_half import EdgeHalf, TokenTable, VisionInputs


class WholeModel:
    """A LLaVA as transformers loads it, all in this process.

    It stands on both sides of the seam: for the frozen half below a `NanoEdge`, and, as an `LLM`,
    for the host. Between the two there is only autograd: nothing is sent, nothing computed twice.
    """

    deep_size, reads_ids = 0, False

    def __init__(self, folder: Path, device: str = "cpu", dtype: str = "float32") -> None:
        model: Any = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        )
        self.model = model.to(device).eval().requires_grad_(False)
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        self.hidden_size: int = model.config.text_config.hidden_size
        self.placeholders = {"image": (model.config.image_token_id,)}

    def edge(self, adapters: PeftModel, encoder: QuestionEncoder) -> NanoEdge:
        """NanoEdge on this model's own encoder and token embeddings; features stay in memory."""
        layer = self.model.get_input_embeddings()
        tokens = TokenTable(layer, layer.weight.detach())
        return NanoEdge(cast(EdgeHalf, self), tokens, adapters, encoder)

    @torch.no_grad()
    def features(self, site: str, question: VisionInputs) -> Tensor:
        """See `EdgeHalf.features`; one picture a question."""
        pixels = question["pixel_values"].to(self.device, self.dtype)
        return self.model.get_image_features(pixel_values=pixels).pooler_output[0]

    def text_ids(self, ids: Tensor) -> Tensor:
        """A LLaVA reads tokens as they are."""
        return ids

    def position_ids(self, ids: Tensor, prompt: int, vision: VisionInputs) -> None:
        """A LLaVA's positions are 0 to T-1."""

    def token_type_ids(self, ids: Tensor, prompt: int) -> None:
        """A LLaVA is causal."""

    def prepare(self, batch: FrozenBatch) -> None:
        """See `LLM.prepare`; nothing is sent."""

    def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
        """See `LLM.loss`; differentiable in all of this model that requires a gradient, too."""
        known = (labels != IGNORE).nonzero().squeeze(1)
        logits = self._logits(batch, known)
        return F.cross_entropy(logits.float(), labels[known].to(self.device))

    def score(self, batch: AdaptedBatch, positions: Tensor, candidates: Tensor) -> Tensor:
        """See `LLM.score`."""
        likely = self._logits(batch, positions).float().log_softmax(1)
        return likely[:, candidates.to(self.device)].cpu()

    def token_losses(
        self, batch: AdaptedBatch, positions: Tensor, tokens: Tensor, secret: bool = True
    ) -> Tensor:
        """See `LLM.token_losses`."""
        logits = self._logits(batch, positions).float()
        return F.cross_entropy(logits, tokens.to(self.device), reduction="none").cpu()

    def prefill(self, batch: AdaptedBatch, most: int) -> Generated:
        """See `LLM.prefill`; one batch at a time."""
        self._cache = DynamicCache(config=self.model.config.text_config)
        parts = list(batch.embedded().split(list(batch.layout.lengths)))
        pads = max(batch.layout.lengths) - torch.tensor(batch.layout.lengths)
        self._real = (torch.arange(max(batch.layout.lengths)) >= pads[:, None]).to(self.device)
        return self._next(pad_sequence(parts, batch_first=True, padding_side="left"))

    def decode(self, cache: int, sequences: Tensor, tokens: AdaptedBatch) -> Generated:
        """See `LLM.decode`."""
        self._cache.batch_select_indices(sequences)
        real = self._real[sequences.to(self.device)]
        self._real = F.pad(real, (0, 1), value=True)
        return self._next(tokens.embedded()[:, None])

    def release(self, cache: int) -> None:
        """See `LLM.release`."""
        del self._cache, self._real

    def _next(self, embeds: Tensor) -> Generated:
        """After further positions (B, T, d) of the kept sequences, padded on the left."""
        language: Any = self.model.model.language_model
        places = (self._real.cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        hidden = language(
            inputs_embeds=embeds,
            attention_mask=self._real.long(),
            position_ids=places,
            past_key_values=self._cache,
        ).last_hidden_state
        return Generated(1, self.model.lm_head(hidden[:, -1]).argmax(1).cpu())

    def _logits(self, batch: AdaptedBatch, positions: Tensor) -> Tensor:
        """(P, vocabulary): padded on the right, the head at `positions` only, as the host does."""
        embeds = batch.embedded()
        padded = pad_sequence(list(embeds.split(list(batch.layout.lengths))), batch_first=True)
        language: Any = self.model.model.language_model
        hidden = language(inputs_embeds=padded, use_cache=False).last_hidden_state
        lengths = torch.tensor(batch.layout.lengths)
        real = (torch.arange(padded.shape[1]) < lengths[:, None]).to(self.device)
        return self.model.lm_head(hidden[real][positions.to(self.device)])
