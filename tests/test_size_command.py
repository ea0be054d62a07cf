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

from fednano_flwr.cli.app import cli
from fednano_flwr.models.configs import shipped
from tests.conftest import REPOSITORY
from tests.families import TINY, every, write
from tests.tiny import write_checkpoint

DEMO = "package:fednano_demo/model"


def size(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["size", *arguments])


def words(result: Result) -> str:
    """What it printed, without boxes and breaks of lines."""
    return " ".join(result.output.replace("│", " ").split())


def as_json(*arguments: str) -> dict[str, Any]:
    result = size(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.fixture(scope="module")
def llava() -> dict[str, Any]:
    return as_json("llava-1.5-7b")


def test_a_client_of_llava_7b_stores_at_most_5_percent(llava: dict[str, Any]) -> None:
    assert llava["model_bytes"] == 2 * 7_063_427_072
    assert llava["client_bytes"] == sum(part["bytes"] for part in llava["client_parts"])
    assert llava["client_bytes"] <= 0.05 * llava["model_bytes"]
    assert llava["step_bytes"]["embeddings"]["up"] == 704 * 4096 * 2
    assert llava["step_bytes"]["lowrank"]["up"] == (704 * 64 + 2 * 4096 * 64 // 8) * 2


def test_uploads_are_weighed_as_flowers_records_and_are_those_of_the_docs(
    llava: dict[str, Any],
) -> None:
    numbers, blocks = 1_048_576, 1_048_576 // 64
    states = {
        "float32": 4 * numbers,
        "float32+float32": 8 * numbers,
        "int8": numbers + 2 * blocks,
        "int4": numbers // 2 + 2 * blocks,
        "int4+log4": numbers + 6 * blocks,
    }
    uploads = llava["uploads"]
    assert {name: upload["state"] for name, upload in uploads.items()} == states
    assert all(0 < one["record"] - one["state"] < 2_000 for one in uploads.values())
    assert uploads["int4+log4"]["record"] <= 1e-4 * llava["model_bytes"]
    with (REPOSITORY / "conf" / "compressed.toml").open("rb") as file:
        compressed = tomllib.load(file)["upload"]
    assert compressed == {key: uploads["int4+log4"][key] for key in ("adapters", "fisher")}

    page = (REPOSITORY / "docs" / "exchange.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([\d,]+) \| ([\d.]+) % \|$", page, re.M)
    assert len(rows) == len(uploads)
    for adapters, fisher, bytes_, share in rows:
        record = uploads["+".join([adapters, *re.findall(r"`(\w+)`", fisher)])]["record"]
        assert bytes_ == f"{record:,}" and share == f"{100 * record / llava['model_bytes']:.4f}"


def test_the_tables_fit_100_columns_and_say_what_is_not_counted() -> None:
    result = size("llava-1.5-7b")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 100
    for said in (
        "llava-1.5-7b: 7,063,427,072 parameters, 14.1 GB in bfloat16",
        "Up to 9,556 rows",
        "Not counted: config, processor and tokenizer",
        "576 of a picture and 128 of text",
        "adapters int4, Fisher log4",
    ):
        assert said in result.output
    shares = re.search(r"of the model's bytes[ │]+([\d.]+) %[ │]+([\d.]+) %", result.output)
    assert shares and shares.groups() == ("6.48", "4.76")


@pytest.mark.parametrize("family", every())
def test_every_family_has_its_tables(family: str, tmp_path: Path) -> None:
    folder = write(family, tmp_path / "model")
    result = size(str(folder), "--rank", "4")
    assert result.exit_code == 0, result.output
    alone = "image" not in TINY[family].family.modalities
    assert f"of a {'sound' if alone else 'picture'} and 128 of text" in result.output
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
    assert changed["adapter_bytes"] == usual["adapter_bytes"] // 8
    assert changed["client_bytes"] < usual["client_bytes"]
    assert changed["setting"]["tokens"] == 50
    assert as_json(DEMO, "--dtype", "float32")["model_bytes"] == 2 * usual["model_bytes"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["./nowhere"], "there is no folder"),
        (["nowhere/config.json"], "there is no such file"),
        (["llava-7b"], f"always there: {', '.join(shipped())}"),
        ([DEMO, "--rows", "1000"], "--rows 1000: the model has 223 rows"),
        ([DEMO, "--dtype", "int8"], "'int8' is not one of 'float32'"),
    ],
)
def test_a_typo_exits_with_2_and_says_what_is_wrong(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = size(*arguments)
    assert (result.exit_code, "Traceback" in result.output) == (2, False)
    assert says in words(result)


def test_its_help_has_the_names_of_the_shipped_configs() -> None:
    assert f"Shipped configs: {', '.join(shipped())}." in words(size("--help"))
