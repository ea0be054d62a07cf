"""One question that the model cannot take costs itself, and never its client."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.audit.results import AuditOptions, Subject, audit_one
from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.cli.partition import partition_to_folder
from fednano_flwr.cli.split import split
from fednano_flwr.config import Adapter, RunConfig
from fednano_flwr.data.defects import MISSING_PICTURE
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.media import UNDECODABLE_PICTURE
from fednano_flwr.data.sample import Picture, Place, Sample, Sound, Turn
from fednano_flwr.edge.client import EXCHANGES, Client
from fednano_flwr.edge.encoder import (
    NOT_FINITE,
    TOO_SHORT,
    QuestionEncoder,
    encode_all,
    load_encoder,
)
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Limits, Question, next_token_labels, teacher_forced
from fednano_flwr.edge.shard import ClientSpec, EncodedShard
from fednano_flwr.edge.training import batches
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.in_process import run_in_process
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from tests.families import every
from tests.models.test_families import for_family, picture
from tests.sounds import as_file, tone

Config = Callable[..., dict[str, Any]]
PLAIN = Sample("plain", "w20 w21", "g", "s", ("w22", "w23"), answer=1)
PICTURED = replace(PLAIN, images=(picture(0, 24, 30),))
FREE = replace(PLAIN, choices=(), answer=None, free_answer="w22 w23")
OWN = {  # what stands for a picture, a video or a sound in a family's prompts
    "qwen2_audio": ["<|AUDIO|>", "<|audio_bos|>"],
    "voxtral": ["[AUDIO]", "[/INST]"],
    "internvl": ["<IMG_CONTEXT>", "<video>"],
    "qwen2_vl": ["<|image_pad|>", "<|video_pad|>"],
    "qwen2_5_vl": ["<|image_pad|>", "<|video_pad|>"],
    "qwen3_5": ["<|image_pad|>", "<|video_pad|>"],
    "glm4v": ["<|image|>", "<|video|>"],
    "glm46v": ["<|image|>", "<|video|>"],
    "gemma3": ["<start_of_image>", "<image_soft_token>"],
    "llava_onevision": ["<image>", "<video>"],
    "smolvlm": ["<image>", "<video>"],
    "mistral3": ["[IMG]", "[IMG_BREAK]"],
    "aya_vision": ["<image>", "<|IMG_PATCH|>"],
    "cohere2_vision": ["<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"],
    "llava_next_video": ["<image>", "<video>"],
    "ovis2": ["<image>", "<IMG_ATOM>", "<IMG_GRID>"],
}
OTHERS = (
    "</s>",
    "<s>",
    "<pad>",
    "<|im_end|>",
    "<|vision_start|>",
    "<row_1_col_1>",
    "{{x}}",
    "\0",
)


@pytest.fixture(params=every())
def folder(request: pytest.FixtureRequest, family_folder: Callable[[str], Path]) -> Path:
    return family_folder(request.param)


def nano_edge(folder: Path) -> NanoEdge:
    half = load_edge_half(str(folder))
    config = Adapter(4, 8.0, 0.0, "all")
    adapters = build_adapters(half.hidden_size, config, seed=0, sites=half.sites)
    return NanoEdge(half, half.token_table(), adapters, load_encoder(half.checkpoint))


def test_a_token_of_the_template_that_was_typed_stays_text(folder: Path) -> None:
    if folder.name == "voxtral":
        pytest.skip("its tokenizer knows every word, so that none is unknown")
    edge = nano_edge(folder)
    encoder, host = edge.encoder, FrozenLLM(load_llm_half(str(folder)))
    shown = (picture(1, 20, 20), picture(2, 20, 20))

    def samples(word: str) -> list[Sample]:
        plain = (
            replace(PLAIN, question=f"w20 {word}"),
            replace(PICTURED, question=f"w20{word}w21"),
            replace(PLAIN, choices=("w22", word)),
            replace(PLAIN, context=word),
            replace(FREE, free_answer=word),
            replace(PLAIN, choices=(), choice_images=shown, question=word),
        )
        return [for_family(edge.frozen.family.model_type, sample) for sample in plain]

    batch: list[Question] = []
    unknown = [encoder.encode(sample) for sample in samples("unknown")]
    for token in (*OWN.get(folder.name, ["<image>"]), *OTHERS):
        for sample, other in zip(samples(token), unknown, strict=True):
            question = encoder.encode(sample)
            assert torch.equal(question.ids, other.ids) and question.answer == other.answer, token
            batch.append(question)
    for kind, labels_at in (("embeddings", "server"), ("lowrank", "client")):
        llm = EXCHANGES[kind](host, labels_at)
        labels = next_token_labels(batch[:6], IGNORE)
        assert torch.isfinite(llm.loss(edge(batch[:6], teacher_forced(batch[:6])), labels))


def test_a_picture_token_in_an_answer_is_no_picture(folder: Path) -> None:
    """A model may generate it."""
    edge = nano_edge(folder)
    sample = for_family(edge.frozen.family.model_type, replace(FREE, images=PICTURED.images))
    question = edge.encoder.unanswered(sample)
    ending = (*sum(edge.frozen.placeholders.values(), ()), 5)
    batch, plain = (edge([question], [one]) for one in (ending, (*[6] * (len(ending) - 1), 5)))
    for part in ("position_ids", "token_type_ids", "deep"):
        one, other = getattr(batch.layout, part), getattr(plain.layout, part)
        assert one is None or torch.equal(one, other)
    assert torch.equal(batch.sites, plain.sites)
    last, _ = (edge.next_tokens([question], [ids]) for ids in (ending, ending[:1]))
    if (positions := last.layout.position_ids) is not None:
        assert torch.equal(positions, batch.layout.position_ids[:, -1:])


def file(image: Image.Image) -> Picture:
    out = io.BytesIO()
    image.save(out, "PNG")
    return Picture(data=out.getvalue())


WORDS = tuple(f"w{number}" for number in range(20, 30))


def test_options_that_say_the_same_and_wrong_ones_of_the_same_tokens_are_read_as_they_are(
    encoder: QuestionEncoder,
) -> None:
    options = (*WORDS, "w20", "unknown", "other")
    question = encoder.encode(replace(PLAIN, choices=options, answer=10))
    assert question.answer == question.words[0] and question.words[11] == question.words[12]


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (replace(PICTURED, choices=(), choice_images=PICTURED.images * 11), "11 options"),
        (replace(PLAIN, turns=(Turn("user", (Place.PICTURE, "w20")),)), "0 pictures"),
        (replace(PLAIN, question="w20 \ud800"), "refuses it: TypeError"),
        (replace(PLAIN, choices=("\udfff", "w20")), "refuses it: TypeError"),
        (replace(FREE, free_answer="\ud800"), "refuses it: TypeError"),
        (replace(FREE, free_answer=""), "its answer has no token"),
        (replace(FREE, free_answer=" \n"), "its answer has no token"),
        (replace(FREE, free_answer="..."), "its answer has no token"),
        (replace(PLAIN, choices=(*WORDS, "unknown", "other"), answer=10), "has the same tokens"),
        (replace(PLAIN, images=(Picture(data=b""),)), UNDECODABLE_PICTURE),
        (replace(PLAIN, images=(Picture(Path("gone.png")),)), MISSING_PICTURE),
        (
            replace(PICTURED, choices=(), choice_images=(PICTURED.pictures[0], Picture(Path("x")))),
            MISSING_PICTURE,
        ),
    ],
)
def test_what_cannot_be_used_is_left_out_with_its_id_and_a_reason(
    encoder: QuestionEncoder, sample: Sample, reason: str
) -> None:
    odd = replace(sample, uid="odd")
    questions, left_out = encode_all(encoder, [PLAIN, odd, PICTURED])
    assert [question.sample.uid for question in questions] == ["plain", "plain"]
    ((uid, why),) = left_out
    assert uid == "odd" and reason in why
    why.encode()


def test_a_picture_alone_can_be_used_though_its_prompt_has_no_other_token(
    encoder: QuestionEncoder,
) -> None:
    alone = replace(FREE, images=PICTURED.images, turns=(Turn("user", (Place.PICTURE,)),))
    questions, left_out = encode_all(encoder, [alone, PLAIN])
    assert len(questions) == 2 and not left_out
    assert set(questions[0].ids.tolist()) == set(encoder.placeholders["image"])


@pytest.mark.parametrize("family", ["qwen2_audio", "voxtral", "gemma4"])
def test_a_sound_that_is_too_short_or_enormous_leaves_its_question_out(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    hearing = load_encoder(ModelCheckpoint(str(family_folder(family))))
    enormous = as_file(tone(440, loud=1e38), subtype="FLOAT")
    channels = as_file(np.full((8000, 2), 3e38, "f4"), subtype="FLOAT")  # their sum is infinite
    sounds = {"e": enormous, "c": channels, "s": as_file(tone(440)[:1], 48_000)}
    samples = [replace(PLAIN, uid=u, sounds=(Sound(data=d),)) for u, d in sounds.items()]
    questions, left_out = encode_all(hearing, samples)
    assert not questions
    assert left_out == [("e", NOT_FINITE), ("c", NOT_FINITE), ("s", TOO_SHORT)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGBA"])
def test_pictures_of_every_mode_and_of_one_pixel_can_be_used(
    encoder: QuestionEncoder, mode: str
) -> None:
    for size in ((1, 1), (1, 300), (300, 1)):
        questions, left_out = encode_all(
            encoder, [replace(PLAIN, images=(file(Image.new(mode, size)),))]
        )
        assert questions and not left_out


def test_a_token_that_the_model_has_no_embedding_of_leaves_its_question_out(
    encoder: QuestionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_vocabulary", 60)
    last = encoder.processor.tokenizer.convert_ids_to_tokens(60)
    samples = [PICTURED, replace(PLAIN, question=last), replace(FREE, free_answer=last)]
    questions, left_out = encode_all(encoder, samples)
    assert len(questions) == 1 and len(left_out) == 2
    assert all("not among the model's 60" in reason for _, reason in left_out)


def test_a_question_is_refused_that_no_request_or_position_table_can_hold(
    questions: list[Question],
) -> None:
    question = max(questions, key=lambda one: len(one.ids))
    length = len(question.ids)
    free = replace(question, options=(), answer=(5, 6, 7))
    assert Limits().refusal(question) == "" == Limits(length, length, 90).refusal(question)
    assert "llm.max-tokens = " in Limits(length - 1).refusal(question)
    assert f"{length - 1} positions" in Limits(0, length - 1).refusal(question)
    assert Limits(length + 2, 0, 3).refusal(free) == ""
    assert f"its {length + 2} tokens" in Limits(length + 1, 0, 1).refusal(free)  # as it trains
    assert f"its {length + 4} tokens" in Limits(length + 3, 0, 5).refusal(free)  # as it generates


def test_a_batch_ends_before_it_is_too_large_for_a_request(questions: list[Question]) -> None:
    whole = [len(batch) for batch in batches(questions, 5)]
    assert whole == [5, 5, 2] == [len(batch) for batch in batches(questions, 5, Limits(10**6))]
    limits = Limits(2 * max(map(Limits().tokens, questions)))
    parts = list(batches(questions, 5, limits))
    assert [one for part in parts for one in part] == questions
    assert len(parts) > 3 and max(map(len, parts)) <= 5
    assert max(sum(map(limits.tokens, part)) for part in parts) <= limits.request


def test_a_client_may_leave_out_the_allowed_share_rounded_up(questions: list[Question]) -> None:
    odd = [("7", "its 900 tokens are more"), ("8", "its 901 tokens are more")]
    shard = EncodedShard(questions[:4], [], Counter(), odd[:1], max_skipped=0.1)
    with pytest.raises(DataError, match=r"1 of this client's 5 .*allows 0%"):
        replace(shard, max_skipped=0.0)
    with pytest.raises(DataError, match=r"2 of .*: 2: its 900 tokens are more \(7, 8\); dataset"):
        replace(shard, left_out=odd)


def change(data: Path, folder: Path, pid: str, **values: Any) -> Path:
    """A copy of a data set with another question."""
    shutil.copytree(data, folder)
    problems = json.loads((folder / "problems.json").read_text())
    problems[pid] |= values
    (folder / "problems.json").write_text(json.dumps(problems))
    return folder


@pytest.mark.parametrize(
    ("family", "values", "reason"),
    [
        ("llava", {"question": "Which is for private use, \U000f0ff0 or w20?"}, "private use"),
        ("qwen2_5_vl", {}, "aspect ratio"),
        ("blip-2", {"question": "w20 " * 2100}, "2048 positions"),
    ],
)
def test_one_odd_question_costs_itself_and_not_its_client(
    run_config: Config,
    tiny_questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    family_folder: Callable[[str], Path],
    family: str,
    values: dict[str, Any],
    reason: str,
) -> None:
    data = change(tiny_questions, tmp_path / "data", "0", **values)
    if family == "qwen2_5_vl":
        flat = Image.fromarray(np.zeros((10, 3000, 3), np.uint8))
        flat.save(data / "images" / "train" / "0" / "image.png")
    config = run_config(
        model__name=str(family_folder(family)),
        dataset__path=str(data),
        num_server_rounds=1,
        local_epochs=1,
    )
    rounds = run_in_process(RunConfig.parse(config), 3).rounds
    assert [record["failures"] for record in rounds] == [{"train": {}, "evaluate": {}}] * 2
    assert sum(rounds[1]["train_questions_per_client"].values()) == 59
    assert sum(rounds[1]["test_questions_per_client"].values()) == 24
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "skipped  " in line]
    assert "skipped  1 questions" in said and reason in said and said.endswith("(0)")


@pytest.mark.parametrize(
    ("kind", "labels_at", "strategy"),
    [("embeddings", "server", "fednano"), ("lowrank", "client", "centralized")],
)
def test_training_and_scoring_leave_out_the_same_questions_whatever_crosses(
    run_config: Config,
    tiny_questions: Path,
    tmp_path: Path,
    kind: str,
    labels_at: str,
    strategy: str,
) -> None:
    data = change(tiny_questions, tmp_path / "data", "3", question="w20 " * 200)
    change(data, tmp_path / "odd", "61", question="w20 " * 200)  # of the test split
    flat = run_config(
        dataset__path=str(tmp_path / "odd"),
        exchange__kind=kind,
        exchange__labels_at=labels_at,
        strategy__name=strategy,
        num_server_rounds=2,
        local_epochs=1,
        llm__max_tokens=100,  # a batch of 16 is sent in several
    )
    rounds = run_in_process(RunConfig.parse(flat), 2).rounds
    for record in rounds:
        assert record["failures"] == {"train": {}, "evaluate": {}}
        assert sum(record["test_questions_per_client"].values()) == 23
    assert [sum(r["train_questions_per_client"].values()) for r in rounds] == [0, 59, 59]


def test_questions_with_a_free_answer_leave_room_for_what_is_generated(
    run_config: Config, sample_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = run_config(
        dataset__name="iconqa",
        dataset__path=str(sample_data / "iconqa"),
        dataset__tasks="fill_in_blank",
        dataset__min_partition_size=1,
        dataset__max_skipped=0.9,
        num_server_rounds=1,
        local_epochs=1,
        min_available_nodes=1,
        max_answer_tokens=20,
        llm__max_tokens=53,
    )
    rounds = run_in_process(RunConfig.parse(flat), 1).rounds
    assert [record["failures"] for record in rounds] == [{"train": {}, "evaluate": {}}] * 2
    assert "are more than llm.max-tokens = 53" in capsys.readouterr().out
    assert rounds[1]["train_questions_per_client"]["0"] > 0


def test_a_bundle_for_a_shard_and_an_audit_leave_an_odd_question_out_too(
    run_config: Config, tiny_model: Path, tiny_questions: Path, tmp_path: Path
) -> None:
    data = change(tiny_questions, tmp_path / "data", "1", question="\U000f0ff0")
    data = change(data, tmp_path / "odd", "3", question="w20 " * 200)
    flat = run_config(dataset__path=str(data), llm__max_tokens=100)
    config = RunConfig.parse(flat)
    partition_to_folder(config, 1, tmp_path / "shards", map_only=False)
    shard = tmp_path / "shards" / "client-0"
    split(str(tiny_model), tmp_path / "bundle", shard, None)
    own = flat | {"edge.bundle": str(tmp_path / "bundle"), "edge.vocabulary": "shard"}
    client = Client(RunConfig.parse(own), ClientSpec(0, 1, data_path=str(shard)))
    assert [uid for uid, _ in client.shard.left_out] == ["1"]
    theta = adapter_state(build_adapters(48, config.adapter, seed=1))
    row = audit_one(Subject("test", config, theta, 1, 1, 0.5, 0.25), AuditOptions(60, 0, 1))
    assert row["questions"] == 58
