"""The server's half of a multimodal LLM: language model and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from fednano_flwr.config import Adapter
from fednano_flwr.models import layers, skeleton
from fednano_flwr.models.bundle import open_whole
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.lora import LoraPlaces
from fednano_flwr.models.quantize import Quantizer, check_quantization

NOTHING: Mapping[str, Tensor] = {}


class HeadAtRows(nn.Module):
    """The head, computed at some positions only: (B, T, d) in, (P, vocabulary) out."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.rows: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        assert self.rows is not None
        return self.head(hidden.flatten(0, 1)[self.rows.to(hidden.device)])


class LLMHalf(nn.Module):
    """Frozen language model and head of one checkpoint.

    Args:
        dtype: of the embeddings that come in and of all weights that are not quantized.
        quantization: of the linear layers: "none", "8bit" or "4bit".
        checkpointing: each decoder layer keeps its input only, and is computed again for the
            backward pass.
        device_map: "" (all on `device`), or as `layers.place` takes it.
        lora: rank, scale and targets of a LoRA inside; None for none.

    Attributes:
        device: where embeddings go in and logits come out.
        places: the device of each part of the language model.
        deep_size: L·d, numbers that L of its layers add to a picture's token; 0 in most families.
        ids: how many token ids its layers look up in tables of their own; 0 in most families.
        reads_ids: whether they do.
        longest: most tokens in a sample, where positions have a learned table; else 0.
        lora: places of the LoRA; its parameters have to be set before the first call.
    """

    def __init__(
        self,
        checkpoint: ModelCheckpoint,
        device: torch.device,
        dtype: torch.dtype,
        quantization: str = "none",
        checkpointing: bool = False,
        device_map: str | Mapping[str, str] = "",
        lora: Adapter | None = None,
    ) -> None:
        super().__init__()
        text = checkpoint.config.get_text_config()
        self.model = checkpoint.name
        self.hub_id = checkpoint.hub_id
        self.revision = checkpoint.revision
        self.fingerprint = checkpoint.fingerprint
        self.family = checkpoint.family
        self.hidden_size: int = text.hidden_size
        self.vocabulary: int = text.vocab_size
        self.deep_size = self.family.deep_layers(checkpoint.config) * self.hidden_size
        self.ids = self.family.layer_vocabulary(checkpoint.config)
        self.reads_ids = self.ids > 0
        self.longest = checkpoint.longest
        self.dtype = dtype
        whole = checkpoint.llm_tree()
        host: Any = whole.get_submodule(self.family.host)
        tied = checkpoint.tied
        if tied:
            host.lm_head.weight = host.get_input_embeddings().weight
        self.size = sum(parameter.numel() for parameter in whole.parameters())
        self.places: layers.Places = {"": device}
        if device_map:
            self.places = layers.place(host, device_map, dtype)
        where = partial(layers.device_of, self.places)
        self.device = where(skeleton.name_of(host, host.get_input_embeddings()))
        prefix = f"{self.family.host}."
        fill = partial(checkpoint.fill, whole, lambda name: where(name.removeprefix(prefix)), dtype)
        if quantization == "none":
            fill()
        else:
            quantizer = Quantizer(whole, quantization, device, dtype)
            fill(quantizer.weight)
            quantizer.keep_gradients()
        if tied:
            host.lm_head.weight = host.get_input_embeddings().weight
        self.lora: LoraPlaces | None = None
        if lora is not None:
            wide = torch.promote_types(dtype, torch.float32)
            self.lora = LoraPlaces(host, self.family.host, lora, wide, quantization)
        self._embeddings = host.get_input_embeddings()
        self._head = host.lm_head = HeadAtRows(host.lm_head)
        self._host = host
        if checkpointing:
            layers.checkpoint_layers(host)
        if device_map:  # last: what goes into a layer is moved before it is kept
            layers.dispatch(host, self.places)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings (n, d) of ids (n,), scaled where the family scales them."""
        return self._embeddings(ids)

    def check(
        self,
        lengths: Sequence[int],
        position_ids: Tensor | None,
        token_type_ids: Tensor | None,
        token_ids: Tensor | None,
        deep: Tensor | None,
    ) -> None:
        """Refuse what the model cannot read: on a GPU it would end this process, not the request.

        Args:
            lengths: tokens of each sample.
            position_ids: (axes, N) as a request has them.
            token_type_ids, token_ids: (N,) likewise.
            deep: (n, L·d) likewise, of the rows of type 1.

        Raises:
            ValueError: a sample is too long, or the others are not what the family needs.
        """
        self.check_length(max(lengths))
        self.check_axes(position_ids)
        if self.family.token_types and token_type_ids is None:
            raise ValueError(f"{self.model} needs token_type_ids")
        if token_type_ids is not None:
            if not self.family.token_types:
                raise ValueError(f"{self.model} takes no token_type_ids")
            if int(token_type_ids.max()) > 1:
                raise ValueError(f"token type {int(token_type_ids.max())}: must be 0 or 1")
        self.check_ids(token_ids)
        pictured = int(token_type_ids.sum()) if self.deep_size and token_type_ids is not None else 0
        shape = (0, self.deep_size) if deep is None else tuple(deep.shape)
        if shape != (pictured, self.deep_size):
            raise ValueError(
                f"features for deeper layers of shape {shape}; {self.model} needs "
                f"{(pictured, self.deep_size)}"
            )

    def check_ids(self, token_ids: Tensor | None) -> None:
        """
        Raises:
            ValueError: its layers lack a row for a token, or were given none to look up.
        """
        if self.reads_ids and token_ids is None:
            raise ValueError(f"{self.model} needs token_ids")
        if token_ids is not None:
            if not self.reads_ids:
                raise ValueError(f"{self.model} takes no token_ids")
            if int(token_ids.max()) >= self.ids:
                raise ValueError(f"token {int(token_ids.max())}: its layers know {self.ids}")

    def check_axes(self, position_ids: Tensor | None) -> None:
        """
        Raises:
            ValueError: positions (axes, N) are not what the family needs.
        """
        axes = self.family.position_axes
        given = 0 if position_ids is None else len(position_ids)
        if axes and given != axes:
            raise ValueError(f"{self.model} needs position_ids with {axes} axes, not {given}")
        if given and not axes:
            raise ValueError(f"{self.model} takes no position_ids")

    def check_length(self, tokens: int) -> None:
        """Refuse a sample of more tokens than the model has positions for.

        Raises:
            ValueError: it is too long.
        """
        if self.longest and tokens > self.longest:
            raise ValueError(
                f"a sample of {tokens} tokens; {self.model} reads {self.longest} at most"
            )

    def logits(
        self,
        embeds: Tensor,
        rows: Tensor,
        mask: Tensor,
        beside: Mapping[str, Tensor] = NOTHING,
    ) -> Tensor:
        """Logits (P, vocabulary) after P positions of right-padded embeddings (B, T, d).

        Args:
            embeds: padded on the right, where a causal model does not see it.
            rows: (P,) indices into the B·T positions.
            mask: (B, T) bool, false at padding.
            beside: what goes with them, as `Family.logits` has it.

        Raises:
            ValueError: see `check`.
        """
        extra: dict[str, Any] = {"use_cache": False, **beside}
        if self._sees_ahead(beside):  # then padding is not hidden by causality alone
            extra["attention_mask"] = mask.long()
        self._head.rows = rows
        return self.family.logits(self._host, inputs_embeds=embeds, **extra)

    def next_logits(
        self,
        embeds: Tensor,
        pads: Tensor,
        cache: Cache,
        before: int,
        beside: Mapping[str, Tensor] = NOTHING,
    ) -> Tensor:
        """Logits (B, vocabulary) after further positions of sequences that the cache has.

        They are padded on the left, so that positions are as far from each other as they are in
        the cache, which windows go by. Every family's language model lets an answer's token see
        all that is before it, so its tokens have no types.

        Args:
            embeds: (B, T, d).
            pads: (B,) positions on the left that are padding.
            cache: of the positions before these; has these as well afterwards.
            before: how many the cache has.
            beside: what goes with them, as `Family.logits` has it; types are of prompts only.

        Returns:
            At least in float32.
        """
        count, width, _ = embeds.shape
        extra: dict[str, Any] = {"past_key_values": cache, "use_cache": True, **beside}
        mask = (torch.arange(before + width) >= pads[:, None]).to(self.device)
        if pads.any() or self._sees_ahead(beside):
            extra["attention_mask"] = mask.long()
        if pads.any() and "position_ids" not in extra:
            own = (mask.cumsum(1) - 1).clamp(min=0) + self.family.first_position
            extra["position_ids"] = own[:, -width:]
        self._head.rows = torch.arange(1, count + 1) * width - 1
        logits = self.family.logits(self._host, inputs_embeds=embeds, **extra)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _sees_ahead(self, beside: Mapping[str, Tensor]) -> bool:
        """Whether a token may see later ones, by their types."""
        return "token_type_ids" in beside and not self.family.causal

    def new_cache(self) -> Cache:
        """For keys and values of some sequences (of a window, where a layer has one), or states."""
        return DynamicCache(config=self._host.config.get_text_config())


def load_llm_half(
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
    quantization: str = "none",
    checkpointing: bool = False,
    device_map: str | Mapping[str, str] = "",
    revision: str = "",
    family: str = "",
    lora: Adapter | None = None,
) -> LLMHalf:
    """Read the server's half of `name` and nothing of the vision encoder; arguments as above.

    Raises:
        ConfigError: no such model, its family cannot be cut, or `check_host` refuses.
    """
    check_host(device, quantization, device_map)
    return LLMHalf(
        open_whole(name, revision, family),
        torch.device(device),
        getattr(torch, dtype),
        quantization,
        checkpointing,
        device_map,
        lora,
    )


def check_host(device: str, quantization: str, device_map: str | Mapping[str, str] = "") -> None:
    """Reject options that this machine does not support or that exclude each other.

    Raises:
        ConfigError: the message says what is missing, or what to change.
    """
    if quantization != "none":
        check_quantization(quantization, device)
    if device_map and isinstance(device_map, str):
        layers.check_device_map(device_map, device, quantization)
