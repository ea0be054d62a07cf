"""Processor, tokenizer and config that do not fit together, found before anything is started."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from flwr.serverapp import Grid

from fednano_flwr import preflight
from fednano_flwr.cli.split import split
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.data.sample import Sample
from fednano_flwr.edge.client import Client
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.shard import ClientSpec
from fednano_flwr.in_process import run_in_process
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.server_app import federate
from tests.families import base
from tests.models.test_families import SAMPLES

Change = Callable[[Path], object]
BEGIN = {"id": "<s>", "ids": [3], "tokens": ["<s>"]}
END = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
PROMPT = {"Sequence": {"id": "A", "type_id": 0}}


def edit(file: str, **changes: Any) -> Change:
    """Set keys of a JSON file, of an object in it with `object__key`; ... takes one out."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        for key, value in changes.items():
            *path, last = key.split("__")
            owner = content
            for name in path:
                owner = owner[name]
            if value is ...:
                del owner[last]
            else:
                owner[last] = value
        (folder / file).write_text(json.dumps(content))

    return change


def template(text: str) -> Change:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def without(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def around(*pieces: dict[str, Any]) -> Change:
    """What the tokenizer writes before and after a text."""
    special = [piece for piece in pieces if piece is not PROMPT]
    single = [p if p is PROMPT else {"SpecialToken": {"id": p["id"], "type_id": 0}} for p in pieces]
    processor = {"type": "TemplateProcessing", "single": single, "pair": []}
    return edit(
        "tokenizer.json",
        post_processor=processor | {"special_tokens": {piece["id"]: piece for piece in special}},
    )


WRITTEN = base.template("<image>")
PROCESSOR, TOKENIZER, CONFIG = "processor_config.json", "tokenizer_config.json", "config.json"
ONE_MORE = {"image_token": "<image>", "a": "<|assistant|>"}
PLAIN = "{% for m in messages %}USER: {{ m['content'] }} ASSISTANT:{% endfor %}"
UNFIT: list[tuple[str, str, str, *tuple[Change, ...]]] = [
    # what, family, key or number that is named, changes
    ("patch size missing", "llava", r"patch_size is missing \(8", edit(PROCESSOR, patch_size=...)),
    (
        "class token forgotten",
        "llava",
        r"9 .* 8: .*num_additional_image_tokens is missing",
        edit(PROCESSOR, num_additional_image_tokens=...),
    ),
    (
        "another selection of features",
        "llava",
        r"vision_feature_select_strategy = 'full' \('default'",
        edit(PROCESSOR, vision_feature_select_strategy="full"),
    ),
    ("other places", "internvl", "image_seq_length = 5", edit(PROCESSOR, image_seq_length=5)),
    ("other tiles", "aya_vision", "img_size = 48", edit(PROCESSOR, img_size=48)),
    (
        "patches that are not merged",
        "mistral3",
        r"size = 1 \(2",
        edit(PROCESSOR, spatial_merge_size=1),
    ),
    ("other places between marks", "ovis2", "length = 5", edit(PROCESSOR, image_seq_length=5)),
    ("other queries", "blip-2", r"num_query_tokens = 6 \(4", edit(PROCESSOR, num_query_tokens=6)),
    (
        "another image token",
        "llava",
        "image_token_id .*60 .*<image>, 2",
        edit(CONFIG, image_token_index=60, image_token_id=60),
    ),
    (
        "another token where features go",
        "aya_vision",
        r"image_token_id .* 9 of .*<\|IMG_PATCH\|>",
        edit(CONFIG, image_token_index=9, image_token_id=9),
    ),
    (
        "pictures of another size",
        "llava",
        r"vision_config.*processor_config\.json.*32\*32",
        edit(PROCESSOR, image_processor__crop_size={"height": 32, "width": 32}),
    ),
    (
        "pictures cut into other pieces",
        "llava_onevision",
        r"image_grid_pinpoints = \[\[24, 24\], \[24, 96\]\] \(\[\[24, 24\], \[24, 48\]",
        edit(PROCESSOR, image_processor__image_grid_pinpoints=[[24, 24], [24, 96]]),
    ),
    ("no beginning", "paligemma", "bos_token", edit(TOKENIZER, bos_token=...)),
    (
        "another family's processor",
        "qwen2_5_vl",
        "LlavaProcessor.*Qwen2_5_VLProcessor",
        edit(PROCESSOR, processor_class="LlavaProcessor"),
    ),
    ("a smaller table", "llava_next", "96 .*70 rows", edit(CONFIG, text_config__vocab_size=70)),
    (
        "a smaller table of the Q-Former",
        "instructblip",
        r"qformer_tokenizer .*20 rows",
        edit(CONFIG, qformer_config__vocab_size=20),
    ),
    ("no end", "llava", "eos_token", edit(TOKENIZER, eos_token=...)),
    ("an end beyond the table", "llava", "eos_token.*64.*64", edit(TOKENIZER, eos_token="<|end|>")),
    (
        "ends that are no tokens",
        "llava",
        r"generation_config\.json.*eos_token_id",
        edit("generation_config.json", eos_token_id=["</s>"]),
    ),
    (
        "a word of the template beyond the table",
        "llava",
        r"token 64 \(<\|assistant\|>\)",
        template(WRITTEN + "<|assistant|>"),
        edit(TOKENIZER, extra_special_tokens=ONE_MORE),
    ),
    ("an end after the prompt", "llava_next", "</s>.*add_eos_token", around(BEGIN, PROMPT, END)),
    (
        "a beginning that is written twice",
        "llava_next",
        "<s>.*bos_token",
        template("\n<s> " + WRITTEN),
        around(BEGIN, PROMPT),
    ),
    ("no template", "llava", "chat template", without("chat_template.jinja")),
    ("a template for plain text", "llava", "plain text", template(PLAIN)),
    ("no picture", "llava", "<image> 1 times", template(base.template(""))),
    ("a template that fails", "llava", "no turns", template("{{ raise_exception('no turns') }}")),
    (
        "today's date",
        "llava",
        "strftime_now",
        template("{{ strftime_now('%d %b %Y') }} " + WRITTEN),
    ),
    (
        "the Q-Former's tokenizer missing",
        "instructblip",
        r"qformer_tokenizer/tokenizer\.json",
        without("qformer_tokenizer/tokenizer.json"),
    ),
]


@pytest.mark.parametrize("case", UNFIT, ids=lambda case: case[0])
def test_what_does_not_fit_is_refused_with_file_and_key(
    family_folder: Callable[[str], Path], tmp_path: Path, case: Any
) -> None:
    _, family, named, *changes = case
    folder = shutil.copytree(family_folder(family), tmp_path / "model")
    for change in changes:
        change(folder)
    with pytest.raises(ConfigError, match=f"(?s){named}"):
        load_encoder(ModelCheckpoint(str(folder)))


@pytest.fixture
def unfit(tiny_model: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(tiny_model, tmp_path / "unfit")
    edit(PROCESSOR, num_additional_image_tokens=...)(folder)
    return folder


def test_everybody_refuses_it_before_a_weight_is_read(
    unfit: Path, tmp_path: Path, run_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(*args: object, **kwargs: object) -> Any:
        raise AssertionError("a weight is read")

    for name in ("read", "rows", "fill"):
        monkeypatch.setattr(ModelCheckpoint, name, weights)
    config = RunConfig.parse(run_config(model__name=str(unfit)))
    by_all = {
        "fednano run": lambda: preflight.validate(config),
        "the ServerApp": lambda: federate(cast(Grid, None), 1, config),
        "a run in this process": lambda: run_in_process(config, 2),
        "a client": lambda: Client(config, ClientSpec()),
        "split": lambda: split(str(unfit), tmp_path / "bundle", shard=None, dtype=None),
    }
    for who, refuse in by_all.items():
        with pytest.raises(ConfigError) as error:
            refuse()
        assert "num_additional_image_tokens is missing" in str(error.value), who
    left = {path.name for path in tmp_path.iterdir()} - {"unfit", "features", "state"}
    assert not left, left  # no run folder, no bundle


def test_a_server_may_hold_a_model_without_its_processor_and_a_client_not(
    tiny_model: Path, tmp_path: Path, run_config: Callable[..., Any]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for file in ("processor_config.json", "tokenizer_config.json"):
        (folder / file).unlink()
    config = RunConfig.parse(run_config(model__name=str(folder)))
    preflight.check_all(preflight.server_checks(config))
    with pytest.raises(ConfigError, match="processor"):
        preflight.check_all(preflight.client_files(config))


CUT = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
SAVED: dict[str, Change] = {
    "cut": edit("tokenizer.json", truncation=CUT),
    "cut, by its config": edit(TOKENIZER, truncation=True, max_length=16),
    "padded": edit(TOKENIZER, padding="max_length", max_length=128, padding_side="left"),
}


@pytest.mark.parametrize("family", ["llava", "paligemma", "blip-2", "instructblip"])
def test_a_tokenizer_saved_with_a_length_changes_no_prompt(
    family_folder: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    long = Sample("l", "w20 " * 40, "g", "s", free_answer="w21")
    samples = (SAMPLES[0], SAMPLES[2], long)
    expected = [
        load_encoder(ModelCheckpoint(str(family_folder(family)))).encode(s) for s in samples
    ]
    for name, change in SAVED.items():
        folder = shutil.copytree(family_folder(family), tmp_path / name)
        change(folder)
        encoder = load_encoder(ModelCheckpoint(str(folder)))
        for sample, question in zip(samples, expected, strict=True):
            found = encoder.encode(sample)
            assert torch.equal(found.ids, question.ids) and found.answer == question.answer, name
    assert len(expected[2].ids) > 40


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_template_that_is_only_the_tokenizers_is_the_models(
    family_folder: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    folder = shutil.copytree(family_folder(family), tmp_path / "model")
    file = folder / "chat_template.jinja"
    edit(TOKENIZER, chat_template=file.read_text())(folder)
    file.unlink()
    encoders = [
        load_encoder(ModelCheckpoint(str(place))) for place in (folder, family_folder(family))
    ]
    for sample in SAMPLES[:3]:
        moved, expected = (encoder.encode(sample).ids for encoder in encoders)
        assert torch.equal(moved, expected)


def test_a_date_that_is_only_written_for_tools_is_none(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    text = (folder / "chat_template.jinja").read_text()
    template("{% if tools %}{{ strftime_now('%d') }}{% endif %}" + text)(folder)
    load_encoder(ModelCheckpoint(str(folder)))
