"""`fednano size`, as a user calls it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fednano_flwr.cli import app as cli
from fednano_flwr.models.families import FAMILIES
from tests.tiny import write_checkpoint
from tests.tiny_families import write

CONF = Path(__file__).parents[1] / "conf"
DEMO = "package:fednano_demo/model"


def size(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, ["size", *arguments])


def as_json(*arguments: str) -> dict[str, Any]:
    result = size(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_llava_7b_is_found_by_its_short_name_and_a_client_stores_at_most_5_percent() -> None:
    got = as_json("llava-1.5-7b")
    assert got["model_bytes"] == 2 * 7_063_427_072
    assert got["client_bytes"] == sum(part["bytes"] for part in got["client_parts"])
    assert got["client_bytes"] <= 0.05 * got["model_bytes"]
    assert got["upload_bytes"] == 2 * 4 * 1_048_576
    assert got["upload_bytes_without_fisher"] == 4 * 1_048_576
    assert got["step_bytes"]["embeddings"]["up"] == 704 * 4096 * 2
    assert got["step_bytes"]["lowrank"]["up"] == (704 * 64 + 2 * 4096 * 64 // 8) * 2


def test_a_record_weighs_little_more_than_the_state_in_it() -> None:
    got = as_json("llava-1.5-7b")
    assert 0 < got["record_bytes"]["adapters"] - got["adapter_bytes"] < 2_000
    assert 0 < got["record_bytes"]["with_fisher"] - got["upload_bytes"] < 4_000


def test_a_packed_upload_with_fisher_is_at_most_a_ten_thousandth_of_llava_7b() -> None:
    got = as_json("llava-1.5-7b")
    assert got["upload_bytes_compressed"] / got["model_bytes"] <= 1e-4
    assert got["upload_share_compressed"] == got["upload_bytes_compressed"] / got["model_bytes"]
    with (CONF / "compressed.toml").open("rb") as file:
        assert tomllib.load(file)["upload"] == got["upload_compressed"]
    numbers, blocks = 1_048_576, 1_048_576 // 64
    state = {
        "int8": numbers + 2 * blocks,
        "int4": numbers // 2 + 2 * blocks,
        "int4+log4": numbers + 6 * blocks,
    }
    packed = got["upload_bytes_packed"]
    assert set(packed) == set(state)
    assert all(0 < packed[setting] - state[setting] < 400 for setting in state)
    assert packed["int4+log4"] == got["upload_bytes_compressed"]

    record = got["record_bytes"]
    weighed = {"float32": record["adapters"], "float32+float32": record["with_fisher"], **packed}
    page = (CONF.parent / "docs" / "upload.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([\d,]+) \| ([\d.]+) % \|$", page, re.M)
    assert len(rows) == len(weighed)
    for adapters, fisher, size_, share in rows:
        bytes_ = weighed["+".join([adapters, *re.findall(r"`(\w+)`", fisher)])]
        assert (size_, share) == (f"{bytes_:,}", f"{100 * bytes_ / got['model_bytes']:.4f}")


def test_the_tables_fit_100_columns_and_say_what_is_not_counted() -> None:
    result = size("llava-1.5-7b")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 100
    for said in (
        "llava-1.5-7b: 7,063,427,072 parameters, 14.1 GB in bfloat16",
        "Up to 9,556 rows it is within 5 % of the model's bytes.",
        "Not counted: config, processor and tokenizer",
        "lowrank  ",
        "576 of a picture and 128 of text",
        "up: adapters int4, Fisher log4",
    ):
        assert said in result.output
    shares = re.search(r"of the model's bytes[ │]+([\d.]+) %[ │]+([\d.]+) %", result.output)
    assert shares and shares.groups() == ("6.48", "4.76")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_has_its_tables(family: str, tmp_path: Path) -> None:
    folder = write(family, tmp_path / "model")
    result = size(str(folder), "--rank", "4")
    assert result.exit_code == 0, result.output
    assert ("depend" in result.output) == (as_json(str(folder))["parts"]["picture_tokens"] is None)


def test_a_folder_has_its_small_files_and_its_download_counted(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    got = as_json(str(folder), "--dtype", "float32", "--rows", "10")
    small = sum(
        file.stat().st_size
        for file in folder.iterdir()
        if file.suffix in (".json", ".jinja") and "index" not in file.name
    )
    assert got["setting"]["file_bytes"] == small
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert got["client_bytes"] < got["download_bytes_without_bundle"] <= weights + small


def test_options_change_what_they_name() -> None:
    usual, changed = as_json(DEMO), as_json(DEMO, "--rank", "8", "--rows", "20", "--tokens", "50")
    assert usual["setting"]["rows"] == usual["parts"]["vocabulary"]
    assert changed["upload_bytes"] == usual["upload_bytes"] // 8
    assert changed["client_bytes"] < usual["client_bytes"]
    assert changed["setting"]["tokens"] == 50
    assert as_json(DEMO, "--dtype", "float32")["model_bytes"] == 2 * usual["model_bytes"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["./nowhere"], "there is no folder"),
        (["nowhere/config.json"], "there is no such file"),
        ([DEMO, "--rows", "1000"], "--rows 1000: the model has 223 rows"),
        ([DEMO, "--dtype", "int8"], "'int8' is not one of 'float32'"),
    ],
)
def test_a_typo_exits_with_2_and_says_what_is_wrong(arguments: list[str], says: str) -> None:
    result = size(*arguments)
    assert (result.exit_code, "Traceback" in result.output) == (2, False)
    assert says in " ".join(result.output.replace("│", " ").split())


def test_an_unknown_name_is_refused_with_the_shipped_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = size("llava-7b")
    assert result.exit_code == 2
    assert "instructblip-vicuna-7b, llava-1.5-13b, llava-1.5-7b" in result.output


def test_an_unknown_family_is_refused_with_those_that_work(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "idefics3"}')
    result = size(str(tmp_path))
    assert result.exit_code == 2
    assert "its family is idefics3; those that can be cut are: blip-2" in result.output


def test_help_shows_an_example() -> None:
    assert "fednano size llava-1.5-7b" in " ".join(size("--help").output.split())
