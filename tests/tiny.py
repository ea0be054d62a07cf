"""Tiny real inputs that tests write for themselves: a LLaVA checkpoint and a ScienceQA folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS = "A B C D E F G H I J Answer with the option's letter from given choices directly".split()
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} {% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
)


def write_checkpoint(
    folder: Path, seed: int = 0, shard_size: str = "100KB", width: int = 48
) -> Path:
    """A random LLaVA of about 90,000 parameters in the hub's format, several shards, processor."""
    vocabulary = ["<pad>", "<unk>", "<image>", "</s>", *WORDS]
    vocabulary += [f"w{i}" for i in range(64 - len(vocabulary))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace(Regex(r"[?.,]"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    processor = LlavaProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, do_center_crop=True
        ),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            unk_token="<unk>",
            eos_token="</s>",
            extra_special_tokens={"image_token": "<image>"},
        ),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=24,
            patch_size=8,
            projection_dim=32,
        ),
        text_config=LlamaConfig(
            vocab_size=64,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            initializer_range=0.2,
        ),
        image_token_id=2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder, max_shard_size=shard_size)
    processor.save_pretrained(folder)
    return folder


def write_scienceqa(folder: Path, train: int = 60, test: int = 24, seed: int = 0) -> Path:
    """Random questions in ScienceQA's layout: three topics, every second one with a picture."""
    rng = np.random.default_rng(seed)
    problems, splits = {}, {"train": [], "test": []}
    for pid in range(train + test):
        split = "train" if pid < train else "test"
        choices = [f"w{rng.integers(20, 49)}" for _ in range(rng.integers(2, 5))]
        picture = pid % 2 == 0
        problems[str(pid)] = {
            "question": " ".join(f"w{i}" for i in rng.integers(20, 49, rng.integers(3, 9))) + "?",
            "choices": choices,
            "answer": int(rng.integers(len(choices))),
            "hint": "",
            "image": "image.png" if picture else None,
            "task": "closed choice",
            "grade": "grade2",
            "subject": "natural science",
            "topic": f"topic{pid % 3}",
            "category": "c",
            "skill": "s",
            "lecture": "",
            "solution": "",
            "split": split,
        }
        splits[split].append(str(pid))
        if picture:
            file = folder / "images" / split / str(pid) / "image.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)).save(file)
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    return folder
