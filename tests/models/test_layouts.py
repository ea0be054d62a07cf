"""Which files, keys and ties of a checkpoint are read: those that transformers reads, or none.

Each layout is loaded by `from_pretrained` as well. What it fills with random numbers, which it only
warns of, has to be refused.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig
from typer.testing import CliRunner

from fednano_flwr.cli.app import cli
from fednano_flwr.config import ConfigError
from fednano_flwr.models.checkpoint import HEAD, ModelCheckpoint
from fednano_flwr.models.families import FAMILIES, canonical
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.models.weights import INDEX, SINGLE
from tests import families

OLD_HEAD = "language_model.lm_head.weight"
TABLE = "language_model.model.embed_tokens.weight"
NORM = "language_model.model.norm.weight"
Change = Callable[[Path], None]


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """What the folder's safetensors files hold."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def shards_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))


def write_single(
    folder: Path, tensors: Mapping[str, Tensor], keep_shards: bool = False, name: str = SINGLE
) -> None:
    if not keep_shards:
        for file in (*folder.glob("*.safetensors"), folder / INDEX):
            file.unlink()
    save_file(dict(tensors), folder / name, metadata={"format": "pt"})


def set_config(folder: Path, text: Mapping[str, Any] | None = None, **keys: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | keys
    config["text_config"] |= text or {}
    file.write_text(json.dumps(config))


def single(folder: Path) -> None:
    write_single(folder, tensors_of(folder))


def both(folder: Path) -> None:
    """A newer file of all tensors beside the old shards and their index."""
    newer = {name: value + 1 for name, value in tensors_of(folder).items()}
    write_single(folder, newer, keep_shards=True)


def both_but_shards(folder: Path) -> None:
    shards = list(folder.glob("*.safetensors"))
    both(folder)
    for shard in shards:
        shard.unlink()


def index_alone(folder: Path) -> None:
    for shard in folder.glob("*.safetensors"):
        shard.unlink()


def unlisted(key: str) -> Change:
    def change(folder: Path) -> None:
        write_index(folder, {k: file for k, file in shards_of(folder).items() if k != key})

    return change


def listed_elsewhere(folder: Path) -> None:
    weight_map = shards_of(folder)
    others = sorted(set(weight_map.values()) - {weight_map[OLD_HEAD]})
    write_index(folder, weight_map | {OLD_HEAD: others[0]})


def listed_in_vain(folder: Path) -> None:
    weight_map = shards_of(folder)
    write_index(folder, weight_map | {"language_model.model.extra": weight_map[NORM]})


def lacking(*keys: str, tied: bool | None = None, text_tied: bool | None = None) -> Change:
    """One file without these tensors; what the config says of the tie, at its two places."""

    def change(folder: Path) -> None:
        kept = {name: value for name, value in tensors_of(folder).items() if name not in keys}
        write_single(folder, kept)
        top = {} if tied is None else {"tie_word_embeddings": tied}
        text = {} if text_tied is None else {"tie_word_embeddings": text_tied}
        set_config(folder, text, **top)

    return change


def equal_but_tied(folder: Path) -> None:
    tensors = tensors_of(folder)
    write_single(folder, tensors | {OLD_HEAD: tensors[TABLE].clone()})
    set_config(folder, tie_word_embeddings=True)


def renamed(names: Callable[[str], str]) -> Change:
    def change(folder: Path) -> None:
        write_single(folder, {names(name): value for name, value in tensors_of(folder).items()})

    return change


def newest(name: str) -> str:
    return name if canonical(name) == HEAD else f"model.{canonical(name)}"


def of_a_text_model(name: str) -> str:
    return name.removeprefix("language_model.")


def pytorch_only(folder: Path) -> None:
    tensors = tensors_of(folder)
    write_single(folder, {})
    (folder / SINGLE).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def named(name: str, beside: bool = False) -> Change:
    """The file under a name that `from_pretrained` does not look for."""

    def change(folder: Path) -> None:
        tensors = tensors_of(folder)
        write_single(folder, {key: value + beside for key, value in tensors.items()}, beside, name)

    return change


def adapter_beside(folder: Path) -> None:
    weights = {"base_model.model.x.lora_A.weight": torch.ones(2, 2)}
    save_file(weights, folder / "adapter_model.safetensors")


def adapter_with_config(folder: Path) -> None:
    """PEFT's files, which `from_pretrained` puts on top of the weights."""
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_"
    weights = {f"{name}A.weight": torch.ones(2, 48), f"{name}B.weight": torch.ones(48, 2)}
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def extra_keys(folder: Path) -> None:
    more = {"optimizer.step": torch.ones(1), "language_model.model.layers.9.junk": torch.ones(2)}
    write_single(folder, tensors_of(folder) | more)


def twice(folder: Path) -> None:
    """One tensor under two names of its own, of two versions of transformers."""
    tensors = tensors_of(folder)
    write_single(folder, tensors | {"lm_head.weight": tensors[OLD_HEAD] + 1})


def of_another_shape(key: str, *shape: int) -> Change:
    return lambda folder: write_single(folder, tensors_of(folder) | {key: torch.ones(shape)})


def as_integers(folder: Path) -> None:
    write_single(folder, tensors_of(folder) | {NORM: torch.ones(48, dtype=torch.int8)})


def in_a_subfolder(folder: Path) -> None:
    (folder / "parts").mkdir()
    for file in folder.glob("*.safetensors"):
        file.rename(folder / "parts" / file.name)
    write_index(folder, {key: f"parts/{file}" for key, file in shards_of(folder).items()})


def linked(folder: Path) -> None:
    (folder.parent / "blobs").mkdir()
    for file in folder.glob("*.safetensors"):
        file.rename(folder.parent / "blobs" / file.name)
        file.symlink_to(folder.parent / "blobs" / file.name)


def linked_nowhere(folder: Path) -> None:
    linked(folder)
    shutil.rmtree(folder.parent / "blobs")


def outside(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.rename(folder.parent / file.name)
    write_index(folder, {key: f"../{file}" for key, file in shards_of(folder).items()})


def cut_off(folder: Path) -> None:
    single(folder)
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:-100])


