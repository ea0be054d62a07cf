"""Shipped configs are those of the published models, and docs/models.md has what clients store."""

from __future__ import annotations

import json
import re

import pytest

from fednano_flwr.base.console import human_bytes
from fednano_flwr.cli.size_tables import LIMIT, SHARD_ROWS
from fednano_flwr.models import configs
from fednano_flwr.models.size import Parts, Setting, Sizes, count, read_size_config
from tests.conftest import REPOSITORY

PUBLISHED = {
    "aya-vision-8b": 8_631_842_032,
    "blip2-opt-2.7b": 3_744_761_856,
    "gemma-3-12b": 12_187_325_040,
    "gemma-3-4b": 4_300_079_472,
    "gemma-4-31b": 32_682_372_656,
    "gemma-4-e2b": 5_123_178_051,
    "gemma-4-e4b": 7_996_156_490,
    "glm-4.1v-9b": 10_292_777_472,
    "idefics3-8b": 8_465_000_000,
    "instructblip-vicuna-7b": 7_913_726_720,
    "internvl3-1b": 938_193_024,
    "internvl3-2b": 2_088_957_440,
    "internvl3-8b": 7_944_373_760,
    "lfm2-vl-1.6b": 1_584_804_000,
    "llava-1.5-13b": 13_351_494_656,
    "llava-1.5-7b": 7_063_427_072,
    "llava-next-7b": 7_566_747_648,
    "llava-onevision-7b": 8_030_807_584,
    "mistral-small-3.1-24b": 24_011_361_280,
    "paligemma2-3b": 3_032_242_416,
    "qwen2-vl-2b": 2_208_985_600,
    "qwen2-vl-7b": 8_291_375_616,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen3-vl-2b": 2_127_532_032,
    "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696,
    "qwen3.5-9b": 9_653_104_368,
    "smolvlm2-2.2b": 2_246_784_880,
    "smolvlm2-500m": 507_482_304,
    "voxtral-mini-3b": 4_680_000_000,
}
"""Numbers in the safetensors files of each checkpoint, as the hub counts them."""
NOT_COUNTED = {
    # The head, which is the token embeddings, less 2,364 numbers in buffers.
    "gemma-4-31b": 262_144 * 5_376 - 2_364,
    # Keys and values of layers that use another's, less 928 bounds of clipped linear layers.
    "gemma-4-e2b": 18_880_512 - 928,
    "gemma-4-e4b": 55_055_616 - 928,
    "qwen3.5-9b": 243_290_624,  # a layer that predicts further tokens; transformers reads it not
}
"""Those of them that are no part of the model here."""
ROUNDED = {
    "idefics3-8b": 10_000_000,  # known by the sizes of its bfloat16 files, 16.93 GB in all
    "voxtral-mini-3b": 5_000_000,  # 4.68 B
}
"""How far a published number may be off; the others are whole."""


def row(name: str, parts: Parts) -> str:
    """A model's row of the table, at the options that `fednano size` takes by default."""
    written = json.loads((configs.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    sizes = Sizes(parts, Setting(64, SHARD_ROWS, dtype_bytes=2, tokens=1, batch_size=1))
    cells = [f"`{name}`", written["_name_or_path"], human_bytes(sizes.model_bytes)]
    for stored in (sizes.client_bytes_without_options, sizes.client_bytes):
        cells += [human_bytes(stored), f"{100 * stored / sizes.model_bytes:.2f} %"]
    rows = sizes.most_rows(LIMIT)
    cells.append("never" if rows is None else "all" if rows == parts.vocabulary else f"{rows:,}")
    return f"| {' | '.join(cells)} |"


@pytest.fixture(scope="module")
def table() -> dict[str, str]:
    """Rows of the page's table by the config's name."""
    page = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^(\| `([^`]+)` \| [\w-]+/[\w.-]+ \|.*\|)$", page, re.M)
    return {name: line for line, name in rows}


@pytest.mark.parametrize("name", configs.shipped())
def test_a_shipped_config_builds_the_published_model(name: str, table: dict[str, str]) -> None:
    parts = count(read_size_config(name).config)
    difference = parts.model - (PUBLISHED[name] - NOT_COUNTED.get(name, 0))
    assert abs(difference) <= ROUNDED.get(name, 0)
    assert table.get(name) == row(name, parts)


def test_the_page_has_no_other_models(table: dict[str, str]) -> None:
    assert tuple(table) == configs.shipped()
