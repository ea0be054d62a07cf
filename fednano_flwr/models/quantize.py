"""Linear layers of the language model in 8 or 4 bits, by transformers' own quantizers.

They hold bitsandbytes' weights, and gradients go through them to their inputs. Embeddings, norms
and the head stay in `llm.dtype`, as transformers leaves them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import is_bitsandbytes_available

from fednano_flwr.config import ConfigError
from fednano_flwr.models.checkpoint import frozen

OLDEST = "0.48.0"
DEVICES = ("cuda", "cpu")
BLOCK = 64  # weights that share a scale in 4 bits


def check_quantization(quantization: str, device: str) -> None:
    """Refuse a quantized host that this machine cannot run, before anything is loaded.

    Raises:
        ConfigError: the message says what is missing.
    """
    wanted = f"llm.quantization = {quantization!r}"
    kind = device.partition(":")[0]
    if kind not in DEVICES:
        raise ConfigError(
            f"{wanted} needs llm.device cuda or cpu, which is {device!r}; change one of the two"
        )
    if not is_bitsandbytes_available(OLDEST):
        raise ConfigError(
            f"{wanted}: the package bitsandbytes, version {OLDEST} or newer, is missing here; pip "
            "install 'fednano-flwr[quantized]', or set llm.quantization to \"none\""
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"{wanted}: llm.device is {device!r}, but PyTorch {torch.__version__} finds no CUDA "
            'GPU here; set llm.device to "cpu" (slow), or use a machine with a GPU'
        )


class Quantizer:
    """Makes the linear layers of one model quantized ones, and their weights as they are read.

    Args:
        whole: on the meta device; its layers are replaced in place.
        quantization: "8bit" (LLM.int8) or "4bit" (NF4).
        device: where the model will be.
        dtype: in which a 4-bit layer computes.

    Raises:
        ConfigError: a layer whose weight the CPU would decode wrongly.
    """

    def __init__(
        self,
        whole: PreTrainedModel,
        quantization: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        config = BitsAndBytesConfig(
            load_in_8bit=quantization == "8bit",
            load_in_4bit=quantization == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
        )
        self._whole = whole
        self._theirs: Any = AutoHfQuantizer.from_config(config, pre_quantized=False)
        self._theirs.preprocess_model(whole, device_map=None)
        self._operation = self._theirs.get_quantize_ops()
        self._layers = {
            name: module
            for name, module in whole.named_modules()
            if isinstance(module, nn.Linear) and self._quantizes(f"{name}.weight")
        }
        if quantization == "4bit" and device.type == "cpu":
            self._check_width()

    def weight(self, name: str, tensor: Tensor) -> nn.Parameter:
        """What the model holds as its parameter `name`; `tensor` is on the device it goes to."""
        if not self._quantizes(name):
            return frozen(name, tensor)
        # Versions of transformers differ in which of these arguments they look at.
        made = self._operation.convert({name: [tensor]}, model=self._whole, full_layer_name=name)
        return made[name]

    def keep_gradients(self) -> None:
        """Let every call give gradients to its inputs, also after calls that needed none.

        A 4-bit layer in evaluation mode on a CPU with AVX512-BF16 repacks its weight for inference
        at the first call without gradients, and gives none from then on; an 8-bit one on a CPU
        rounds its inputs too. Neither uses the mode for anything else.
        """
        for layer in self._layers.values():
            layer.train()

    def _quantizes(self, name: str) -> bool:
        return self._theirs.param_needs_quantization(self._whole, name)

    def _check_width(self) -> None:
        """On a CPU, bitsandbytes mixes up scales where a row is no whole number of blocks."""
        for name, layer in self._layers.items():
            if layer.in_features % BLOCK:
                raise ConfigError(
                    f"llm.quantization = '4bit' on a CPU: layer {name} has {layer.in_features} "
                    f"inputs, and bitsandbytes needs a multiple of {BLOCK} there; use 8bit or none"
                )
