"""An edge bundle: what a client is given instead of the checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fednano_flwr.base.output import OutputError
from fednano_flwr.config import ConfigError
from fednano_flwr.edge.encoder import QuestionEncoder, load_encoder
from fednano_flwr.exchange.errors import HostRefusedError
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models import split as splitting
from fednano_flwr.models.bundle import MANIFEST, EdgeBundle, open_checkpoint
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import EdgeHalf, MissingRowError, load_edge_half
from fednano_flwr.models.llm_half import LLMHalf, load_llm_half
from fednano_flwr.models.split import write_bundle
from tests.families import every
from tests.models.test_families import samples_of
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    write_bundle(ModelCheckpoint(str(tiny_model)), folder)
    return folder


@pytest.mark.parametrize("family", every())
def test_a_bundle_of_every_family_gives_the_checkpoints_features(
    family: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model, bundle = str(family_folder(family)), str(tmp_path / "bundle")
    write_bundle(ModelCheckpoint(model), tmp_path / "bundle")
    encoders = [load_encoder(open_checkpoint(name)) for name in (model, bundle)]
    whole, alone = load_edge_half(model), load_edge_half(bundle)
    places = torch.tensor(sum(whole.placeholders.values(), ()))
    for sample in samples_of(encoders[0]):
        ids = [encoder.encode(sample).ids for encoder in encoders]
        assert torch.equal(*ids)
        inputs = [encoder.vision_inputs(sample) for encoder in encoders]
        for site in sample.media:
            assert torch.equal(whole.features(site, inputs[0]), alone.features(site, inputs[1]))
        text = ids[0][~torch.isin(ids[0], places)]
        assert torch.equal(whole.token_table()(text), alone.token_table()(text))


def test_it_holds_nothing_of_the_llm_and_no_unused_layer(
    bundle: Path, edge_half: EdgeHalf, tiny_model: Path
) -> None:
    names = set(load_file(bundle / "model.safetensors"))
    language = {name for name in names if name.startswith(("language_model", "lm_head"))}
    assert language == {"language_model.embed_tokens.weight"}
    assert not any("encoder.layers.1." in name for name in names)
    manifest = json.loads((bundle / MANIFEST).read_text())
    assert manifest["encoder_layers_dropped"] == 1
    parts = (edge_half, edge_half.token_table())
    assert manifest["parameters"] == sum(p.numel() for part in parts for p in part.parameters())


def test_a_client_works_from_it_where_there_is_no_checkpoint(
    tiny_model: Path, bundle: Path, tmp_path: Path, llm_half: LLMHalf
) -> None:
    half = load_edge_half(str(shutil.copytree(bundle, tmp_path / "elsewhere")))
    with serve(FrozenLLM(llm_half)) as address, RemoteLLM(address) as remote:
        remote.register(half.model, half.fingerprint, half.hidden_size, half.hub_id)


def test_a_bundle_of_another_model_is_refused_with_both_named(
    tmp_path: Path, llm_half: LLMHalf
) -> None:
    other = write_checkpoint(tmp_path / "other", seed=1)
    write_bundle(ModelCheckpoint(str(other)), tmp_path / "bundle")
    half = load_edge_half(str(tmp_path / "bundle"))
    with serve(FrozenLLM(llm_half)) as address, RemoteLLM(address) as remote:
        with pytest.raises(HostRefusedError) as refusal:
            remote.register(half.model, half.fingerprint, half.hidden_size, half.hub_id)
    for part in (llm_half.model, llm_half.fingerprint, str(other), half.fingerprint):
        assert part in str(refusal.value)


def test_two_different_names_on_the_hub_are_refused_whatever_the_weights(
    llm_half: LLMHalf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_half, "hub_id", "some/model")
    fit = llm_half.fingerprint, llm_half.hidden_size
    with serve(FrozenLLM(llm_half)) as address, RemoteLLM(address) as remote:
        remote.register("/a/copy", *fit, hub_id="")
        remote.register("some/model", *fit, hub_id="some/model")
        with pytest.raises(HostRefusedError, match="other/model"):
            remote.register("other/model", *fit, hub_id="other/model")


def test_only_the_rows_asked_for_are_in_a_cut_bundle(
    tiny_model: Path, tmp_path: Path, edge_half: EdgeHalf
) -> None:
    bundle = write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "cut", ids=[2, 3, 11, 40])
    assert len(load_file(tmp_path / "cut" / "model.safetensors")[bundle.token_embeddings]) == 4
    table = load_edge_half(str(tmp_path / "cut")).token_table()
    wanted = torch.tensor([40, 3, 3])
    assert torch.equal(table(wanted), edge_half.token_table()(wanted))
    with pytest.raises(MissingRowError, match=r"token 12 .*edge\.vocabulary"):
        table(torch.tensor([3, 12]))
    with pytest.raises(ConfigError, match=r"lacks the embeddings of 2 tokens.*token 5"):
        load_edge_half(str(tmp_path / "cut")).token_table([3, 5, 60])


def test_a_shards_rows_give_the_embeddings_of_all_and_refuse_others(
    edge_half: EdgeHalf, encoder: QuestionEncoder
) -> None:
    table, full = edge_half.token_table([3, 4, 20]), edge_half.token_table()
    assert table.weight.shape == (3, 48)
    assert torch.equal(table(torch.tensor([20, 3])), full(torch.tensor([20, 3])))
    for missing in (0, 19, 63):
        with pytest.raises(MissingRowError, match=f"token {missing} has no embedding"):
            table(torch.tensor([4, missing]))


def test_tensors_can_be_stored_in_another_dtype(tiny_model: Path, tmp_path: Path) -> None:
    write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "half", dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert (
        load_edge_half(str(tmp_path / "half")).fingerprint
        == load_edge_half(str(tiny_model)).fingerprint
    )


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_bundle_is_refused_by_file(bundle: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(bundle, tmp_path / "damaged")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    if damage == "changed":
        weights.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors is (missing|not the file)"):
        open_checkpoint(str(folder))


def test_a_host_cannot_be_made_of_a_bundle(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="holds a client's half only"):
        load_llm_half(str(bundle))


def test_a_bundle_is_not_split_again(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is an edge bundle already"):
        write_bundle(EdgeBundle(str(bundle)), tmp_path / "again")


def test_a_failure_leaves_nothing_and_a_folder_in_use_is_not_touched(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").touch()
    with pytest.raises(OutputError, match="folder is not empty"):
        write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "used")

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(splitting, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_too_small_a_disk_is_noticed_first_with_both_sizes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("fednano_flwr.base.output.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"takes about 67\.\d MB.* 1\.0 kB free"):
        write_bundle(ModelCheckpoint(str(tiny_model)), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
