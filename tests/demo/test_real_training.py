import re
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from fednano_demo.real import pretrain, smollm2
from fednano_demo.real.answers import Writer, answer_losses
from fednano_demo.real.descriptions import Descriptions
from fednano_demo.real.easy import (
    ANSWERS,
    COLOURS,
    KINDS,
    SHAPES,
    by_picture,
    read_pictures,
    read_questions,
    write_dataset,
)
from fednano_demo.real.network import build_model, load_trained, trained_state
from fednano_demo.real.pictures import Pictures, open_pictures
from fednano_demo.real.processor import IMAGE, IMAGE_TOKENS, build_processor
from fednano_demo.real.sheets import Asked, collate, lay_out
from fednano_demo.real.training import Recipe
from fednano_flwr.data.images import open_image
from fednano_flwr.data.prompts import conversation
from tests.demo.real_parts import tiny_llm

TINY = Recipe(
    word_steps=2,
    picture_steps=2,
    picture_batch=4,
    answer_steps=2,
    pictures=2,
    held_out=3990,
    validated=2,
    validate_every=1,
    tested=3,
)


def test_answers_side_by_side_have_the_loss_that_each_has_alone():
    llm, tokenizer = tiny_llm()
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    model = build_model(llm, image)
    features = torch.randn(2, IMAGE_TOKENS, 24)
    opening = [5, 6, *[image] * IMAGE_TOKENS]
    first = [Asked([7, 8, 9], [[10, 11, 2], [12, 2]]), Asked([13, 14], [[15, 2]])]
    second = [Asked([9, 20], [[21, 22, 23, 2]])]
    batch = collate([lay_out(opening, first), lay_out(opening, second)])
    together = answer_losses(model, image, features, batch)

    alone = []
    for seen, asked in zip(features, (first, second), strict=True):
        for question in asked:
            for answer in question.answers:
                ids = torch.tensor([[*opening, *question.ids, *answer]])
                embeddings = model.get_input_embeddings()(ids)
                embeddings[0, 2 : 2 + IMAGE_TOKENS] = seen
                logits = llm(inputs_embeds=embeddings).logits[0, -len(answer) - 1 : -1]
                alone.append(cross_entropy(logits, torch.tensor(answer), reduction="sum"))
    torch.testing.assert_close(together, torch.stack(alone))


def test_a_sheet_has_the_tokens_that_the_processor_makes_of_each_question():
    processor = build_processor(tiny_llm()[1])
    number, own = next(iter(by_picture(read_questions("train")).items()))
    picture = read_pictures("train")[number]
    for listed in (False, True):
        sheet = Writer(processor).sheet([(own[0], listed)], every=False)
        sample = own[0].sample(picture, listed)
        prompt = processor.apply_chat_template(conversation(sample), add_generation_prompt=True)
        whole = processor(images=[open_image(sample.images[0])], text=prompt)["input_ids"][0]
        answer = processor.tokenizer.encode(own[0].answer)
        assert sheet.ids.tolist() == [*whole, *answer]
        assert sheet.targets.tolist() == [*answer, processor.tokenizer.eos_token_id]


@pytest.mark.parametrize("split", ["train", "test"])
def test_questions_never_tell_two_things_of_one_picture(split: str) -> None:
    unlabelled = 0
    pictures = by_picture(read_questions(split))
    for own in pictures.values():
        told = set().union(*(question.told for question in own))
        assert len(told & set(SHAPES)) <= 1 and len(told & set(COLOURS)) <= 1
        unlabelled += len(told) < 2
    assert unlabelled / len(pictures) < 0.15  # these teach nothing of what they show


@pytest.mark.parametrize("count", [0, -5, 38576])
def test_more_questions_than_there_are_or_none_are_refused(tmp_path: Path, count: int):
    with pytest.raises(ValueError, match="38,575"):
        write_dataset(tmp_path, train=count)


def test_each_question_has_a_kind_and_one_of_the_answers():
    questions = read_questions("train")
    assert len(questions) == 38575 and {question.answer for question in questions} == set(ANSWERS)
    kinds = Counter(question.kind for question in questions)
    assert set(kinds) == set(KINDS)
    assert kinds[KINDS[2]] + kinds[KINDS[3]] == 28407


def test_patches_are_labelled_by_what_they_show():
    questions, files = by_picture(read_questions("train")), read_pictures("train")
    numbers = [1, 3, 6]  # a blue triangle, a brown rectangle, a red circle
    pictures = open_pictures([files[n] for n in numbers], [questions[n] for n in numbers])
    shown = pictures.shown.sum(1)
    assert (shown > 0).all() and (shown < IMAGE_TOKENS).all()
    told = [(SHAPES[s], COLOURS[c]) for s, c in zip(pictures.shapes, pictures.colours, strict=True)]
    assert told == [("triangle", "blue"), ("rectangle", "brown"), ("circle", "red")]


def test_a_turned_picture_shows_the_same_where_it_has_gone():
    shown = torch.rand(5, IMAGE_TOKENS, generator=torch.Generator().manual_seed(0)) > 0.5
    pixels = shown.view(5, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3).float()
    pictures = Pictures(pixels, torch.arange(5), torch.arange(5), shown)
    turned = [pictures.turned(way) for way in range(8)]
    assert all(
        torch.equal(one.pixels[:, 0, 8::16, 8::16].flatten(1) > 0, one.shown) for one in turned
    )
    assert len({tuple(one.shown.flatten().tolist()) for one in turned}) == 8
    assert turned[0].of(torch.tensor([3, 1])).shapes.tolist() == [3, 1]


def test_features_are_nearest_to_those_of_their_own_picture():
    number = defaultdict(lambda: len(number))
    tokens = SimpleNamespace(encode=lambda text: [number[w] for w in re.findall(r"\w+|\W", text)])
    embeddings = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    words = Descriptions(embeddings, tokens)
    table = words().detach()
    assert table.shape == (24, IMAGE_TOKENS, 24)
    assert table[0, 0].allclose(embeddings[number["The"]])
    pictures = Pictures(
        torch.empty(3), torch.tensor([0, 2, -100]), torch.tensor([1, 7, 3]), torch.empty(3)
    )
    assert pictures.named.tolist() == [1, 23, -100]
    right = table[[1, 23, 3]]
    assert words.loss(right, pictures) < 0.1
    wrong = table[[1, 22, 3]]
    assert words.loss(wrong, pictures) > words.loss(right, pictures) + 1
    untold = torch.cat([right[:2], torch.zeros_like(right[:1])])
    assert words.loss(untold, pictures) == words.loss(right, pictures)


def test_pretraining_writes_weights_that_can_be_built_and_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "read_llm", lambda wheel: tiny_llm())
    facts = pretrain.pretrain(Path("none"), tmp_path, 0, TINY)
    assert sum(facts.asked.values()) == sum(len(own) for own in _first_test_pictures(3))
    assert [step for step, *_ in facts.validation] == [step for step, _ in facts.words] == [0, 1, 2]
    llm, tokenizer = tiny_llm()
    model = build_model(llm, tokenizer.convert_tokens_to_ids(IMAGE))
    before = {name: weight.clone() for name, weight in trained_state(model).items()}
    load_trained(model, load_file(tmp_path / "model.safetensors"))
    assert any(not torch.equal(before[n], w) for n, w in trained_state(model).items())
    assert "| is it not there |" in (tmp_path / "README.md").read_text("utf-8")


def _first_test_pictures(count: int) -> list[list]:
    return [own for _, own in sorted(by_picture(read_questions("test")).items())][:count]
