"""Where pictures stand in the prompt of each family."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from fednano_flwr.config import ConfigError
from fednano_flwr.data.sample import Sample
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.prompting import Prompting
from fednano_flwr.edge.questions import used_tokens
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.families import FAMILIES
from fednano_flwr.models.processor import load_processor
from tests.families import every
from tests.models.test_families import SAMPLES, picture, samples_of

OPTIONS = Sample(
    "p",
    "w20",
    "g",
    "s",
    choice_images=(picture(1, 20, 20), picture(2, 20, 20), picture(3, 20, 20)),
    answer=2,
    images=(picture(4, 20, 20),),
)
# The template that LLaVA-1.5 is published with writes a turn's pictures before its texts.
PICTURES_FIRST = (
    "{% for m in messages %}{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}"
    "<image>\n{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ c['text'] }}{% endfor %}{% endfor %} ASSISTANT:"
)


@pytest.fixture(params=every())
def checkpoint(
    request: pytest.FixtureRequest, family_folder: Callable[[str], Path]
) -> ModelCheckpoint:
    return ModelCheckpoint(str(family_folder(request.param)))


def test_each_option_picture_follows_its_letter_in_every_family(
    checkpoint: ModelCheckpoint,
) -> None:
    encoder = load_encoder(checkpoint)
    if "image" not in encoder.placeholders:
        pytest.skip("it sees no pictures")
    image, *_ = encoder.placeholders["image"]
    ids = encoder.encode(OPTIONS).ids.tolist()
    letters = [encoder.processor.tokenizer.convert_tokens_to_ids(x) for x in ("A", "B", "C")]
    places = [ids.index(letter) for letter in letters]
    runs = [ids[a:b].count(image) for a, b in zip([0, *places], [*places, len(ids)], strict=True)]
    assert all(runs) and len(set(runs)) == 1, runs  # four pictures of one size, each in its place


def test_pictures_stay_beside_their_letters_where_the_template_writes_them_first(
    tiny_model: Path,
) -> None:
    processor = load_processor(tiny_model)
    processor.chat_template = PICTURES_FIRST
    written = Prompting(FAMILIES["llava"], processor).write(OPTIONS)
    assert written.startswith("<image>\nw20")
    assert [line for line in written.splitlines() if line[1:2] == "."] == [
        "A. <image>",
        "B. <image>",
        "C. <image>",
    ]
    assert Prompting(FAMILIES["llava"], processor).write(SAMPLES[0]).count("<image>") == 1


def test_a_model_without_a_chat_template_is_refused(tiny_model: Path) -> None:
    processor = load_processor(tiny_model)
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        Prompting(FAMILIES["llava"], processor)


def test_a_first_token_that_the_template_writes_is_not_added_again(tiny_model: Path) -> None:
    processor = load_processor(tiny_model)
    tokenizer = processor.tokenizer
    tokenizer.bos_token = "</s>"
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", tokenizer.bos_token_id)]
    )
    plain = Prompting(FAMILIES["llava"], processor)
    without = plain.tensors(plain.write(SAMPLES[1]), [])["input_ids"][0].tolist()
    processor.chat_template = "</s> " + processor.chat_template
    written = Prompting(FAMILIES["llava"], processor)
    twice = written.tensors(written.write(SAMPLES[1]), [])["input_ids"][0].tolist()
    assert without == twice and without.count(tokenizer.bos_token_id) == 1


def test_a_chats_own_end_ends_an_answer_too(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 9]}')
    assert load_encoder(ModelCheckpoint(str(folder))).ends == {3, 9}


def test_answers_are_a_letter_or_words_and_an_end(checkpoint: ModelCheckpoint) -> None:
    encoder = load_encoder(checkpoint)
    samples = samples_of(encoder)
    choice, free = encoder.encode(samples[0]), encoder.encode(samples[4])
    assert choice.answer == (choice.options[1],) and len(choice.options) == 2
    assert (
        len(free.answer) == encoder.count(" w37 w38 w39") + 1
        and free.answer[-1] == encoder.end
        and free.options == ()
    )
    assert encoder.decode(free.answer) == "w37 w38 w39"
    assert set(used_tokens([choice, free])) == {*choice.ids.tolist(), *free.ids.tolist()} | {
        *choice.answer,
        *free.answer,
    }