def git_lfs_pointer(folder: Path) -> None:
    single(folder)
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (folder / SINGLE).write_text(text)


def weights_named_by_config(folder: Path) -> None:
    both(folder)
    (folder / SINGLE).rename(folder / "other.safetensors")
    set_config(folder, transformers_weights="other.safetensors")


SAME: dict[str, Change] = {
    "shards and index": lambda folder: None,
    "one file": single,
    "a newer file beside shards and index": both,
    "a newer file beside an index whose shards are gone": both_but_shards,
    "the index lists what is no part": listed_in_vain,
    "no head, tied": lacking(OLD_HEAD, tied=True),
    "no head, tied by the text's config": lacking(OLD_HEAD, text_tied=True),
    "no head, tied above and not in the text's": lacking(OLD_HEAD, tied=True, text_tied=False),
    "a head though tied": lacking(tied=True),
    "a head equal to the table, tied": equal_but_tied,
    "newest names": renamed(newest),
    "a variant beside": named("model.fp16.safetensors", beside=True),
    "consolidated.safetensors beside": named("consolidated.safetensors", beside=True),
    "weights of an adapter without its config": adapter_beside,
    "keys of no part": extra_keys,
    "shards in a subfolder": in_a_subfolder,
    "linked shards": linked,
    "dtype": lambda folder: set_config(folder, dtype="bfloat16", torch_dtype="float16"),
    "dtype of the text": lambda folder: set_config(folder, {"torch_dtype": "bfloat16"}),
}
REFUSED: dict[str, tuple[Change, str]] = {
    "an index whose shards are gone": (index_alone, rf"model-00001.* is missing.*{INDEX}"),
    "the head is in no index, untied": (unlisted(OLD_HEAD), rf"{INDEX}.*{OLD_HEAD}"),
    "a weight is in no index": (unlisted(NORM), rf"{INDEX}.*{NORM}.*model-0000"),
    "the index names another file": (listed_elsewhere, rf"{INDEX}.*{OLD_HEAD}.*model-0000"),
    "no head, untied": (lacking(OLD_HEAD), f"{HEAD}.*tie_word_embeddings"),
    "no table, tied": (lacking(TABLE, tied=True), "embed_tokens"),
    "a weight is nowhere": (lacking(NORM), r"language_model\.norm\.weight"),
    "PyTorch's own format": (pytorch_only, r"pytorch_model\.bin.*save_pretrained"),
    "only a variant": (named("model.fp16.safetensors"), r"model\.fp16\.safetensors.*Rename"),
    "consolidated.safetensors": (named("consolidated.safetensors"), r"consolidated\.safetensors"),
    "an adapter beside": (adapter_with_config, r"adapter_config\.json.*PEFT"),
    "names of a text model": (renamed(of_a_text_model), r"has no tensor|one tensor"),
    "one tensor twice": (twice, rf"{OLD_HEAD}.*lm_head\.weight"),
    "a smaller table": (of_another_shape(TABLE, 60, 48), r"\(60, 48\).*\(64, 48\)"),
    "a wider norm": (of_another_shape(NORM, 50), r"\(50,\).*\(48,\)"),
    "integers": (as_integers, r"language_model\.norm\.weight is of I8"),
    "links to nowhere": (linked_nowhere, r"model-00001.* is missing"),
    "shards outside of the folder": (outside, r"\.\./model-00001"),
    "a file that was cut off": (cut_off, SINGLE),
    "a pointer of git-lfs": (git_lfs_pointer, "git lfs pull"),
    "weights that the config names": (weights_named_by_config, r"other\.safetensors"),
}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def read_by_transformers(folder: Path) -> dict[str, Tensor]:
    """All tensors by canonical name, and none that was drawn by chance."""
    architecture = FAMILIES[AutoConfig.from_pretrained(folder).model_type].model_class
    model, info = architecture.from_pretrained(folder, dtype="float32", output_loading_info=True)
    assert not info["missing_keys"]
    return {canonical(name): value for name, value in model.state_dict().items()}


