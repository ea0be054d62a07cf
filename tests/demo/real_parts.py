"""A language model and a tokenizer in SmolLM2's form, with few and random weights."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from fednano_demo.real.processor import IMAGE

START, END = "<|im_start|>", "<|im_end|>"


def tiny_llm() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """As `smollm2.read_llm` gives them: one token a byte, and the reserved ones."""
    special = ["<|endoftext|>", START, END, IMAGE]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    llm = LlamaForCausalLM(config).eval().requires_grad_(False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END
    )
    return llm, fast
