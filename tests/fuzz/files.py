"""Files that were damaged, or made to do damage."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from fednano_flwr.base.files import describe_file
from fednano_flwr.config import ConfigError
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.images import open_image
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.shard import Shard
from fednano_flwr.data.shard_folder import MANIFEST as SHARD_MANIFEST
from fednano_flwr.data.shard_folder import load_shard, write_shard
from fednano_flwr.data.table import in_memory
from fednano_flwr.models.bundle import MANIFEST, open_checkpoint
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.split import write_bundle
from fednano_flwr.runs import checkpoint as checkpoints
from fednano_flwr.runs.checkpoint import CheckpointError
from tests.files import checkpoint_in
from tests.fuzz.messages import mutant
from tests.fuzz.running import Tally

ODD: tuple[Any, ...] = (
    *(None, -1, 0, 2**70, 1.5, "", "x", "../x", "/etc/passwd", "\0", "é" * 300),
    *([], {}, [None], {"x": 1}),
)


def odd_json(value: Any, rng: random.Random) -> Any:
    """The same JSON but for one part, which is something else."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        what = rng.random()
        if what < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if what < 0.2:
            return {
                (rng.choice(("", "../x", "/x", "x")) if k == key else k): v
                for k, v in value.items()
            }
        return {**value, key: odd_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [*value[:at], odd_json(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)


def damaged(data: bytes, name: str, rng: random.Random) -> bytes:
    """A file's content: other bytes, or another JSON, or another header of tensors."""
    if rng.random() < 0.4:
        return mutant(data, rng)
    if name.endswith(".json"):
        text = json.dumps(odd_json(json.loads(data), rng))
        return rng.choice((text, text, "[" * 3000 + text, text + "x")).encode()
    if name.endswith(".safetensors"):
        (size,) = struct.unpack("<Q", data[:8])
        header = json.dumps(odd_json(json.loads(data[8 : 8 + size]), rng)).encode()
        length = rng.choice((len(header),) * 6 + (0, 2**40, 2**64 - 1))
        return struct.pack("<Q", length) + header + data[8 + size :]
    return mutant(data, rng)


class Folder:
    """A folder of one kind, one of whose files is damaged and then put back.

    Args:
        use: reads all that is read of it.
        after: runs on the folder when a file is damaged, as to make a manifest agree.
    """

    def __init__(
        self,
        place: Path,
        files: list[str],
        use: Callable[[Path], object],
        documented: tuple[type[Exception], ...],
        after: Callable[[Path, str], object] = lambda place, name: None,
    ) -> None:
        self.place, self.use, self.documented, self.after = place, use, documented, after
        self.files = {name: (place / name).read_bytes() for name in files}
        use(place)

    def end(self, rng: random.Random) -> Iterator[str]:
        """How reading it ends."""
        name = rng.choice(list(self.files))
        (self.place / name).write_bytes(damaged(self.files[name], name, rng))
        self.after(self.place, name)
        try:
            self.use(self.place)
        except self.documented as error:
            assert str(error)
            yield type(error).__name__
        else:
            yield "read"
        finally:
            for other, data in self.files.items():
                (self.place / other).write_bytes(data)


def _read_model(place: Path) -> None:
    checkpoint = open_checkpoint(str(place))
    names = [name for name in checkpoint.files if name != "token_ids"]
    assert checkpoint.nbytes(names) >= 0
    for _ in checkpoint.read(names):
        pass
    assert checkpoint.fingerprint
    checkpoint.embedding_rows([0, 3])


def _read_shard(place: Path) -> None:
    shard = load_shard(place)
    for sample in (*shard.train, *shard.test):
        for picture in sample.pictures:
            with suppress(FileNotFoundError):
                open_image(picture)


def _agree(manifest: str) -> Callable[[Path, str], None]:
    """Has the manifest say what the damaged file is: it may have been made on purpose."""

    def after(place: Path, name: str) -> None:
        if name != manifest:
            content = json.loads((place / manifest).read_text())
            content["files"][name] = describe_file(place / name)
            (place / manifest).write_text(json.dumps(content))

    return after


def folders(model: Path, questions: Path, dataset: Any, work: Path) -> dict[str, Folder]:
    """One of each kind, under `work`."""
    whole = Path(shutil.copytree(model, work / "model"))
    weights = sorted(file.name for file in whole.glob("*.safetensors"))
    bundle = work / "bundle"
    write_bundle(ModelCheckpoint(str(whole)), bundle)
    Image.new("RGB", (4, 4)).save(work / "p.png")
    sample = Sample(
        "1", "?", "g", "s", choices=("a", "b"), answer=0, images=(Picture(work / "p.png"),)
    )
    write_shard(work / "shard", Shard(in_memory([sample] * 3), in_memory([sample])), {})
    picture = next((work / "shard" / "images").iterdir())
    place = checkpoint_in(work / "run")
    data = Path(shutil.copytree(questions, work / "questions"))

    def read_questions(place: Path) -> None:
        load_questions(dataset)

    parts = ["problems.json", "pid_splits.json"]
    return {
        "checkpoints of a model": Folder(
            whole,
            ["config.json", "model.safetensors.index.json", *weights[:2]],
            _read_model,
            (ConfigError,),
        ),
        "edge bundles": Folder(
            bundle,
            [MANIFEST, "config.json", "model.safetensors"],
            _read_model,
            (ConfigError,),
            _agree(MANIFEST),
        ),
        "shards": Folder(
            work / "shard",
            [SHARD_MANIFEST, "data/train.arrow", f"images/{picture.name}"],
            _read_shard,
            (DataError,),
            _agree(SHARD_MANIFEST),
        ),
        "checkpoints of a run": Folder(
            place,
            [checkpoints.STATE, checkpoints.ADAPTERS, checkpoints.STRATEGY],
            lambda place: checkpoints.read(place),
            (CheckpointError,),
        ),
        "data sets": Folder(data, parts, read_questions, (DataError,)),
    }


def attack(tally: Tally, found: dict[str, Folder], examples: int) -> None:
    """As many draws of each kind."""
    for kind, folder in found.items():
        tally.run(kind, examples, folder.end)
