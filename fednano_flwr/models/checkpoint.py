"""A model's checkpoint on disk or on the hub, read tensor by tensor.

Only the tensors asked for are read: a client opens none of the language model's, the host none of
the vision encoder's. From the hub, only the shards that hold them are downloaded.

A file is mapped into memory, and what was touched of it counts as this process's until the mapping
is gone. A weight that stays as it is stored stays mapped; one that is converted is read through a
mapping of its own, some megabytes at a time. So a side needs its own half's memory and little
besides.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig

from fednano_flwr.base.files import check_name
from fednano_flwr.config import ConfigError
from fednano_flwr.models import skeleton
from fednano_flwr.models.families import FAMILIES, Family, canonical
from fednano_flwr.models.fingerprint import digests_of_halves
from fednano_flwr.models.source import locate, read_config

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
DISTRIBUTED = "shard-*-model-*-of-*.safetensors"
OTHER_WEIGHTS = ("*.safetensors", "*.bin*", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
LFS = b"version https://git-lfs"
HEAD = "lm_head.weight"
Half = Literal["llm", "edge"]
FINGERPRINT_ROWS = 64
PIECE_BYTES = 16 * 2**20  # of a tensor, converted before its mapping is let go
PIECE_ROWS = 256  # likewise where rows are picked: each brings its neighbours' pages along
LEARNED_POSITIONS = ("opt",)
"""Language models whose positions are looked up in a table that ends."""
ALIGNED = 16  # bytes; safetensors begins at a multiple of 8
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
Target = torch.device | None | Callable[[str], torch.device | None]
"""Where tensors go: all to one device (None: as stored), or each by its name."""


def frozen(name: str, tensor: Tensor) -> nn.Parameter:
    """A parameter that is not trained."""
    return nn.Parameter(tensor, requires_grad=False)


class Checkpoint:
    """Config and tensors of one model of a known family.

    Args:
        name: `model.name` of the run config: a folder, a hub id or `package:NAME/SUB`.
        revision: `model.revision`: branch, tag or commit on the hub.

    Attributes:
        hub_id: the model's name on the hub; "" for a folder.
        revision: its commit there; "" for a folder.

    Raises:
        ConfigError: there is no such model, or its family cannot be cut.
    """

    def __init__(self, name: str, revision: str = "") -> None:
        self.name = name
        self.folder, self.revision = locate(name, revision)
        self._on_hub = bool(self.revision)
        self.hub_id = name if self._on_hub else ""
        self._downloaded: dict[str, Path] = {}
        self._checked: set[str] = set()
        self.config: PretrainedConfig = read_config(name, self.folder)
        self.family: Family = FAMILIES[self.config.model_type]

    @cached_property
    def chosen(self) -> str:
        """`SINGLE` or `INDEX`: the file that `from_pretrained` begins with, the former before."""
        if self._has(SINGLE):
            return SINGLE
        if (self.folder / INDEX).is_file():
            return INDEX
        others = sorted(
            path.name for kind in OTHER_WEIGHTS for path in self.folder.glob(kind) if path.is_file()
        )
        there = f"; of weights there are {', '.join(others)}" if others else ""
        raise ConfigError(
            f"model {self.name}: {self.folder} has neither {SINGLE} nor {INDEX}, and no other file "
            f"of weights is read{there}. Rename a variant of it to {SINGLE}, or load the model "
            "with transformers and save it with save_pretrained"
        )

    @cached_property
    def files(self) -> dict[str, tuple[str, str]]:
        """Canonical tensor name → (file, the tensor's name in it).

        What `from_pretrained` does not take for a part of the model is left out.

        Raises:
            ConfigError: no files that are read, or some that `from_pretrained` reads otherwise.
        """
        self._refuse_other_layouts()
        files: dict[str, tuple[str, str]] = {}
        for key, file in self._listed.items():
            name = self.called(key)
            if name is None:
                continue
            if name in files:
                other, before = files[name]
                raise ConfigError(
                    f"model {self.name}: {before} in {other} and {key} in {file} are the same "
                    f"tensor, {name}; take one of them out"
                )
            files[name] = file, key
        if self.chosen == INDEX and not self._on_hub:
            for file in sorted(set(self._listed.values())):
                if (self.folder / file).exists():
                    self.path(file)
        return files

    @cached_property
    def tied(self) -> bool:
        """Whether the head is the table of the token embeddings, as `from_pretrained` decides."""
        tied = {canonical(name) for name in self._whole.all_tied_weights_keys}
        return HEAD not in self.files and HEAD in tied

    def called(self, key: str) -> str | None:
        """Canonical name of the tensor that a file calls so; None where it is no part of the model.

        Raises:
            ConfigError: the tensor is stored in a form that is not read.
        """
        try:
            name = self._names(key)
        except ValueError as error:
            raise ConfigError(f"model {self.name}: {error}") from None
        return None if name is None else canonical(name)

    def tensors(self, half: Half) -> dict[str, torch.Size]:
        """Canonical names and shapes of what a side reads: "llm" or "edge"."""
        config = copy.deepcopy(self.config)
        if half == "edge":
            skeleton.trim_encoder(config)
        whole = skeleton.build(config)
        if half == "edge":
            table = skeleton.drop_language(whole).weight.shape
        else:
            skeleton.drop_vision(whole)
        found = {canonical(name): value.shape for name, value in whole.named_parameters()}
        if half == "edge":
            found[self.token_embeddings] = table
        elif self.tied:
            found.pop(HEAD, None)
        return found

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Refuse tensors that cannot be read, by the headers of their files.

        Args:
            shapes: by canonical name.

        Raises:
            ConfigError: one is missing, or has another shape or a dtype that is not read.
        """
        by_file: dict[str, list[str]] = {}
        for name in shapes:
            by_file.setdefault(self._entry(name)[0], []).append(name)
        for filename, names in by_file.items():
            with self._opened(self.path(filename)) as file:
                for name in names:
                    stored = file.get_slice(self.files[name][1])
                    self._dtype(name, stored)
                    shape = tuple(stored.get_shape())
                    if shape != tuple(shapes[name]):
                        raise ConfigError(
                            f"model {self.name}: tensor {name} in {filename} has shape {shape}, "
                            f"the config asks for {tuple(shapes[name])}"
                        )

    def read(
        self,
        names: Iterable[str],
        device: Target = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the named tensors, file by file, moved and converted where asked for.

        One that is neither stays mapped: processes on one machine share its memory. But for one
        that lies in the file so that matrix products with it would end in other bits.

        Raises:
            ConfigError: the checkpoint lacks one of them; none is read then.
        """
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self._entry(name)[0], []).append(name)
        for filename, wanted in by_file.items():
            path = self.path(filename)
            with self._opened(path) as file:
                for name in wanted:
                    key = self.files[name][1]
                    stored = file.get_tensor(key)  # mapped: nothing of it is in memory yet
                    target = _device(device, name)
                    if dtype in (None, stored.dtype) and target in (None, stored.device):
                        yield name, stored.clone() if _is_askew(stored) else stored
                    else:
                        yield name, _converted(path, key, stored, target, dtype)

    def rows(
        self,
        name: str,
        ids: Sequence[int],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The rows `ids`, ascending, of a two-dimensional tensor, and no others, (len(ids), d)."""
        filename, key = self._entry(name)
        path = self.path(filename)
        with self._opened(path) as file:
            stored = file.get_slice(key)
            shape = stored.get_shape()
            if len(shape) != 2:
                raise ConfigError(f"model {self.name}: {name} is no table: it has shape {shape}")
            count, width = shape
            dtype = dtype or self._dtype(name, stored)
        if ids and ids[-1] >= count:
            raise ConfigError(f"model {self.name}: {name} has {count} rows, asked for {ids[-1]}")
        result = torch.empty(len(ids), width, dtype=dtype, device=device)
        for start in range(0, len(ids), PIECE_ROWS):
            with self._opened(path) as file:
                stored, place = file.get_slice(key), start
                for first, end in _runs(ids[start : start + PIECE_ROWS]):
                    result[place : place + end - first] = stored[first:end]
                    place += end - first
        return result

    def fill(
        self,
        module: nn.Module,
        device: Target,
        dtype: torch.dtype,
        make: Callable[[str, Tensor], nn.Parameter] = frozen,
    ) -> None:
        """Give every parameter of `module` (built on the meta device) its frozen weight.

        Args:
            device: of all, or by the names in `module`; a tensor is read straight to there.
            make: turns a name in `module` and the tensor read for it into the parameter.
        """
        names = {canonical(name): name for name, _ in module.named_parameters()}
        self.check({canonical(name): value.shape for name, value in module.named_parameters()})
        for place, tensor in self.read(names, lambda place: _device(device, names[place]), dtype):
            owner_name, _, leaf = names[place].rpartition(".")
            owner = module.get_submodule(owner_name)
            setattr(owner, leaf, make(names[place], tensor))
        for path, owner in module.named_modules():
            for key, value in owner.named_buffers(recurse=False):
                setattr(owner, key, value.to(_device(device, f"{path}.{key}")))
        module.eval()

    def embedding_rows(
        self,
        ids: Sequence[int] | None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Token embeddings (n, d) of `ids`, or of all, and these ids (n,), None for all."""
        if ids is None:
            ((_, table),) = self.read([self.token_embeddings], device, dtype)
            return table, None
        return self.rows(self.token_embeddings, ids, device, dtype), torch.tensor(ids)

    def nbytes(self, names: Iterable[str]) -> int:
        """Bytes of the named tensors as they are stored; only the files' headers are read."""
        total = 0
        for name in names:
            filename, key = self._entry(name)
            with self._opened(self.path(filename)) as file:
                stored = file.get_slice(key)
                total += math.prod(stored.get_shape()) * self._dtype(name, stored).itemsize
        return total

    @property
    def longest(self) -> int:
        """Most tokens in a sample, where positions have a learned table; else 0."""
        text = self.config.get_text_config()
        return text.max_position_embeddings if text.model_type in LEARNED_POSITIONS else 0

    @cached_property
    def fingerprint(self) -> str:
        """Digests of config and first token embeddings, and of samples of each half's tensors.

        To be compared by `same_checkpoint`: a half of which files are missing is left empty.
        """
        digest = hashlib.sha256()
        # As written, not as this version of transformers completes it: sides may differ in version.
        config = json.loads((self.folder / "config.json").read_text("utf-8"))
        digest.update(json.dumps(config, sort_keys=True).encode())
        rows = self.rows(self.token_embeddings, range(FINGERPRINT_ROWS))
        digest.update(rows.float().numpy().tobytes())
        return "-".join((digest.hexdigest()[:16], *digests_of_halves(self.folder, self.files)))

    @cached_property
    def token_embeddings(self) -> str:
        """Canonical name of the token-embedding table."""
        found = [name for name in self.files if name.endswith("embed_tokens.weight")]
        if len(found) != 1:
            raise ConfigError(
                f"model {self.name}: one tensor embed_tokens.weight expected, there "
                f"{'are ' + ', '.join(found) if found else 'is none'}"
            )
        return found[0]

    def _entry(self, name: str) -> tuple[str, str]:
        if name not in self.files:
            hint = ""
            if name == HEAD:
                hint = (
                    f", and its config.json does not say tie_word_embeddings where "
                    f"{self.family.architecture} looks for it. Get the file that has it; or, if "
                    "the head is the table of the token embeddings, set tie_word_embeddings to "
                    "true, beside model_type"
                )
            raise ConfigError(
                f"model {self.name}: {self.chosen} has no tensor {name}, which the config asks "
                f"for{hint}"
            )
        return self.files[name]

    @cached_property
    def _whole(self) -> Any:
        return skeleton.build(self.config)

    @cached_property
    def _names(self) -> Callable[[str], str | None]:
        return skeleton.checkpoint_names(self._whole)

    @cached_property
    def _listed(self) -> dict[str, str]:
        """Which file holds which tensor, by the names that files have for tensors."""
        if self.chosen == INDEX:
            return self._weight_map(self.folder / INDEX)
        with self._opened(self.path(SINGLE)) as file:
            return dict.fromkeys(file.keys(), SINGLE)

    def _refuse_other_layouts(self) -> None:
        """Refuse what `from_pretrained` reads besides, or instead of, the usual files.

        Raises:
            ConfigError: there is such.
        """
        if (self.folder / ADAPTER).is_file():
            raise ConfigError(
                f"model {self.name}: {self.folder} has {ADAPTER} beside config.json, and "
                "from_pretrained puts that adapter on top of the weights. Merge it into them with "
                "PEFT (merge_and_unload, then save_pretrained), or move it elsewhere"
            )
        explicit = getattr(self.config, "transformers_weights", None)
        if explicit not in (None, SINGLE):
            raise ConfigError(
                f"model {self.name}: its config.json names the weights {explicit!r} "
                f"(transformers_weights), and only {SINGLE} and {INDEX} are read; rename the file "
                "and take the key out"
            )
        if parts := sorted(path.name for path in self.folder.glob(DISTRIBUTED)):
            raise ConfigError(
                f"model {self.name}: {self.folder} holds a distributed checkpoint ({parts[0]}, …), "
                "which is not read; load it with transformers and save it with save_pretrained"
            )

    def _has(self, filename: str) -> bool:
        """Whether there is such a file; downloaded where it lies on the hub."""
        if not self._on_hub:
            return (self.folder / filename).is_file()
        try:
            self._downloaded[filename] = self._download(filename)
        except ConfigError as error:
            if isinstance(error.__cause__, EntryNotFoundError):
                return False
            raise
        return True

    def _check_shard(self, filename: str, path: Path) -> None:
        """Compare a file with what the index says of it.

        `from_pretrained` reads what the files hold, and the index says which side reads which file.

        Raises:
            ConfigError: they differ in a tensor of the model.
        """
        try:
            with self._opened(path) as file:
                held = set(file.keys())
        except ConfigError:
            return  # who reads a tensor of it is told; the other side need not have it
        listed = {key for key, name in self._listed.items() if name == filename}
        for key in sorted(held ^ listed):
            if self.called(key) is None:
                continue
            what = f"lists {key} in {filename}, which lacks it"
            if key in held:
                other = self._listed.get(key)
                what = f"{f'says {key} is in {other}' if other else f'does not list {key}'}, and "
                what += f"{filename} holds it"
            raise ConfigError(
                f"model {self.name}: {INDEX} {what}; they are not of one checkpoint: get both anew"
            )

    def _weight_map(self, index: Path) -> dict[str, str]:
        """What an index says."""
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            if not isinstance(weight_map, dict):
                raise ValueError("its weight_map is no object")
            for name in weight_map.values():
                check_name(name)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(f"model {self.name}: {index} cannot be used: {error}") from error
        return weight_map

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        """A file of tensors; what is wrong with it is said as an error of the model."""
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"model {self.name}: {path} is no safetensors file that can be read: "
                f"{error}{_pointer(path)}"
            ) from error

    def _dtype(self, name: str, stored: Any) -> torch.dtype:
        kind = stored.get_dtype()
        if kind not in _DTYPES:
            raise ConfigError(
                f"model {self.name}: {name} is of {kind}; read are {', '.join(_DTYPES)}"
            )
        return _DTYPES[kind]

    def path(self, filename: str) -> Path:
        """Where one of its files lies; downloaded first, where it lies on the hub.

        Raises:
            ConfigError: the name leads out of the folder, or the file is missing, or a shard does
                not hold what the index says.
        """
        path = self._found(filename)
        if filename not in self._checked:
            self._checked.add(filename)
            if self.chosen == INDEX and filename in self._listed.values():
                self._check_shard(filename, path)
        return path

    def _found(self, filename: str) -> Path:
        if self._on_hub:
            if filename not in self._downloaded:  # asks the hub each time
                self._downloaded[filename] = self._download(filename)
            return self._downloaded[filename]
        path = self.folder / filename
        try:
            check_name(filename)
            found = path.exists()
        except (OSError, ValueError) as error:  # a name that is too long for one of a file
            raise ConfigError(f"model {self.name}, in {self.folder}: {error}") from None
        if not found:
            by = f", which {INDEX} lists" if self.chosen == INDEX else ""
            raise ConfigError(f"model {self.name}: {path} is missing{by}")
        return path

    def _download(self, filename: str) -> Path:
        try:
            return Path(hf_hub_download(self.hub_id, filename, revision=self.revision))
        except OSError as error:
            raise ConfigError(
                f"model {self.name}: {filename} (revision {self.revision}) is not in this "
                f"machine's cache and cannot be downloaded: {str(error).splitlines()[0]}"
            ) from error


def _device(device: Target, name: str) -> torch.device | None:
    return device if device is None or isinstance(device, torch.device) else device(name)


def _pointer(path: Path) -> str:
    """A hint where a file is what git leaves of one that it keeps elsewhere."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            return "; it is a pointer of git-lfs: git lfs pull gets the file itself"
    return ""


def _is_askew(stored: Tensor) -> bool:
    """Whether products with it may differ in their last bit from those with the same numbers.

    MKL's do on CPUs where float32 or float64 does not begin at a multiple of 16 bytes, and the
    same weights may lie so in an edge bundle and not in the checkpoint.
    """
    return stored.dtype in (torch.float32, torch.float64) and stored.data_ptr() % ALIGNED != 0


def _converted(
    path: Path,
    key: str,
    stored: Tensor,
    device: torch.device | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """A copy of one tensor of a file, of which no more than a piece is ever in memory twice."""
    if stored.dim() == 0:
        return stored.to(device, dtype)
    result = torch.empty(stored.shape, dtype=dtype or stored.dtype, device=device)
    step = max(1, PIECE_BYTES * len(stored) // max(1, stored.nbytes))
    for first in range(0, len(stored), step):
        with safe_open(path, framework="pt") as file:
            result[first : first + step] = file.get_slice(key)[first : first + step]
    return result


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending ids as ranges [first, end) without gaps."""
    first = None
    for position, row in enumerate(ids):
        if first is None:
            first = row
        if position + 1 == len(ids) or ids[position + 1] != row + 1:
            yield first, row + 1
            first = None
