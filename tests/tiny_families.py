"""A tiny random checkpoint of every family that is cut, with a processor, in the hub's format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from tests.tiny import WORDS, write_checkpoint

WORDS_KNOWN = 96
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}
PIXELS = {"height": 24, "width": 24}


def tokenizer(special: dict[str, str], extra: tuple[str, ...] = ()) -> Any:
    """Words, and a family's own tokens by the names its processor looks for."""
    own = [*special.values(), *extra]
    words = ["<pad>", "<unk>", "</s>", "<s>", *own, "Answer:", "Context:", *WORDS]
    words += [f"w{i}" for i in range(WORDS_KNOWN - len(words))]
    text = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    text.normalizer = normalizers.Replace(Regex(r"[?.,]"), " ")
    text.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=text,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        bos_token="<s>",
        extra_special_tokens=special,
    )
    fast.add_special_tokens({"additional_special_tokens": list(extra)})
    return fast


def template(image: str) -> str:
    """A chat template that writes `image` where a picture stands."""
    return (
        "{% for m in messages %}{% if m['role'] == 'assistant' %} w1 {% endif %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + image
        + " {% else %}{{ c['text'] }}{% endif %}{% endfor %}"
        "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %} w1"
    )


def pictures_only(name: str, **parts: Any) -> Any:
    """A processor without its video part, which needs torchvision."""
    whole = getattr(tf, name)
    kept = [part for part in whole.get_attributes() if part != "video_processor"]
    return type(name, (whole,), {"get_attributes": classmethod(lambda cls: kept)})(
        video_processor=None, **parts
    )


def clip(**changes: Any) -> Any:
    return tf.CLIPVisionConfig(**VISION, projection_dim=32, **changes)


def siglip(**changes: Any) -> Any:
    return tf.SiglipVisionConfig(**{**VISION, **changes}, vision_use_head=False)


def llama(kind: Any = tf.LlamaConfig, **changes: Any) -> Any:
    return kind(vocab_size=WORDS_KNOWN, **{**TEXT, **changes})


def image_processor(module: str, name: str, **settings: Any) -> Any:
    source = f"transformers.models.{module}.image_processing_pil_{module}"
    return getattr(__import__(source, fromlist=[name]), name)(**settings)


def llava_next() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>"})
    grid = [[24, 48], [48, 24], [48, 48]]
    config = tf.LlavaNextConfig(
        vision_config=clip(),
        text_config=llama(tf.MistralConfig),
        image_token_index=words.image_token_id,
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=9,
    )
    pictures = image_processor(
        "llava_next",
        "LlavaNextImageProcessorPil",
        size={"shortest_edge": 24},
        crop_size=PIXELS,
        image_grid_pinpoints=grid,
    )
    return config, tf.LlavaNextProcessor(
        pictures,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )


def llava_onevision() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>", "video_token": "<video>"})
    grid = [[24, 24], [24, 48], [48, 24], [48, 48]]
    config = tf.LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=llama(tf.Qwen2Config),
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    pictures = image_processor(
        "llava_onevision",
        "LlavaOnevisionImageProcessorPil",
        size=PIXELS,
        image_grid_pinpoints=grid,
    )
    return config, pictures_only(
        "LlavaOnevisionProcessor",
        image_processor=pictures,
        tokenizer=words,
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=template("<image>"),
    )


def internvl() -> tuple[Any, Any]:
    words = tokenizer(
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    )
    config = tf.InternVLConfig(
        vision_config=tf.InternVLVisionConfig(
            **{**VISION, "image_size": (32, 32)}, use_qk_norm=True, norm_type="rms_norm"
        ),
        text_config=llama(tf.Qwen2Config),
        image_token_id=words.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    pictures = image_processor(
        "got_ocr2",
        "GotOcr2ImageProcessorPil",
        size={"height": 32, "width": 32},
        crop_to_patches=True,
        max_patches=3,
    )
    return config, pictures_only(
        "InternVLProcessor",
        image_processor=pictures,
        tokenizer=words,
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>"),
    )


def smolvlm() -> tuple[Any, Any]:
    rows = tuple(f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4))
    words = tokenizer(
        {
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
            "video_token": "<video>",
        },
        rows,
    )
    config = tf.SmolVLMConfig(
        vision_config=tf.SmolVLMVisionConfig(**{**VISION, "image_size": 32}),
        text_config=llama(),
        image_token_id=words.image_token_id,
        scale_factor=2,
    )
    pictures = image_processor(
        "smolvlm",
        "SmolVLMImageProcessorPil",
        size={"longest_edge": 64},
        max_image_size={"longest_edge": 32},
    )
    return config, pictures_only(
        "SmolVLMProcessor",
        image_processor=pictures,
        tokenizer=words,
        image_seq_len=4,
        chat_template=template("<image>"),
    )


