"""Dialogues through chat templates of several kinds, with tokenizers that split words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from fednano_flwr.data.errors import SampleError
from fednano_flwr.data.images import open_image
from fednano_flwr.data.sample import Place, Sample, Turn
from fednano_flwr.edge.prompting import LEARNED, Prompting
from fednano_flwr.models.families import FAMILIES
from fednano_flwr.models.processor import load_processor
from tests.models.test_families import picture

SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"]
TEXTS = ["a dog sits on the bench", "What is in the image?", "ASSISTANT: USER: system user"] * 9
PARTS = "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n" + PARTS + "{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLONS = (  # a turn's pictures first, no end of a turn
    "{% for m in messages %}{{ m.role | upper }}: "
    "{% for c in m.content if c.type == 'image' %}<image>\n{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TRIMMED = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}<image>"
    "{% else %}{{ c.text | trim }}{% endif %}{% endfor %} </s>\n{% endfor %}assistant\n"
)
NO_THOUGHTS = CHATML.replace("{{ c.text }}", "{{ c.text.split('</think>')[-1].lstrip('\n') }}")
LAST_TURN = "{% set messages = messages[-1:] %}" + CHATML
TEMPLATES = {"chatml": CHATML, "colons": COLONS, "trimmed": TRIMMED}


def byte_level() -> Tokenizer:
    text = Tokenizer(models.BPE())
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return text


def pieces(spaces: Callable[[Tokenizer], None]) -> Tokenizer:
    """As SentencePiece makes them, with bytes for characters that it does not know."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    import json

    model = json.loads(trained.to_str())["model"]
    vocabulary = {token: n for n, token in enumerate(["<unk>", *tokens])}
    for token in model["vocab"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge) for merge in model["merges"]]
    text = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    text.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    spaces(text)
    return text


def legacy(text: Tokenizer) -> None:
    text.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )


def at_first(text: Tokenizer) -> None:
    text.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": byte_level,
    "pieces": lambda: pieces(legacy),
    "pieces at first": lambda: pieces(at_first),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS[request.param](),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[4:]})
    return fast


@pytest.fixture
def prompting(tokenizer: Any, tiny_model: Any) -> Callable[[str], Prompting]:
    def make(template: str) -> Prompting:
        whole = load_processor(tiny_model)
        processor = LlavaProcessor(
            whole.image_processor,
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=template,
        )
        ends = tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])
        return Prompting(FAMILIES["llava"], processor, [tokenizer.image_token_id], ends)

    return make


def dialogue(*turns: tuple[str, Any]) -> Sample:
    own = tuple(Turn(role, (parts,) if isinstance(parts, str) else parts) for role, parts in turns)
    count = sum(len(turn.places) for turn in own)
    images = tuple(picture(n, 24, 24) for n in range(count))
    return Sample("d", own[-1].text, "g", "s", turns=own, images=images, free_answer="a dog")


THREE = dialogue(
    ("user", (Place.PICTURE, "What is in the image?")),
    ("assistant", "a dog, zzq"),
    ("user", "What is on the bench? "),
    ("assistant", " A dog sits \n"),
    ("user", ("And here? ", Place.PICTURE, " is it a dog?")),
)


def tensors(prompting: Prompting, sample: Sample) -> dict[str, torch.Tensor]:
    return prompting.tensors(prompting.write(sample), [open_image(p) for p in sample.pictures])


def runs(tokenizer: Any, found: dict[str, torch.Tensor]) -> list[str]:
    """Texts of the learned tokens that follow one another."""
    texts: list[list[int]] = []
    for place, index in enumerate(found[LEARNED][0].nonzero().squeeze(1).tolist()):
        if not place or not found[LEARNED][0, index - 1]:
            texts.append([])
        texts[-1].append(int(found["input_ids"][0, index]))
    return [tokenizer.decode(text) for text in texts]


@pytest.mark.parametrize(
    ("template", "ends"), [("chatml", "<|im_end|>"), ("colons", ""), ("trimmed", "</s>")]
)
def test_each_earlier_answer_is_learned_with_its_end_and_nothing_else(
    prompting: Callable[[str], Prompting], tokenizer: Any, template: str, ends: str
) -> None:
    found = tensors(prompting(TEMPLATES[template]), THREE)
    said = runs(tokenizer, found)
    spoken = [text.removesuffix(ends).strip() for text in said]
    assert spoken == ["a dog, zzq", "A dog sits"]
    assert all(text.endswith(ends) for text in said)
    assert found["input_ids"].shape == found[LEARNED].shape
    assert not (found["input_ids"][found[LEARNED]] == tokenizer.image_token_id).any()


