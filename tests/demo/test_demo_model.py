import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from fednano_demo import MODEL_DIR
from fednano_demo.encode import LETTER_IDS, collate, encode, pixel_values
from fednano_demo.evaluate import accuracy_by_skill, mean_accuracy
from fednano_demo.processor import build_processor
from fednano_demo.questions import BASE, DOWNSTREAM, draw_questions
from fednano_demo.skills import IMAGE_SKILLS, TEXT_SKILLS
from fednano_flwr.data.prompts import LETTERS, conversation, user_text
from fednano_flwr.data.sample import Picture, Sample

SKILLS = (*IMAGE_SKILLS, *TEXT_SKILLS)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(MODEL_DIR, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return LlavaForConditionalGeneration.from_pretrained(MODEL_DIR, local_files_only=True).eval()


def prompt_of(processor, sample: Sample) -> str:
    return processor.apply_chat_template(conversation(sample), add_generation_prompt=True)


def sample_of(question, picture_file) -> Sample:
    sample = question.sample()
    if question.picture is None:
        return sample
    return dataclasses.replace(sample, images=(Picture(picture_file),))


@pytest.mark.parametrize("shift", [BASE, DOWNSTREAM])
def test_processor_gives_what_the_model_was_trained_on(processor, tmp_path, shift):
    for question in draw_questions(SKILLS, 60, np.random.default_rng(0), shift):
        sample = sample_of(question, tmp_path / "image.png")
        images = None
        if question.picture is not None:
            Image.fromarray(question.picture).save(tmp_path / "image.png")
            images = [Image.open(tmp_path / "image.png")]
        inputs = processor(text=prompt_of(processor, sample), images=images, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == encode(question).ids
        if question.picture is not None:
            fast = pixel_values([question.picture])
            torch.testing.assert_close(inputs["pixel_values"], fast, rtol=0, atol=1e-6)


def test_shipped_processor_is_the_one_the_code_builds(processor):
    built = build_processor()
    assert processor.tokenizer.get_vocab() == built.tokenizer.get_vocab()
    assert processor.chat_template == built.chat_template
    assert processor.image_processor.to_dict() == built.image_processor.to_dict()


def test_letters_are_single_tokens(processor):
    ids = processor.tokenizer(list(LETTERS), add_special_tokens=False)["input_ids"]
    assert ids == [[index] for index in LETTER_IDS.tolist()]


def test_unknown_words_become_unk(processor):
    sample = Sample(
        "",
        "Quel état est situé au nord—«vraiment»?",
        group="geography",
        subject="geography",
        choices=("Zürich (CH)", "東京"),
        answer=0,
    )
    ids = processor(text=prompt_of(processor, sample), return_tensors="pt")["input_ids"][0].tolist()
    unknown = processor.tokenizer.unk_token_id
    a, b = LETTER_IDS[:2].tolist()
    answer = processor.tokenizer.convert_tokens_to_ids("Answer")
    assert ids == [unknown] * 6 + [a, unknown, unknown, b, unknown, answer]


def test_prompt_keeps_the_pinned_wording(processor):
    (question,) = draw_questions(("counting",), 1, np.random.default_rng(0))
    sample = question.sample()
    assert user_text(sample) in prompt_of(processor, sample)


def test_shipped_weights_answer_base_questions_and_struggle_with_the_shift(model):
    torch.manual_seed(0)
    fresh, shifted = (
        accuracy_by_skill(model, draw_questions(SKILLS, 300, np.random.default_rng(77), shift))
        for shift in (BASE, DOWNSTREAM)
    )
    assert mean_accuracy(fresh, IMAGE_SKILLS) >= 0.93
    assert 0.38 < mean_accuracy(shifted, SKILLS) < 0.75


def test_generate_says_the_right_letter(model, processor, tmp_path):
    questions = draw_questions(IMAGE_SKILLS, 26, np.random.default_rng(5))
    texts, images = [], []
    for question in questions:
        texts.append(prompt_of(processor, sample_of(question, tmp_path / "image.png")))
        images.append(Image.fromarray(question.picture))
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    said = processor.batch_decode(output[:, -1:])
    right = [word == LETTERS[q.answer] for word, q in zip(said, questions, strict=True)]
    assert sum(right) >= 23


def test_right_padding_changes_no_answer(model):
    questions = draw_questions(SKILLS, 15, np.random.default_rng(6))
    encoded = [encode(question) for question in questions]
    batch = collate(questions, encoded)
    with torch.no_grad():
        together = model.model(input_ids=batch.ids, pixel_values=batch.pixels).last_hidden_state
        for row, question in enumerate(questions):
            one = collate([question], [encoded[row]])
            alone = model.model(input_ids=one.ids, pixel_values=one.pixels).last_hidden_state
            last = len(encoded[row].ids) - 1
            torch.testing.assert_close(together[row, last], alone[0, last], rtol=1e-4, atol=1e-4)
