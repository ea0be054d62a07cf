"""Every family: two halves, cut and put together, are the whole model."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor

from fednano_flwr.adapters.site import build_adapters, named_trainable, randomize
from fednano_flwr.config import Adapter, ConfigError
from fednano_flwr.data.sample import Picture, Place, Sample, Turn
from fednano_flwr.edge.client import EXCHANGES
from fednano_flwr.edge.encoder import QuestionEncoder, load_encoder
from fednano_flwr.edge.generation import greedy
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, next_token_labels, teacher_forced
from fednano_flwr.exchange.protocol import IGNORE, LLM, Gradient, Inputs, LLMService, NewTokens
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.jobs import StepJob
from fednano_flwr.models import skeleton
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from tests import families
from tests.families import TINY
from tests.families.mistral3 import pixtral
from tests.models.unsplit import Unsplit, use_plain_experts
from tests.sounds import noise, sound

BATCHES = {
    "all kinds": slice(0, 5),
    "text only": slice(1, 2),
    "several pictures in a prompt": slice(2, 3),
    "one picture": slice(0, 1),
}
# In float32 the whole model is padded where the host pads; padding on the left rounds differently.
SIDES = {"float32": "right", "float64": "left"}
# Relative to the largest value. Where the whole model itself is further from its own float64
# result, a few times that distance is allowed. See also `TinyFamily.tolerance`.
OWN_ROUNDING = 4
TOKENS = 10
"""Of an answer: more than the windows of the tiny sliding layers (Gemma 3: 8)."""


def picture(seed: int, height: int, width: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Picture(data=file.getvalue())


SAMPLES = (
    Sample("0", "w20 w21 ?", "g", "s", ("w22", "w23"), answer=1, images=(picture(0, 40, 30),)),
    Sample("1", "w24 w25 w26", "g", "s", ("w27", "w28", "w29"), answer=0),
    Sample(
        "2",
        "w30 w31",
        "g",
        "s",
        choice_images=(picture(1, 20, 60), picture(2, 32, 32)),
        answer=1,
        images=(picture(3, 24, 24),),
    ),
    Sample("3", "w32 " * 9, "g", "s", ("w33", "w34"), answer=0, images=(picture(4, 64, 20),)),
    Sample("4", "w35 w36", "g", "s", free_answer="w37 w38 w39", images=(picture(5, 30, 30),)),
)


def samples_of(encoder: QuestionEncoder) -> tuple[Sample, ...]:
    """With pictures; to a model that only hears, with sounds in their place."""
    return SAMPLES if "image" in encoder.placeholders else tuple(map(heard_for_seen, SAMPLES))


def for_family(family: str, sample: Sample) -> Sample:
    """The sample; for a family that only hears, with a sound in place of each of its pictures."""
    return sample if "image" in TINY[family].family.modalities else heard_for_seen(sample)


def heard_for_seen(sample: Sample) -> Sample:
    count, length = len(sample.pictures), sum(map(ord, sample.uid))
    sounds = tuple(sound(noise(n, 0.3 + 0.1 * ((length + 2 * n) % 7))) for n in range(count))
    words = tuple(f"w{40 + n}" for n in range(len(sample.choice_images)))
    places = {Place.PICTURE: Place.SOUND}
    turns = tuple(
        Turn(turn.role, tuple(places.get(part, part) for part in turn.parts))  # type: ignore[call-overload]
        for turn in sample.turns
    )
    changes = {"choices": sample.choices or words, "sounds": sounds, "turns": turns}
    return replace(sample, images=(), choice_images=(), **changes)


@dataclass
class Setting:
    family: str
    dtype: str
    whole: Unsplit
    exact: Unsplit
    edge: NanoEdge
    host: FrozenLLM
    questions: list[Question]
    encoder: QuestionEncoder


@pytest.fixture(scope="module", params=families.every())
def checkpoint(request: pytest.FixtureRequest, family_folder: Callable[[str], Path]) -> Path:
    return family_folder(request.param)


@pytest.fixture(scope="module", params=list(SIDES))
def setting(request: pytest.FixtureRequest, checkpoint: Path) -> Setting:
    return make_setting(checkpoint, request.param)


def make_setting(checkpoint: Path, dtype: str) -> Setting:
    source = ModelCheckpoint(str(checkpoint))
    encoder = load_encoder(source)
    frozen = load_edge_half(str(checkpoint), dtype=dtype)
    adapters = build_adapters(48, Adapter(4, 8.0, 0.0, "all"), 3, sites=frozen.sites)
    randomize(adapters, 0.3, seed=4)
    half = load_llm_half(str(checkpoint), dtype=dtype)
    if dtype == "float64":
        use_plain_experts(half.get_submodule("_host"))
    return Setting(
        family=checkpoint.name,
        dtype=dtype,
        whole=Unsplit(checkpoint, checkpoint.name, dtype),
        exact=Unsplit(checkpoint, checkpoint.name, "float64"),
        edge=NanoEdge(frozen, frozen.token_table(), adapters, encoder),
        host=FrozenLLM(half),
        questions=[encoder.encode(sample) for sample in samples_of(encoder)],
        encoder=encoder,
    )


Outcome = tuple[Tensor, float, list[Tensor | None]]


def error(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    assert got.shape == expected.shape and expected.abs().max() > 0
    return float((got - expected).abs().max() / expected.abs().max())


def agree(got: Tensor, expected: Tensor, exact: Tensor, family: str) -> bool:
    """Whether `got` is `expected` but for rounding such as `expected` itself has had."""
    allowed = TINY[family].tolerance
    return error(got, expected) <= max(allowed, OWN_ROUNDING * error(expected, exact))


def unsplit(setting: Setting, whole: Unsplit, chosen: list[Question]) -> Outcome:
    """Logits, loss and adapter gradients of a whole model."""
    adapters = setting.edge.adapters.to(whole.model.dtype)
    adapters.zero_grad(set_to_none=True)
    logits = whole.logits(chosen, setting.encoder, adapters, SIDES[setting.dtype])
    labels = next_token_labels(chosen, IGNORE)
    loss = F.cross_entropy(logits, labels[labels != IGNORE])
    loss.backward()
    return logits.detach(), loss.item(), gradients(setting)


def gradients(setting: Setting) -> list[Tensor | None]:
    parameters = named_trainable(setting.edge.adapters).values()
    found = [parameter.grad for parameter in parameters]
    setting.edge.adapters.zero_grad(set_to_none=True)
    return found


@pytest.fixture(params=["embeddings", "lowrank"])
def exchange(request: pytest.FixtureRequest) -> Callable[[LLMService], LLM]:
    kind = EXCHANGES[request.param]
    return lambda service: kind(service, "server")


@pytest.fixture(params=["in-process", "grpc"])
def llm(
    request: pytest.FixtureRequest, setting: Setting, exchange: Callable[[LLMService], LLM]
) -> Iterator[LLM]:
    if request.param == "in-process":
        yield exchange(setting.host)
    else:
        with serve(setting.host) as address, RemoteLLM(address) as remote:
            yield exchange(remote)


@pytest.mark.parametrize("family", [family for family in TINY if family not in families.CORE])
def test_in_short_a_familys_logits_gradients_and_answers_are_the_whole_models(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    setting = make_setting(family_folder(family), "float32")
    llm = EXCHANGES["lowrank"](setting.host, "server")
    check_logits_and_gradients(setting, llm, setting.questions)
    check_answers(setting, llm)


@pytest.mark.parametrize("kind", EXCHANGES)
def test_pictures_and_sounds_in_one_batch_give_the_whole_models_gradients_and_answers(
    kind: str, family_folder: Callable[[str], Path]
) -> None:
    """In float32: Gemma 4's encoder of sound does not compute in float64."""
    setting = make_setting(family_folder("gemma4"), "float32")
    heard = [heard_for_seen(sample) for sample in SAMPLES]
    both = replace(heard[4], images=SAMPLES[4].images)
    mixed = (*SAMPLES[:3], heard[3], both)
    setting.questions = [setting.encoder.encode(sample) for sample in mixed]
    setting.exact = setting.whole
    llm = EXCHANGES[kind](setting.host, "server")
    check_logits_and_gradients(setting, llm, setting.questions)
    check_answers(setting, llm)
    assert len(setting.edge(setting.questions[4:]).features) == 2


