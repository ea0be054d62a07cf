from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, namedtuple
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from fednano_flwr.cli import app as cli
from fednano_flwr.cli import partition as command
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.shard import all_shards
from fednano_flwr.data.shard_folder import load_shard
from fednano_flwr.preflight import run_config
from tests.signals import INTERRUPTIBLE

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def partition(tiny_questions, tmp_path, monkeypatch):
    """Runs `fednano partition` on the tiny questions, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    given = ["--app", str(ROOT), "-c", f"dataset.path={tiny_questions}", "--clients", "3"]

    def run(*arguments: str):
        return CliRunner().invoke(cli.cli, ["partition", *given, *arguments])

    return run


def test_each_client_gets_its_shard_in_a_folder_of_its_own(partition, tiny_questions, tmp_path):
    result = partition("--out", "some/shards", "-c", "seed=3")
    assert result.exit_code == 0, result.output
    config = run_config(ROOT, [f"dataset.path={tiny_questions}"], 3, tmp_path)
    expected = all_shards(load_questions(config.dataset), config.dataset, 3, 3)
    out = tmp_path / "some" / "shards"
    names = {"client-0", "client-1", "client-2", "partition.png", "partition.json"}
    assert {file.name for file in out.iterdir()} == names
    for k, part in enumerate(expected):
        found = load_shard(out / f"client-{k}")
        assert (found.train.uids, found.test.uids) == (part.train.uids, part.test.uids)
        manifest = json.loads((out / f"client-{k}" / "manifest.json").read_text())
        assert (manifest["partition_id"], manifest["num_partitions"]) == (k, 3)
        assert manifest["dataset"]["alpha"] == 0.5
        assert f"│ client {k} " in result.stdout
    assert "seed 3" in command._title(dataclasses.replace(config, seed=3))


def test_the_summary_counts_each_client_s_groups(partition, tmp_path):
    assert partition("--out", "shards").exit_code == 0
    summary = json.loads((tmp_path / "shards" / "partition.json").read_text())
    for k, client in enumerate(summary["clients"]):
        part = load_shard(tmp_path / "shards" / f"client-{k}")
        assert client["train_groups"] == Counter(part.train.groups)
        assert client["test_groups"] == Counter(part.test.groups)
        assert (client["train"], client["test"]) == (len(part.train), len(part.test))
    assert summary["seed"] == 0 and summary["dataset"]["name"] == "scienceqa"


def test_the_fingerprint_is_that_of_the_questions_not_of_where_they_lie(
    partition, tiny_questions, tmp_path
):
    copy = shutil.copytree(tiny_questions, tmp_path / "copy")
    problems = (copy / "problems.json").read_text()
    for name, changes in (("a", []), ("b", ["-c", f"dataset.path={copy}"])):
        assert partition("--out", name, "--map-only", *changes).exit_code == 0
    (copy / "problems.json").write_text(problems.replace("w20", "w21"))
    assert partition("--out", "c", "--map-only", "-c", f"dataset.path={copy}").exit_code == 0
    prints = [
        json.loads((tmp_path / name / "partition.json").read_text())["fingerprint"]
        for name in "abc"
    ]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.slow
def test_the_commit_of_a_data_set_from_the_hub_is_written_down(partition, tmp_path, monkeypatch):
    questions = load_questions(run_config(ROOT, [], 3, tmp_path).dataset)
    found = dataclasses.replace(questions, revision="a" * 40)
    monkeypatch.setattr("fednano_flwr.data.load.load_questions", lambda dataset: found)
    assert partition("--out", "shards").exit_code == 0
    for file in ("partition.json", "client-0/manifest.json"):
        written = json.loads((tmp_path / "shards" / file).read_text())
        assert (written["dataset_revision"], written["dataset"]["revision"]) == ("a" * 40, "")


def test_each_hospital_is_a_client_and_gets_its_own_dialogues_and_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    for number in range(30):
        site = "abc"[number % 3]
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        turns = [("user", f"<image>Which, {number}?"), ("assistant", f"It is {site}.")]
        messages = [{"role": role, "content": text} for role, text in turns]
        row = {"messages": messages, "images": [f"{number}.png"], "hospital": site}
        lines.append(json.dumps(row))
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    chosen = {
        "name": "messages",
        "path": "all.jsonl",
        "group": "hospital",
        "partitioner": "NaturalIdPartitioner",
        "test-fraction": "0.2",
    }
    given = [part for key, value in chosen.items() for part in ("-c", f"dataset.{key}={value}")]
    command = ["partition", "--app", str(ROOT), *given, "--out", "out"]
    few = CliRunner().invoke(cli.cli, [*command, "--clients", "2"])
    assert few.exit_code == 2 and "each value of group: a, b, c. Use 3 clients" in few.output
    done = CliRunner().invoke(cli.cli, [*command, "--clients", "3"])
    assert done.exit_code == 0, done.output
    for client, site in enumerate("abc"):
        shard = load_shard(tmp_path / "out" / f"client-{client}")
        samples = [*shard.train, *shard.test]
        assert (len(shard.train), len(shard.test)) == (8, 2)
        assert {sample.free_answer for sample in samples} == {f"It is {site}."}
        assert len(list((tmp_path / "out" / f"client-{client}" / "images").iterdir())) == 10
        for sample in samples:
            number = sample.uid.removeprefix("all.jsonl:")
            original = tmp_path / f"{int(number) - 1}.png"
            assert sample.images[0].read() == original.read_bytes()


def test_the_map_alone_is_a_picture_and_no_shards(partition, tmp_path):
    result = partition("--out", "map", "--map-only")
    assert result.exit_code == 0
    assert {f.name for f in (tmp_path / "map").iterdir()} == {"partition.png", "partition.json"}
    with Image.open(tmp_path / "map" / "partition.png") as image:
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(100_000)) > 10
    assert "pictures" not in result.stdout


def test_questions_that_nobody_gets_are_counted(partition):
    result = partition(
        *("--out", "x", "--map-only", "-c", "dataset.partitioner=SizePartitioner"),
        *("-c", "dataset.partitioner-args=partition_sizes=10;10;10"),
    )
    assert "dealt to no client: 30 questions" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-c", "dataset.path=nowhere"], "there is no folder"),
        (["-c", "dataset.revision=v1"], "a folder has no revision"),
        (["-c", "dataset.pth=x"], "Did you mean dataset.path?"),
        (["--clients", "61"], "305 training questions, and there are 60"),
        (["-c", "dataset.min-partition-size=21"], "63 training questions, and there are 60"),
        (["-c", "dataset.partitioner=x"], "must be one of dirichlet"),
        (["--out", "full"], "the folder is not empty"),
        (["--out", "full/file"], "is a file"),
    ],
)
def test_what_cannot_be_done_exits_with_2_and_leaves_nothing(partition, tmp_path, arguments, says):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    result = partition("--out", "shards", *arguments)
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert [f.name for f in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "file").read_text() == "kept"


def test_an_empty_folder_may_be_given(partition, tmp_path):
    (tmp_path / "shards").mkdir()
    assert partition("--out", "shards").exit_code == 0
    assert (tmp_path / "shards" / "client-2").is_dir()


def test_too_little_disk_is_refused_with_the_numbers_before_anything_is_written(
    partition, tmp_path, monkeypatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5000, 5000))
    result = partition("--out", "new/shards")
    assert result.exit_code == 2
    assert "kB, and the disk of" in result.output and "5.0 kB free" in " ".join(
        result.output.split()
    )
    assert list(tmp_path.iterdir()) == []
    assert partition("--out", "new/map", "--map-only").exit_code == 0


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "nothing is left behind"),
    ],
)
def test_what_goes_wrong_while_writing_leaves_nothing_behind(
    partition, tmp_path, monkeypatch, error, status, says
):
    from fednano_flwr.data import shard_folder

    write, calls = shard_folder.write_shard, []

    def write_one(*arguments):
        if calls:
            raise error
        calls.append(1)
        return write(*arguments)

    monkeypatch.setattr(shard_folder, "write_shard", write_one)
    result = partition("--out", "new/deep/shards")
    assert (result.exit_code, calls) == (status, [1])
    assert says in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_a_process_that_is_told_to_stop_cleans_up(tiny_questions, tmp_path, number):
    slow = (
        "import time, fednano_flwr.data.shard_folder as s; "
        "s.write_shard = lambda *a: print('writing', flush=True) or time.sleep(60); "
        "import fednano_flwr.cli.app as c; c.main()"
    )
    arguments = ["partition", "--app", str(ROOT), "-c", f"dataset.path={tiny_questions}"]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE + slow, *arguments, "--out", str(tmp_path / "shards")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    assert [f.name.endswith(".partial") for f in tmp_path.iterdir()] == [True]
    started = time.monotonic()
    process.send_signal(number)
    assert process.wait(30) == 130
    assert time.monotonic() - started < 20
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example():
    output = CliRunner().invoke(cli.cli, ["partition", "--help"]).output
    assert "fednano partition -c dataset.path=" in " ".join(output.split())
