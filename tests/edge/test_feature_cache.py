"""Image features are computed once, and those from disk are the ones that were computed."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.config import Adapter, Dataset, RunConfig
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.edge import process_cache
from fednano_flwr.edge.client import Client
from fednano_flwr.edge.encoder import QuestionEncoder, load_encoder
from fednano_flwr.edge.feature_cache import FeatureCache, FeatureFolder, FeatureLevels, model_digest
from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question
from fednano_flwr.edge.shard import ClientSpec
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import EdgeHalf, load_edge_half
from fednano_flwr.models.llm_half import LLMHalf
from fednano_flwr.models.split import write_bundle
from tests import families, tiny

CPU = torch.device("cpu")
MB = 2**20


def opened(folder: Path, max_bytes: int = MB, model: str = "m") -> FeatureFolder:
    return FeatureFolder(folder, max_bytes, model, CPU)


def features(seed: int, rows: int = 9) -> Tensor:
    return torch.randn(rows, 48, generator=torch.Generator().manual_seed(seed))


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def make_edge(half: EdgeHalf, encoder: QuestionEncoder, folder: Path) -> NanoEdge:
    """NanoEdge as a fresh process would build it: with nothing in memory."""
    disk = FeatureFolder(folder, MB, model_digest(half, encoder), half.device)
    adapters = build_adapters(half.hidden_size, Adapter(4, 8.0, 0.0, "image,text"), seed=0)
    cache = FeatureLevels(FeatureCache(MB), disk)
    return NanoEdge(half, half.token_table(), adapters, encoder, cache)


@pytest.fixture(scope="module")
def pictured(encoder: QuestionEncoder, tiny_dataset: Dataset) -> list[Question]:
    samples = [s for s in load_questions(tiny_dataset).train[:12] if s.pictures]
    return [encoder.encode(sample) for sample in samples]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_from_disk_are_those_that_were_written(tmp_path: Path, dtype: torch.dtype) -> None:
    written = torch.cat([features(0).to(dtype), features(1).to(dtype)])[3:12]  # part of a batch
    opened(tmp_path)["a"] = written
    read = opened(tmp_path).get("a")
    assert read is not None and read.dtype == dtype and torch.equal(read, written)
    assert opened(tmp_path).get("b") is None and opened(tmp_path, model="n").get("a") is None


def test_the_same_pictures_under_other_names_are_encoded_once(
    edge_half: EdgeHalf, encoder: QuestionEncoder, pictured: list[Question], tmp_path: Path
) -> None:
    sample = pictured[0].sample
    path = sample.pictures[0].path
    assert path is not None
    twin = Sample(
        "other", "w20", "g", "s", ("A", "B"), answer=0, images=(Picture(data=path.read_bytes()),)
    )
    edge = make_edge(edge_half, encoder, tmp_path)
    edge([pictured[0], encoder.encode(twin)])
    assert edge.encoded == 1 and len(files(tmp_path)) == 1


def test_a_changed_picture_of_the_same_uid_is_encoded_anew(
    edge_half: EdgeHalf, encoder: QuestionEncoder, tmp_path: Path
) -> None:
    file = tmp_path / "image.bmp"  # all of one size: neither name nor size tells them apart
    sample = Sample("1", "w20", "g", "s", ("A", "B"), answer=0, images=(Picture(file),))
    edge = make_edge(edge_half, encoder, tmp_path / "features")
    results = []
    for color in ("red", "blue", "red"):
        Image.new("RGB", (24, 24), color).save(file)
        os.utime(file, ns=(0, 1000 + len(results)))
        results.append(edge([encoder.encode(sample)]).embedded())
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])
    assert edge.encoded == 2


def test_a_picture_that_changes_while_it_is_encoded_is_not_kept(
    edge_half: EdgeHalf, encoder: QuestionEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "image.bmp"
    Image.new("RGB", (24, 24), "red").save(file)
    question = encoder.encode(
        Sample("1", "w20", "g", "s", ("A",), answer=0, images=(Picture(file),))
    )
    healthy = QuestionEncoder.vision_inputs

    def vision_inputs(self: QuestionEncoder, sample: Sample) -> dict[str, Tensor]:
        Image.new("RGB", (24, 24), "blue").save(file)
        os.utime(file, ns=(0, 1))
        return healthy(self, sample)

    monkeypatch.setattr(QuestionEncoder, "vision_inputs", vision_inputs)
    make_edge(edge_half, encoder, tmp_path / "features")([question])
    assert not (tmp_path / "features").exists()


def test_a_damaged_file_is_removed_and_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = opened(tmp_path)
    cache["b"] = features(1)
    (other,) = files(tmp_path)
    of_another_key = other.read_bytes()
    cache["a"] = features(0)
    (file,) = set(files(tmp_path)) - {other}
    whole = file.read_bytes()
    cut = [whole[:size] for size in (0, 31, 32, 40, 1000)]
    places = [*range(140), len(whole) // 2, len(whole) - 1]
    changed = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
    for content in (*cut, *changed, whole + b"\0", of_another_key):
        file.write_bytes(content)
        assert opened(tmp_path).get("a") is None and not file.exists()
    assert "damaged" in caplog.text
    cache["a"] = features(0)
    assert file.read_bytes() == whole


def test_a_writer_that_dies_half_way_leaves_nothing_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(*paths: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace)
        opened(tmp_path)["a"] = features(0)
    assert files(tmp_path) == []
    killed = tmp_path / f"{'0' * 64}.abc.partial"
    killed.write_bytes(b"half")
    os.utime(killed, (1, 1))
    opened(tmp_path)["a"] = features(0)
    assert not killed.exists() and opened(tmp_path).get("a") is not None


def used(folder: Path) -> int:
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in folder.glob("*.features"))


def test_the_oldest_features_of_any_model_go_first_and_used_ones_stay(tmp_path: Path) -> None:
    bound = 10 * 4096  # one file of features takes a block
    stranger = tmp_path / "notes.txt"
    stranger.write_bytes(bytes(100_000))
    first, second = opened(tmp_path, bound), opened(tmp_path, bound, model="n")
    for key in range(5):
        first[f"{key}"] = features(key, rows=3)
        second[f"{key}"] = features(key, rows=3)
    assert used(tmp_path) == bound
    for age, file in enumerate(tmp_path.glob("*.features")):
        os.utime(file, (1000 + age, 1000 + age))
    kept = [first.get("0"), second.get("3")]  # used just now
    assert None not in kept
    first["new"] = features(9, rows=3)
    assert used(tmp_path) == 9 * 4096 and stranger.exists()
    there = [
        cache.get(key) is not None for cache, key in ((first, "0"), (second, "3"), (first, "new"))
    ]
    assert all(there)


@pytest.mark.parametrize("files_held", [1, 3, 40])
def test_the_bound_holds_after_every_write(tmp_path: Path, files_held: int) -> None:
    cache = opened(tmp_path, files_held * 4096)
    most = 0
    for key in range(3 * files_held):
        cache[f"{key}"] = features(key, rows=3)
        assert cache.get(f"{key}") is not None
        assert used(tmp_path) <= files_held * 4096
        most = max(most, used(tmp_path))
    assert most == files_held * 4096


def test_features_larger_than_the_bound_are_not_written(tmp_path: Path) -> None:
    cache = opened(tmp_path / "features", 4096)
    cache["a"] = features(0, rows=100)
    assert not (tmp_path / "features").exists()


def test_the_folder_is_not_looked_through_at_each_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, healthy = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looks.append(path) or healthy(path))
    cache = opened(tmp_path, 1000 * 4096)
    for key in range(200):
        cache[f"{key}"] = features(key, rows=3)
    assert len(looks) == 2  # an eighth of the room, twice


def work(folder: Path, turn: int) -> None:
    """Write and read in two threads."""
    cache, wrong = opened(folder, 60 * 4096), []

    def run(step: int) -> None:
        key = (step * (turn + 1)) % 50
        cache[f"{key}"] = features(key, rows=3)
        found = cache.get(f"{(key + 7) % 50}")
        if found is not None and not torch.equal(found, features((key + 7) % 50, rows=3)):
            wrong.append(key)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(150)))
    if wrong or not cache._writes:
        raise AssertionError(f"{wrong}, or a file that another process removed stopped this one")


def test_processes_and_threads_that_write_at_once_do_not_disturb_each_other(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(tmp_path, turn)) for turn in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert used(tmp_path) <= 60 * 4096 and not list(tmp_path.glob("*.partial"))
    assert all(opened(tmp_path).get(f"{key}") is not None for key in range(50))


def fill_the_disk(folder: Path, answer: Any) -> None:
    """A file may have 1,000 bytes: the kernel stops each write in the middle."""
    cache = opened(folder)
    cache["small"] = features(0, rows=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    for key in range(3):
        cache[f"{key}"] = features(key)
    small = cache.get("small")
    answer.send((cache._writes, small is not None, [cache.get(f"{key}") for key in range(3)]))


def test_a_full_disk_stops_writing_and_nothing_else(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    worker = context.Process(target=fill_the_disk, args=(tmp_path, theirs))
    worker.start()
    writes, small, others = ours.recv()
    worker.join(60)
    assert not writes and small and others == [None, None, None]
    assert len(files(tmp_path)) == 1  # the half-written one is gone


def test_a_folder_that_cannot_be_written_is_said_once_and_the_run_goes_on(
    edge_half: EdgeHalf,
    encoder: QuestionEncoder,
    pictured: list[Question],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("in the way")
    edge = make_edge(edge_half, encoder, tmp_path / "file" / "features")
    assert torch.isfinite(edge(pictured).embedded()).all()
    edge(pictured)
    assert edge.encoded == len(pictured)  # memory still works
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "edge.feature-dir" in caplog.text


def test_what_the_features_of_a_model_depend_on_changes_its_digest(
    tiny_model: Path, edge_half: EdgeHalf, encoder: QuestionEncoder, tmp_path: Path
) -> None:
    expected = model_digest(edge_half, encoder)

    def digest(folder: Path, dtype: str = "float32") -> str:
        loaded = load_encoder(ModelCheckpoint(str(folder)))
        return model_digest(load_edge_half(str(folder), "cpu", dtype), loaded)

    assert digest(tiny_model) == expected
    copied = shutil.copytree(tiny_model, tmp_path / "copied")
    assert digest(copied) == expected
    bundle = write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "bundle", ids=[3, 4, 5])
    assert digest(bundle.folder) == expected
    others = {
        "dtype": digest(tiny_model, "bfloat16"),
        "model": digest(tiny.write_checkpoint(tmp_path / "other", seed=5)),
    }
    settings = next(copied.glob("*processor_config.json"))
    settings.write_text(settings.read_text().replace("0.485", "0.5").replace("0.48145466", "0.5"))
    others["preprocessing"] = digest(copied)
    half = load_edge_half(str(tiny_model))
    next(parameter for name, parameter in half.named_parameters() if "projector" in name).data[
        0
    ] += 1
    assert half.fingerprint == edge_half.fingerprint  # which is why it is not enough
    others["one weight"] = model_digest(half, encoder)
    torch.set_num_threads(2)
    others["threads"] = model_digest(edge_half, encoder)
    assert len({expected, *others.values()}) == 1 + len(others)


def keys_of(family: str, folder: Path, questions: Sequence[str]) -> list[str]:
    reader = load_encoder(ModelCheckpoint(str(families.write(family, folder))))
    picture = folder / "picture.png"
    Image.effect_noise((30, 40), 64).convert("RGB").save(picture)
    return [
        reader.media_key(
            Sample("1", text, "g", "s", ("A",), answer=0, images=(Picture(picture),)), "image"
        )
        for text in questions
    ]


def test_the_text_is_part_of_the_key_where_the_encoder_reads_it(tmp_path: Path) -> None:
    texts = ("w20 w21", "w20 w22", "w20 w21")
    blip, instruct = (keys_of(name, tmp_path / name, texts) for name in ("blip-2", "instructblip"))
    assert len(set(blip)) == 1
    assert instruct[0] != instruct[1] and instruct[0] == instruct[2]


def test_clients_of_later_processes_and_runs_encode_nothing(
    run_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    counts = []
    for seed in (0, 1):  # another seed deals the questions to other clients
        process_cache.clear()
        config = RunConfig.parse(run_config(seed=seed))
        for partition in range(2):
            client = Client(config, ClientSpec(partition, 2))
            with torch.no_grad():
                client.edge([*client.shard.train, *client.shard.test])
            counts.append((client.edge.encoded, client.features.from_disk))
    assert sum(encoded for encoded, _ in counts[:2]) == 42 and counts[0][1] == 0
    assert [encoded for encoded, _ in counts[2:]] == [0, 0]
    assert sum(read for _, read in counts[2:]) == 42
    assert len(files(tmp_path / "features")) == 42


def test_features_without_what_the_connector_read_are_encoded_again_and_counted_once(
    run_config: Callable[..., dict[str, Any]],
) -> None:
    """As those of a run that was before the connector came to the host."""
    counts = []
    for place in ("client", "server", "server", "client"):
        process_cache.clear()
        config = RunConfig.parse({**run_config(), "exchange.connector-at": place})
        client = Client(config, ClientSpec(0, 2))
        with torch.no_grad():
            client.edge(client.shard.train)
        counts.append((client.edge.encoded, client.features.from_disk))
    encoded = counts[0][0]
    assert encoded and counts == [(encoded, 0), (encoded, 0), (0, encoded), (0, encoded)]


def round_by_batch_size(half: EdgeHalf, patch: pytest.MonkeyPatch) -> None:
    """Let the encoder's last bits depend on how many pictures it is given, as real ones' do."""
    encode = half._vision.get_image_features

    def get_image_features(pixel_values: Tensor) -> Any:
        found = encode(pixel_values=pixel_values)
        found.pooler_output = [own + len(pixel_values) * 1e-3 for own in found.pooler_output]
        return found

    patch.setattr(half._vision, "get_image_features", get_image_features)


def test_adapters_do_not_depend_on_who_filled_the_feature_cache(
    run_config: Callable[..., dict[str, Any]], llm_half: LLMHalf, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for others_before in (False, True):
        process_cache.clear()
        config = RunConfig.parse(run_config(edge__feature_disk_mb=100 * others_before))
        client = Client(config, ClientSpec(0, 2))
        round_by_batch_size(client.half, monkeypatch)
        if others_before:
            for part in (client.shard.test, client.shard.train):
                client.edge(part)
        theta = adapter_state(client.edge.adapters)
        results.append(client.train(theta, FrozenLLM(llm_half), 1, LocalWork()).theta)
    process_cache.clear()
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_with_the_bound_at_0_nothing_is_on_disk(
    run_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    process_cache.clear()
    client = Client(RunConfig.parse(run_config(edge__feature_disk_mb=0)), ClientSpec(0, 2))
    client.edge(client.shard.test)
    assert client.edge.encoded > 0 and not (tmp_path / "features").exists()