@pytest.mark.parametrize("batch", BATCHES)
def test_halves_give_the_whole_models_logits_and_adapter_gradients(
    setting: Setting, llm: LLM, batch: str
) -> None:
    check_logits_and_gradients(setting, llm, setting.questions[BATCHES[batch]])


def check_logits_and_gradients(setting: Setting, llm: LLM, chosen: list[Question]) -> None:
    exact = unsplit(setting, setting.exact, chosen)
    logits, loss, wanted = unsplit(setting, setting.whole, chosen)
    setting.edge.adapters.to(getattr(torch, setting.dtype))

    labels = next_token_labels(chosen, IGNORE)
    rows = (labels != IGNORE).nonzero().squeeze(1)
    inputs = setting.edge(chosen, teacher_forced(chosen))
    scores = llm.score(inputs, rows, torch.arange(logits.shape[1]))
    expected, best = logits.log_softmax(1), exact[0].log_softmax(1)
    assert agree(scores.to(logits.dtype), expected, best, setting.family)
    losses = llm.token_losses(inputs, rows, labels[rows])
    assert losses.mean().item() == pytest.approx(loss, rel=1e-6)
    split = llm.loss(inputs, labels)
    assert split.item() == pytest.approx(loss, rel=1e-6)
    split.backward()
    for got, theirs, closest in zip(gradients(setting), wanted, exact[2], strict=True):
        if theirs is None or not theirs.any():  # it took no part: a batch without pictures
            assert got is None or not got.any()
        else:
            assert got is not None and closest is not None
            assert agree(got, theirs, closest, setting.family)


