"""The real model's processor: SmolLM2's tokenizer and chat template, pictures of 64×64 pixels."""

from __future__ import annotations

from transformers import CLIPImageProcessorPil, LlavaProcessor
from transformers.tokenization_utils_tokenizers import TokenizersBackend

SIDE, PATCH = 64, 16
"""Pixels of a picture's and of a patch's side."""
IMAGE_TOKENS = (SIDE // PATCH) ** 2
IMAGE = "<jupyter_output>"
"""One of SmolLM2's reserved tokens: where a notebook shows its pictures."""
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's own, which takes only texts, with pictures where they stand in a turn."""


def build_processor(tokenizer: TokenizersBackend) -> LlavaProcessor:
    """What turns a conversation and its pictures into the model's inputs."""
    size = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessorPil(
        size=size,
        crop_size=size,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )
