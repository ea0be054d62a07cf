"""The real model's command; the last tests need the wheel, as FEDNANO_TEST_WHEEL."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration, PreTrainedModel
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from fednano_demo.real import build, smollm2
from fednano_demo.real.answers import Writer, encode_pictures
from fednano_demo.real.easy import by_picture, read_pictures, read_questions
from fednano_demo.real.network import build_model, trained_state
from fednano_demo.real.pictures import open_pictures
from fednano_demo.real.processor import IMAGE
from fednano_demo.real.scoring import accuracy
from fednano_flwr.adapters.site import build_adapters
from fednano_flwr.config import Adapter
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.scoring import score_questions
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from tests.demo.real_parts import tiny_llm


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to build in, with a tiny language model in SmolLM2's place."""
    llm, tokenizer = tiny_llm()
    model = build_model(llm, tokenizer.convert_tokens_to_ids(IMAGE))
    save_file(trained_state(model), tmp_path / "weights.safetensors")
    monkeypatch.setattr(smollm2, "read_llm", lambda wheel: tiny_llm())
    monkeypatch.setattr(build, "WEIGHTS", tmp_path / "weights.safetensors")
    return tmp_path / "models" / "real"


def test_a_built_model_is_found_ready_and_is_never_made_twice(tiny: Path) -> None:
    build.build(tiny, Path("wheel"))
    before = (tiny / "model.safetensors").stat().st_ino
    build.build(tiny, Path("wheel"))
    assert (tiny / "model.safetensors").stat().st_ino == before
    loaded = LlavaForConditionalGeneration.from_pretrained(tiny)
    for name, weight in load_file(build.WEIGHTS).items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert AutoProcessor.from_pretrained(tiny).image_token == IMAGE


def test_a_damaged_model_and_one_of_another_version_are_made_anew(tiny: Path) -> None:
    build.build(tiny, Path("wheel"))
    for file in ("config.json", build.MANIFEST):
        content = (tiny / file).read_bytes()
        changed = json.loads(content)
        changed["made_of" if file == build.MANIFEST else "image_seq_length"] = 3
        (tiny / file).write_text(json.dumps(changed))
        assert str(tiny) in build.defect(tiny)
        build.build(tiny, Path("wheel"))
        assert (tiny / file).read_bytes() == content


def test_an_earlier_model_goes_only_once_another_is_there(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.build(tiny, Path("wheel"))
    (tiny / build.MANIFEST).write_bytes(b"")
    assert build.MANIFEST in build.defect(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "read_llm", Mock(side_effect=smollm2.WheelError("another")))
        with pytest.raises(smollm2.WheelError, match="another"):
            build.build(tiny, Path("wheel"))
    assert (tiny / "model.safetensors").is_file() and list(tiny.parent.iterdir()) == [tiny]
    build.build(tiny, Path("wheel"))
    assert not build.defect(tiny) and list(tiny.parent.iterdir()) == [tiny]


@pytest.mark.parametrize(
    ("failure", "status"),
    [(KeyboardInterrupt(), 130), (ImportError("gguf"), "gguf"), (SafetensorError("room"), "room")],
)
def test_the_command_ends_without_a_traceback_and_leaves_nothing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, status: int | str
) -> None:
    monkeypatch.setattr(smollm2, "read_llm", Mock(side_effect=failure))
    monkeypatch.setattr("sys.argv", ["build", "--wheel", "wheel", "--out", str(tiny)])
    with pytest.raises(SystemExit) as ended:
        build.main()
    assert ended.value.code == status or str(status) in str(ended.value.code)
    assert not any(tiny.parent.iterdir())


def test_the_printed_command_is_right_for_a_folder_with_spaces(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.with_name("für mich")
    monkeypatch.setattr("sys.argv", ["build", "--wheel", "wheel", "--out", str(folder)])
    build.main()
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[-1] == f"model.name={folder}"


def test_a_folder_of_something_else_is_left_alone(tiny: Path) -> None:
    tiny.mkdir(parents=True)
    (tiny / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=str(tiny)):
        build.build(tiny, Path("wheel"))
    assert [file.name for file in tiny.iterdir()] == ["mine.txt"]


def test_another_wheel_is_refused_by_its_digest(tmp_path: Path) -> None:
    (tmp_path / "other.whl").write_bytes(b"other")
    with pytest.raises(smollm2.WheelError, match=smollm2.SHA256):
        smollm2.read_llm(tmp_path / "other.whl")


@pytest.fixture(scope="module")
def smollm2_parts() -> tuple[PreTrainedModel, TokenizersBackend]:
    """SmolLM2 out of the pinned wheel."""
    pytest.importorskip("gguf", reason="pip install 'fednano-flwr[real]'")
    if not (wheel := os.environ.get("FEDNANO_TEST_WHEEL")):
        pytest.skip(f"set FEDNANO_TEST_WHEEL to the wheel of {smollm2.PACKAGE}")
    return smollm2.read_llm(Path(wheel))


@pytest.fixture(scope="module")
def real(
    smollm2_parts: tuple[PreTrainedModel, TokenizersBackend],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The real model's folder."""
    folder = tmp_path_factory.mktemp("real") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smollm2, "read_llm", lambda wheel: smollm2_parts)
        build.build(folder, Path("read before"))
    return folder


def test_the_real_models_two_halves_answer_as_pretraining_scored(real: Path) -> None:
    encoder = load_encoder(ModelCheckpoint(str(real)))
    frozen = load_edge_half(str(real))
    adapters = build_adapters(576, Adapter(4, 8.0, 0.0, "all"), seed=0, sites=("image", "text"))
    edge = NanoEdge(frozen, frozen.token_table(), adapters, encoder)
    llm = LowRankExchange(FrozenLLM(load_llm_half(str(real))))
    (number, own), *_ = by_picture(read_questions("test")).items()
    file, own = read_pictures("test")[number], own[:2]
    questions = [encoder.encode(question.sample(file, options=True)) for question in own]
    scores = score_questions(edge, llm, questions, 13)

    model = LlavaForConditionalGeneration.from_pretrained(real, dtype=torch.float32)
    writer = Writer(AutoProcessor.from_pretrained(real))
    pixels = open_pictures([file], [own]).pixels
    with torch.no_grad():
        features = encode_pictures(model, pixels)[1]
    found = accuracy(model, writer, features, [own], options=True)
    assert sum(score.value for score in scores) == sum(found.right.values())
    assert found.loss == pytest.approx(sum(one.loss for one in scores) / len(scores), rel=1e-3)


def test_the_real_tokenizer_and_template_are_smollm2s(
    smollm2_parts: tuple[PreTrainedModel, TokenizersBackend], real: Path
) -> None:
    llm, tokenizer = smollm2_parts
    processor = AutoProcessor.from_pretrained(real)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
    own = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert prompt == own
    assert processor.tokenizer.tokenize("In 2024:") == ["In", "Ġ", "2", "0", "2", "4", ":"]
    ids = torch.tensor([processor.tokenizer.encode(prompt)])
    answer = llm.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in processor.tokenizer.decode(answer)