def qwen2_5_vl() -> tuple[Any, Any]:
    words = tokenizer(
        {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        }
    )
    config = tf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 48,
            "patch_size": 8,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        text_config={
            **TEXT,
            "vocab_size": WORDS_KNOWN,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2]},
        },
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        vision_start_token_id=words.vision_start_token_id,
        vision_end_token_id=words.vision_end_token_id,
    )
    pictures = image_processor(
        "qwen2_vl",
        "Qwen2VLImageProcessorPil",
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        patch_size=8,
    )
    return config, pictures_only(
        "Qwen2_5_VLProcessor",
        image_processor=pictures,
        tokenizer=words,
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )


def paligemma() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>"})
    config = tf.PaliGemmaConfig(
        vision_config=siglip(projection_dim=48),
        text_config=llama(
            tf.Gemma2Config,
            num_hidden_layers=2,
            head_dim=12,
            sliding_window=16,
            final_logit_softcapping=5.0,
        ),
        image_token_index=words.image_token_id,
        projection_dim=48,
    )
    pictures = image_processor("siglip", "SiglipImageProcessorPil", size=PIXELS)
    pictures.image_seq_length = 9
    return config, tf.PaliGemmaProcessor(pictures, words)


def gemma3() -> tuple[Any, Any]:
    words = tokenizer(
        {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        }
    )
    config = tf.Gemma3Config(
        vision_config=siglip(image_size=32),
        text_config=llama(tf.Gemma3TextConfig, head_dim=12, num_hidden_layers=3, sliding_window=8),
        image_token_index=words.image_token_id,
        mm_tokens_per_image=4,
    )
    config.text_config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    pictures = image_processor(
        "gemma3", "Gemma3ImageProcessorPil", size={"height": 32, "width": 32}
    )
    return config, tf.Gemma3Processor(
        pictures, words, image_seq_length=4, chat_template=template("<start_of_image>")
    )


def qformer(config: Any) -> Any:
    return config(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        encoder_hidden_size=32,
        vocab_size=WORDS_KNOWN,
        initializer_range=0.2,
    )


def instructblip() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>"})
    vision = {key: value for key, value in VISION.items() if key != "initializer_range"}
    config = tf.InstructBlipConfig(
        vision_config=tf.InstructBlipVisionConfig(**vision),
        qformer_config=qformer(tf.InstructBlipQFormerConfig),
        text_config=llama(),
        num_query_tokens=4,
        image_token_index=words.image_token_id,
    )
    pictures = image_processor("blip", "BlipImageProcessorPil", size=PIXELS)
    reader = tokenizer({})
    return config, tf.InstructBlipProcessor(pictures, words, reader, num_query_tokens=4)


def blip2() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>"})
    config = tf.Blip2Config(
        vision_config=tf.Blip2VisionConfig(**VISION),
        qformer_config=qformer(tf.Blip2QFormerConfig),
        text_config=tf.OPTConfig(
            vocab_size=WORDS_KNOWN,
            hidden_size=48,
            word_embed_proj_dim=48,
            ffn_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            init_std=0.1,
            dropout=0.0,
        ),
        num_query_tokens=4,
        image_token_index=words.image_token_id,
    )
    pictures = image_processor("blip", "BlipImageProcessorPil", size=PIXELS)
    return config, tf.Blip2Processor(pictures, words, num_query_tokens=4)


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "smolvlm": smolvlm,
    "qwen2_5_vl": qwen2_5_vl,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "instructblip": instructblip,
    "blip-2": blip2,
}


def write(family: str, folder: Path, seed: int = 0, shard_size: str = "100KB") -> Path:
    """Write a random checkpoint of `family`, several shards, with its processor."""
    if family == "llava":
        return write_checkpoint(folder, seed, shard_size)
    config, processor = MAKERS[family]()
    torch.manual_seed(seed)
    from fednano_flwr.models.families import FAMILIES

    model = FAMILIES[family].model_class(config)
    with torch.no_grad():  # parameters that start as zeros would hide what depends on them
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder, max_shard_size=shard_size)
    processor.save_pretrained(folder)
    return folder