@pytest.mark.parametrize("kind", EXCHANGES)
def test_labels_kept_at_the_client_change_no_bit(setting: Setting, kind: str) -> None:
    chosen = setting.questions
    labels = next_token_labels(chosen, IGNORE)
    setting.edge.adapters.to(getattr(torch, setting.dtype))
    found = []
    with serve(setting.host) as address, RemoteLLM(address) as remote:
        for llm in (EXCHANGES[kind](setting.host, "server"), EXCHANGES[kind](remote, "client")):
            loss = llm.loss(setting.edge(chosen, teacher_forced(chosen)), labels)
            loss.backward()
            found.append([loss, *gradients(setting)])
    took_part = [pair for pair in zip(*found, strict=True) if any(one is not None for one in pair)]
    assert len(took_part) >= 5  # the loss and two sites' factors; the batch may lack a third's
    for got, expected in took_part:
        assert got is not None and expected is not None and torch.equal(got, expected)


def test_clients_that_share_a_pass_each_get_the_whole_models_gradients(setting: Setting) -> None:
    """Three clients, of both exchanges and with prompts of unlike lengths."""
    parts = [setting.questions[0:1], setting.questions[1:3], setting.questions[3:5]]
    kinds = ["embeddings", "lowrank", "embeddings"]
    expected = [
        (unsplit(setting, setting.whole, part), unsplit(setting, setting.exact, part))
        for part in parts
    ]
    setting.edge.adapters.to(getattr(torch, setting.dtype))
    batches = [setting.edge(part, teacher_forced(part)) for part in parts]
    setting.host.keep_features(batches[1].features)
    together = Together(setting.host, count=3)
    with ThreadPoolExecutor(3) as pool:
        answers = [
            pool.submit(
                EXCHANGES[kind](together, "server").loss, batch, next_token_labels(part, IGNORE)
            )
            for kind, batch, part in zip(kinds, batches, parts, strict=True)
        ]
        losses = [answer.result() for answer in answers]
    for loss, (whole, exact) in zip(losses, expected, strict=True):
        assert loss.item() == pytest.approx(whole[1], rel=1e-6)
        loss.backward()
        for got, theirs, best in zip(gradients(setting), whole[2], exact[2], strict=True):
            if theirs is None or not theirs.any():
                assert got is None or not got.any()
            else:
                assert got is not None and best is not None
                assert agree(got, theirs, best, setting.family)


class Together:
    """A host that serves the steps of `count` clients in one pass, when all have come."""

    def __init__(self, host: FrozenLLM, count: int) -> None:
        self._host = host
        self._jobs: list[StepJob] = []
        self._all_there = threading.Barrier(count, action=self._serve)

    def step(self, inputs: Inputs, labels: Tensor, owner: bytes = b"") -> tuple[float, Gradient]:
        job = StepJob(inputs, labels, owner)
        self._jobs.append(job)
        self._all_there.wait(timeout=60)
        return job.future.result()

    def _serve(self) -> None:
        self._host.serve([sample for job in self._jobs for sample in job.samples()])


def test_pixtrals_pictures_of_unlike_sizes_are_each_encoded_as_what_they_are(
    tmp_path: Path,
) -> None:
    """A LLaVA with Pixtral's encoder; `get_image_features` does not name the sizes."""
    words, vision, processor = pixtral()
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=families.base.llama(transformers.MistralConfig),
        image_token_id=words.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    folder = families.save("llava", tmp_path / "llava", config, processor)
    setting = make_setting(folder, "float32")
    pictures = setting.encoder.vision_inputs(SAMPLES[2])
    assert len(set(map(tuple, pictures["image_sizes"].tolist()))) == 3
    features = setting.edge.frozen.features("image", pictures)
    tree = ModelCheckpoint(str(folder)).tree
    assert skeleton.count_features(tree, "image", pictures) == len(features)
    llm = EXCHANGES["lowrank"](setting.host, "server")
    check_logits_and_gradients(setting, llm, setting.questions)
    check_answers(setting, llm)