@pytest.mark.parametrize("template", TEMPLATES)
def test_marks_change_no_token(
    prompting: Callable[[str], Prompting], tokenizer: Any, template: str
) -> None:
    made = prompting(TEMPLATES[template])
    plain = made._written([{**turn} for turn in _turns(THREE)])
    pictures = [open_image(one) for one in THREE.pictures]
    expected = made._family.tensors(made._processor, plain, pictures)
    assert torch.equal(tensors(made, THREE)["input_ids"], expected["input_ids"])


def _turns(sample: Sample) -> list[dict[str, Any]]:
    from fednano_flwr.data.prompts import conversation

    return conversation(sample)


TYPED = [token for token in SPECIAL if token != "<unk>"]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("token", TYPED)
def test_a_token_of_the_template_that_a_user_typed_stays_text(
    prompting: Callable[[str], Prompting], tokenizer: Any, template: str, token: str
) -> None:
    def sample(word: str) -> Sample:
        return dialogue(
            ("user", (f"a {word} dog{word}sits ", Place.PICTURE)),
            ("assistant", f"on {word} the bench{word}"),
            ("user", f"{word}What?{word} "),
        )

    made = prompting(TEMPLATES[template])
    typed, other = (tensors(made, sample(word))["input_ids"][0] for word in (token, "dog"))
    control = tokenizer.convert_tokens_to_ids(SPECIAL[1:])
    for one in control:
        assert (typed == one).sum() == (other == one).sum()
    text = tokenizer.decode(typed)
    assert text.count(token) - tokenizer.decode(other).count(token) == 6
    said = runs(tokenizer, tensors(made, sample(token)))
    assert said[0].strip().startswith(f"on {token} the bench{token}")


@pytest.mark.parametrize(
    ("template", "turns", "reason"),
    [
        (TRIMMED, [("system", "be short"), ("user", "What?")], "no system role"),
        (LAST_TURN, [("user", "What?"), ("assistant", "a dog"), ("user", "is it?")], "user turn"),
        (
            NO_THOUGHTS,
            [("user", "What?"), ("assistant", "<think>a</think>\na dog"), ("user", "is it?")],
            "assistant turn",
        ),
        (
            CHATML.replace("{% for c", "{% if m.role != 'system' %}{% for c").replace(
                "{% endfor %}<|im_end|>", "{% endfor %}{% endif %}<|im_end|>"
            ),
            [("system", "be short"), ("user", "What?")],
            "system turn",
        ),
        (
            CHATML.replace("{{ c.text }}", "{{ c.text.replace('dog', 'cat') }}"),
            [("user", "What?"), ("assistant", "a dog"), ("user", "is it?")],
            "assistant turn",
        ),
        (CHATML, [("user", "What?"), ("assistant", " "), ("user", "is it?")], "no token"),
        (CHATML, [("user", "What\U000f0ff0?")], "private use"),
    ],
)
def test_a_dialogue_that_its_template_changes_is_left_out(
    prompting: Callable[[str], Prompting], template: str, turns: Any, reason: str
) -> None:
    with pytest.raises(Exception, match=reason):
        tensors(prompting(template), dialogue(*turns))


def test_a_picture_stays_where_it_stands_in_its_turn(
    prompting: Callable[[str], Prompting],
) -> None:
    written = prompting(COLONS).write(THREE)
    assert "USER: And here? <image> is it a dog? ASSISTANT:" in written
    assert written.startswith("USER: <image>\nWhat is in the image? ASSISTANT:")


def test_a_tokenizer_that_does_not_say_where_its_tokens_stand_leaves_dialogues_out(
    prompting: Callable[[str], Prompting], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prompting(CHATML)
    call = type(made._processor.tokenizer).__call__

    def slow(self: Any, *args: Any, **options: Any) -> Any:
        if options.get("return_offsets_mapping"):
            raise NotImplementedError("return_offset_mapping is not available")
        return call(self, *args, **options)

    monkeypatch.setattr(type(made._processor.tokenizer), "__call__", slow)
    assert "input_ids" in tensors(made, dialogue(("user", "What?")))
    with pytest.raises(NotImplementedError):
        tensors(made, THREE)


def test_a_token_that_holds_more_than_an_earlier_answer_is_never_learned(
    prompting: Callable[[str], Prompting], tokenizer: Any
) -> None:
    glued = CHATML.replace("{{ m.role }}\n", "the ben").replace("<|im_end|>", "bench")
    sample = dialogue(("user", "What?"), ("assistant", "ch"), ("user", "a dog"))
    with pytest.raises(SampleError, match="holds text of the chat template"):
        tensors(prompting(glued), sample)
