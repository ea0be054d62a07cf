"""Each side opens its own half's tensors and needs its own half's memory."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from benchmarks import half_loading
from fednano_flwr.config import ConfigError
from fednano_flwr.models import checkpoint as module
from fednano_flwr.models import skeleton, source, weights
from fednano_flwr.models.checkpoint import ALIGNED, FINGERPRINT_ROWS, ModelCheckpoint
from fednano_flwr.models.edge_half import EdgeHalf, load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.models.weights import INDEX
from tests import families
from tests.opened import recorded

EMBEDDINGS = "language_model.embed_tokens.weight"
FIRST = set(range(FINGERPRINT_ROWS))
ROOT = Path(__file__).parents[2]


def old_llava(name: str) -> str:
    name = re.sub(r"^language_model\.", "language_model.model.", name)
    name = re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name)
    return re.sub(r"^lm_head\.", "language_model.lm_head.", name)


def old_qwen(name: str) -> str:
    return re.sub(r"^language_model\.", "model.", name)


def new(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"


NAMES = {
    "old llava": old_llava,
    "new llava": new,
    "old qwen2_5_vl": old_qwen,
    "new qwen2_5_vl": new,
}


def rename(source: Path, target: Path, names: Callable[[str], str], shards: int = 8) -> Path:
    """The same checkpoint under other names, in several shards with an index."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    files = ModelCheckpoint(str(source)).files
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        own = sorted(files)[shard * len(files) // shards : (shard + 1) * len(files) // shards]
        tensors = {
            names(place): load_file(source / files[place][0])[files[place][1]] for place in own
        }
        save_file(tensors, target / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


@pytest.fixture(scope="module", params=families.every(*NAMES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = request.param.split()[-1]
    place = tmp_path_factory.mktemp("model")
    written = families.write(family, place / family, shard_size="20KB")
    if request.param in NAMES:
        return rename(written, place / "renamed", NAMES[request.param])
    return written


def load_edge(name: str) -> EdgeHalf:
    """The client's half with four rows of the token embeddings, the last one among them."""
    half = load_edge_half(name)
    half.token_table([3, 4, 9, vocabulary(half.checkpoint) - 1])
    return half


def vocabulary(checkpoint: ModelCheckpoint) -> int:
    return checkpoint.config.get_text_config().vocab_size


def vision_of(checkpoint: ModelCheckpoint) -> set[str]:
    """Names of all tensors that are neither the language model's nor its head."""
    language = ("language_model.", "lm_head.")
    return {name for name in checkpoint.files if not name.startswith(language)}


def test_each_side_opens_its_own_tensors_and_no_others(folder: Path) -> None:
    checkpoint = ModelCheckpoint(str(folder))
    files, vision = checkpoint.files, vision_of(checkpoint)
    assert (folder / INDEX).is_file() and len({file for file, _ in files.values()}) > 3
    with recorded() as edge:
        load_edge(str(folder))
    with recorded() as host:
        load_llm_half(str(folder))

    assert set(edge) - vision == {checkpoint.token_embeddings}
    assert edge[checkpoint.token_embeddings] == FIRST | {vocabulary(checkpoint) - 1}
    assert set(host) == {n for n in files if n.startswith(("language_model.", "lm_head."))}
    unread = {n for n in vision - set(edge) if not n.endswith(".num_batches_tracked")}
    assert all(re.search(r"encoder\.layers\.\d+\.", name) for name in unread)
    layers = {name.split("layers.")[1].split(".")[0] for name in unread}
    assert len(layers) == skeleton.trim_encoder(copy.deepcopy(checkpoint.config))


def test_the_names_on_disk_are_what_they_are_called(tmp_path: Path, tiny_model: Path) -> None:
    """So that the test above does compare old names with new ones."""
    found = {}
    for style in ("old llava", "new llava"):
        index = rename(tiny_model, tmp_path / style, NAMES[style]) / INDEX
        found[style] = set(json.loads(index.read_text())["weight_map"])
    assert "language_model.model.layers.0.mlp.up_proj.weight" in found["old llava"]
    assert "language_model.lm_head.weight" in found["old llava"]
    assert "vision_tower.vision_model.embeddings.class_embedding" in found["old llava"]
    assert "model.language_model.layers.0.mlp.up_proj.weight" in found["new llava"]


def test_weights_lie_alike_wherever_their_file_begins(tiny_model: Path, tmp_path: Path) -> None:
    """Two headers, of which one puts the data 8 bytes further: products would end otherwise."""
    begins, products = set(), []
    for padding in ("x", "x" * 9):
        folder = shutil.copytree(tiny_model, tmp_path / str(len(padding)))
        for file in folder.glob("*.safetensors"):
            save_file(load_file(file), file, {"format": "pt", "padding": padding})
            begins.add(int.from_bytes(file.read_bytes()[:8], "little") % 16)
        checkpoint = ModelCheckpoint(str(folder))
        weights = {n: w for n, w in checkpoint.read(sorted(checkpoint.files)) if w.dim() == 2}
        assert all(weight.data_ptr() % ALIGNED == 0 for weight in weights.values())
        seed = torch.Generator().manual_seed(0)
        products.append(
            [torch.randn(5, w.shape[1], generator=seed) @ w.T for w in weights.values()]
        )
    assert begins == {0, 8}
    assert all(map(torch.equal, *products))


@pytest.mark.parametrize("side", [load_edge, load_llm_half])
def test_a_side_downloads_only_the_shards_that_hold_its_tensors(
    folder: Path, side: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def whole(name: str, revision: None, allow_patterns: list[str], **options: bool) -> str:
        assert name == "owner/model" and revision is None
        assert not any("safetensors" in p for p in allow_patterns)
        return str(folder)

    def download(name: str, file: str, revision: str) -> str:
        assert name == "owner/model" and revision == folder.name
        if not (folder / file).exists():
            raise LocalEntryNotFoundError(file)  # all in one file: there is none
        asked.append(file)
        return str(folder / file)

    monkeypatch.setattr(source, "snapshot_download", whole)
    monkeypatch.setattr(weights, "hf_hub_download", download)
    with recorded() as opened:
        half = side("owner/model")
    assert half.hub_id == "owner/model"

    files = ModelCheckpoint(str(folder)).files
    assert sorted(asked) == sorted({files[name][0] for name in opened})  # and each once
    assert set(asked) < {file for file, _ in files.values()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("piece", [1000, 2**25])
def test_a_tensor_converted_in_pieces_is_the_tensor_converted(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, piece: int
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", piece)
    monkeypatch.setattr(module, "PIECE_ROWS", 5)
    checkpoint, number = ModelCheckpoint(str(tiny_model)), getattr(torch, dtype)
    stored = dict(checkpoint.read(checkpoint.files))
    for name, tensor in checkpoint.read(checkpoint.files, torch.device("cpu"), number):
        assert torch.equal(tensor, stored[name].to(number)), name
    ids = [0, 1, 2, 3, 4, 5, 6, 9, 11, 12, 13, 40, 62, 63]
    rows = checkpoint.rows(EMBEDDINGS, ids, dtype=number)
    assert torch.equal(rows, stored[EMBEDDINGS][ids].to(number))
    with pytest.raises(ConfigError, match="has 64 rows, asked for 64"):
        checkpoint.rows(EMBEDDINGS, [5, 64])


MARGIN = 35e6  # bytes that a client may need besides its half; the language model has 113 MB
CASES = (("client", "bfloat16"), ("client-rows", "float32"), ("whole", "bfloat16"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, int]]:
    """(what, as which dtype) → bytes and memory of a process that loaded it; stored in bfloat16."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("a process's peak memory is read from /proc, which only Linux has")
    folder = tmp_path_factory.mktemp("measured") / "model"
    half_loading.write(half_loading.SIZES["small"], folder, "bfloat16")
    running = {
        (what, dtype): subprocess.Popen(
            half_loading.command(what, folder, dtype),
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for what, dtype in CASES
    }
    found = {case: json.loads(process.communicate()[0]) for case, process in running.items()}
    shutil.rmtree(folder)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:2])
def test_a_clients_memory_is_its_halfs_bytes_and_little_more(
    measured: dict[tuple[str, str], dict[str, int]], case: tuple[str, str]
) -> None:
    client = measured[case]
    assert client["bytes"] > 40e6
    assert client["peak"] - client["imports"] <= client["bytes"] + MARGIN


@pytest.mark.slow
def test_the_whole_model_takes_more_than_a_client_may(
    measured: dict[tuple[str, str], dict[str, int]],
) -> None:
    whole, client = measured["whole", "bfloat16"], measured["client", "bfloat16"]
    assert whole["peak"] - whole["imports"] > client["bytes"] + MARGIN