def test_features_are_counted_without_weights_as_the_model_gives_them(checkpoint: Path) -> None:
    source = ModelCheckpoint(str(checkpoint))
    encoder, frozen = load_encoder(source), load_edge_half(str(checkpoint))
    for sample in samples_of(encoder):
        for site in sample.media:
            inputs = encoder.vision_inputs(sample)
            features = frozen.features(site, inputs)
            assert skeleton.count_features(source.edge_tree[0], site, inputs) == len(features)
    if "image" in frozen.sites:
        with pytest.raises(ConfigError, match="aspect_ratio_ids"):  # nothing is lost in silence
            frozen.features("image", inputs | {"aspect_ratio_ids": torch.ones(1, 1)})


@contextmanager
def logits_of(host: FrozenLLM) -> Iterator[list[Tensor]]:
    """Logits (B, vocabulary) of each pass over answers under way."""
    found = []
    original = host._half.next_logits

    def logits(*arguments: Any) -> Tensor:
        found.append(original(*arguments))
        return found[-1]

    with mock.patch.object(host._half, "next_logits", logits):
        yield found


def answers(setting: Setting, llm: LLM, ends: set[int]) -> list[list[int]]:
    """Of all questions in one batch."""
    found: list[list[int]] = [[] for _ in setting.questions]
    with mock.patch.object(setting.encoder, "ends", ends):
        for step in greedy(setting.edge, llm, setting.questions, TOKENS):
            for index, token in step.items():
                found[index].append(token)
    assert not len(setting.host.caches)
    return found


@pytest.mark.parametrize("setting", ["float32"], indirect=True)
def test_a_batchs_answers_are_those_of_the_whole_model_one_by_one(
    setting: Setting, llm: LLM
) -> None:
    check_answers(setting, llm)


def check_answers(setting: Setting, llm: LLM) -> None:
    edge, questions = setting.edge, setting.questions
    edge.adapters.float()
    assert len({len(question.ids) for question in questions}) > 2
    with logits_of(setting.host) as passes:
        found = answers(setting, llm, set())  # as long as they may be
    with setting.whole.adapted(edge.adapters):
        wholes = [setting.whole.generate(q, setting.encoder, TOKENS) for q in questions]
    assert found == [tokens for tokens, _ in wholes]
    # A random model's answer may be one word again and again; its logits are not.
    prompts = [replace(q, answer=tuple(a)) for q, a in zip(questions, found, strict=True)]
    rows = (next_token_labels(prompts, IGNORE) != IGNORE).nonzero().squeeze(1)
    every = torch.arange(passes[0].shape[1])
    with torch.no_grad():
        uncached = llm.score(edge(prompts, teacher_forced(prompts)), rows, every)
    cached = torch.stack(passes, dim=1).flatten(0, 1).log_softmax(1)
    allowed = OWN_ROUNDING * TINY[setting.family].tolerance
    assert error(cached, uncached) <= allowed
    assert error(cached, torch.cat([logits for _, logits in wholes]).log_softmax(1)) <= allowed
    assert error(cached[1:], cached[:-1]) > 100 * allowed


@pytest.mark.parametrize("setting", ["float32"], indirect=True)
def test_answers_that_end_leave_the_others_as_they_are(setting: Setting, llm: LLM) -> None:
    setting.edge.adapters.float()
    whole = answers(setting, llm, set())
    ends = {whole[0][2], whole[3][5]}
    found = answers(setting, llm, ends)
    assert found == [list(takewhile(lambda token: token not in ends, own)) for own in whole]
    assert any(len(own) < TOKENS for own in found)


@pytest.mark.parametrize("setting", ["float32"], indirect=True)
def test_positions_that_do_not_fit_the_family_are_refused(setting: Setting) -> None:
    wrong = None if TINY[setting.family].family.position_axes else torch.tensor([[1], [2], [3]])
    llm = EXCHANGES["lowrank"](setting.host, "server")
    begun = llm.prefill(setting.edge(setting.questions[1:2]), 4)
    first = torch.tensor([0])
    with pytest.raises(ValueError, match="position"):
        setting.host.decode(begun.cache, NewTokens(first, first + 5, position_ids=wrong))