def read_here(folder: Path) -> dict[str, Tensor]:
    """The same from both halves' tensors."""
    checkpoint = ModelCheckpoint(str(folder))
    found: dict[str, Tensor] = {}
    for half in ("llm", "edge"):
        shapes = checkpoint.tensors(half)
        checkpoint.check(shapes)
        found |= dict(checkpoint.read(shapes))
    if checkpoint.tied:
        found[HEAD] = found[checkpoint.token_embeddings]
    head = load_llm_half(str(folder))._head.head.weight
    assert torch.equal(found[HEAD], head)
    return found


@pytest.mark.parametrize("layout", SAME)
def test_what_is_read_is_what_transformers_reads(folder: Path, layout: str) -> None:
    SAME[layout](folder)
    theirs, ours = read_by_transformers(folder), read_here(folder)
    unused = theirs.keys() - ours.keys()
    assert all("vision_tower" in name and "layers.1." in name for name in unused)  # trimmed
    assert all(torch.equal(ours[name].float(), theirs[name]) for name in ours)


@pytest.mark.parametrize("layout", REFUSED)
def test_what_transformers_would_fill_or_read_otherwise_is_refused(
    folder: Path, layout: str
) -> None:
    change, says = REFUSED[layout]
    change(folder)
    with pytest.raises(ConfigError, match=says):
        read_here(folder)


def module_tree(folder: Path) -> None:
    """Names as the installed transformers has them in its module tree."""
    names = ModelCheckpoint(str(folder))._names
    write_single(folder, {str(names(key)): value for key, value in tensors_of(folder).items()})


def without_models_prefix(folder: Path) -> None:
    tensors = tensors_of(folder)
    write_single(folder, {key.removeprefix("model."): value for key, value in tensors.items()})


def vision_model(folder: Path) -> None:
    """An older name of encoders, which transformers knows of CLIP and SigLIP."""
    pattern = r"(vision_tower)\.(?!vision_model)"
    tensors = tensors_of(folder)
    write_single(
        folder, {re.sub(pattern, r"\1.vision_model.", key): v for key, v in tensors.items()}
    )


@pytest.mark.parametrize("family", families.every(but=("llava",)))
@pytest.mark.parametrize("change", [single, module_tree, without_models_prefix, vision_model])
def test_names_of_other_versions_are_taken_where_transformers_takes_them(
    family: str, change: Change, tmp_path: Path
) -> None:
    folder = families.write(family, tmp_path / family)
    change(folder)
    try:
        theirs = read_by_transformers(folder)
    except AssertionError:
        with pytest.raises(ConfigError, match=r"has no tensor|one tensor"):
            read_here(folder)
        return
    ours = read_here(folder)
    assert all(torch.equal(ours[name].float(), theirs[name]) for name in ours)


@pytest.mark.parametrize("family", families.every(but=("llava",)))
@pytest.mark.parametrize("said", [True, False])
def test_a_missing_head_is_the_table_where_transformers_ties_it(
    family: str, said: bool, tmp_path: Path
) -> None:
    """By the key of the config, of the text's config, or the family's default."""
    folder = families.write(family, tmp_path / family)
    kept = {k: value for k, value in tensors_of(folder).items() if not k.endswith(HEAD)}
    write_single(folder, kept)
    for top, text in ((None, said), (said, not said)):
        set_config(folder, {"tie_word_embeddings": text})
        if top is not None:
            set_config(folder, tie_word_embeddings=top)
        try:
            theirs = read_by_transformers(folder)
        except AssertionError:
            with pytest.raises(ConfigError, match=f"{HEAD}.*tie_word_embeddings"):
                read_here(folder)
        else:
            assert torch.equal(read_here(folder)[HEAD].float(), theirs[HEAD])


COMMANDS = (
    "run -c model.name={model} -c dataset.path={data}",
    "split {model} --out {out}",
    "serve {model} --token-file {out}",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_such_a_checkpoint_before_anything_is_started(
    command: str, folder: Path, tiny_questions: Path, tmp_path: Path
) -> None:
    change = listed_elsewhere if command.startswith("split") else unlisted(OLD_HEAD)
    change(folder)
    arguments = command.format(model=folder, data=tiny_questions, out=tmp_path / "out").split()
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2, result.output
    assert INDEX in result.output and OLD_HEAD in result.output.replace("\n", "")
