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
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fednano_flwr.models import skeleton
from fednano_flwr.models.families import Family, canonical, of
from fednano_flwr.models.fingerprint import digests_of_halves
from fednano_flwr.models.weights import WeightFiles

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


class ModelCheckpoint(WeightFiles):
    """Config, module tree and tensors of one model of a known family; each is read once."""

    @property
    def family(self) -> Family:
        return of(self.config)

    @cached_property
    def tree(self) -> Any:
        """The whole model on the meta device, not to be changed."""
        return self.family.build(self.config)

    @cached_property
    def edge_tree(self) -> tuple[Any, nn.Embedding]:
        """The client's half on the meta device, and its layer of token embeddings, likewise."""
        config = copy.deepcopy(self.config)
        skeleton.trim_encoder(config)
        edge = self.family.build(config).eval()
        return edge, skeleton.drop_language(edge)

    def llm_tree(self) -> Any:
        """The server's half on the meta device, for the caller."""
        llm = copy.deepcopy(self.tree)
        skeleton.drop_vision(llm)
        return llm

    @cached_property
    def tied(self) -> bool:
        """Whether the head is the table of the token embeddings, as `from_pretrained` decides."""
        tied = {canonical(name) for name in self.tree.all_tied_weights_keys}
        return HEAD not in self.files and HEAD in tied

    def called(self, key: str) -> str | None:
        try:
            found = self._names(key)
        except ValueError as error:
            raise self.error(str(error)) from None
        if found is None:
            return None
        name = canonical(found[0])
        if found[1]:
            self._may_be_turned.add(name)
        return name

    def tensors(self, half: Half) -> dict[str, torch.Size]:
        """Canonical names and shapes of what a side reads: "llm" or "edge"."""
        tree = self.edge_tree[0] if half == "edge" else self.llm_tree()
        found = {canonical(name): value.shape for name, value in skeleton.stored(tree).items()}
        if half == "edge":
            found[self.token_embeddings] = self.edge_tree[1].weight.shape
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
        for name, stored in self._headers(shapes):
            self._dtype(name, stored)
            shape = tuple(stored.get_shape())
            if self._is_turned(name, shape):
                shape = shape[0], shape[2], shape[1]
            if shape != tuple(shapes[name]):
                raise self.error(
                    f"tensor {name} in {self.files[name][0]} has shape {shape}, the config asks "
                    f"for {tuple(shapes[name])}"
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
        for path, wanted in self._by_file(names):
            with self.opened(path) as file:
                for name in wanted:
                    key = self.files[name][1]
                    stored = file.get_tensor(key)  # mapped: nothing of it is in memory yet
                    target, turned = on(device, name), self._is_turned(name, stored.shape)
                    as_it_is = dtype in (None, stored.dtype) and target in (None, stored.device)
                    if as_it_is and not turned:
                        yield name, stored.clone() if _is_askew(stored) else stored
                    else:
                        yield name, self._converted(path, key, stored, target, dtype, turned)

    def rows(
        self,
        name: str,
        ids: Sequence[int],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The rows `ids`, ascending, of a two-dimensional tensor, and no others, (len(ids), d)."""
        ((_, header),) = self._headers([name])
        shape = header.get_shape()
        if len(shape) != 2:
            raise self.error(f"{name} is no table: it has shape {shape}")
        if ids and ids[-1] >= shape[0]:
            raise self.error(f"{name} has {shape[0]} rows, asked for {ids[-1]}")
        dtype = dtype or self._dtype(name, header)
        result = torch.empty(len(ids), shape[1], dtype=dtype, device=device)
        filename, key = self.files[name]
        for start in range(0, len(ids), PIECE_ROWS):
            with self.opened(self.path(filename)) as file:
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
        stored = skeleton.stored(module)
        names = {canonical(name): name for name in stored}
        self.check({canonical(name): value.shape for name, value in stored.items()})
        for place, tensor in self.read(names, lambda place: on(device, names[place]), dtype):
            owner_name, _, leaf = names[place].rpartition(".")
            is_buffer = not isinstance(stored[names[place]], nn.Parameter)
            made = tensor if is_buffer else make(names[place], tensor)
            setattr(module.get_submodule(owner_name), leaf, made)
        for path, owner in module.named_modules():
            for key, value in owner.named_buffers(recurse=False):
                setattr(owner, key, value.to(on(device, f"{path}.{key}")))
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
        return sum(
            math.prod(stored.get_shape()) * self._dtype(name, stored).itemsize
            for name, stored in self._headers(names)
        )

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
            raise self.error(f"one tensor embed_tokens.weight expected, found {found}")
        return found[0]

    @cached_property
    def _names(self) -> Callable[[str], tuple[str, bool] | None]:
        return skeleton.checkpoint_names(self.tree)

    @cached_property
    def _may_be_turned(self) -> set[str]:
        """Names of tensors (n, a, b) that some files have as (n, b, a)."""
        return set()

    def _is_turned(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a tensor that is stored in this shape is one of those."""
        if name not in self._may_be_turned or len(shape) != 3:
            return False
        return tuple(shape) != self._whole_shapes[name]

    @cached_property
    def _whole_shapes(self) -> dict[str, tuple[int, ...]]:
        stored = skeleton.stored(self.tree).items()
        return {canonical(name): tuple(tensor.shape) for name, tensor in stored}

    def _by_file(self, names: Iterable[str]) -> list[tuple[Path, list[str]]]:
        """The named tensors by the file that holds them, all of which are there.

        Raises:
            ConfigError: the checkpoint lacks one of them.
        """
        by_file: dict[str, list[str]] = {}
        for name in names:
            if name not in self.files:
                hint = (
                    "; if the head is the table of the token embeddings, set tie_word_embeddings "
                    "to true in config.json, beside model_type"
                )
                raise self.error(
                    f"{self.chosen} has no tensor {name}, which the config asks for"
                    f"{hint if name == HEAD else ''}"
                )
            by_file.setdefault(self.files[name][0], []).append(name)
        return [(self.path(file), wanted) for file, wanted in by_file.items()]

    def _headers(self, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Each named tensor's dtype, shape and slices, of which none is read."""
        for path, wanted in self._by_file(names):
            with self.opened(path) as file:
                for name in wanted:
                    yield name, file.get_slice(self.files[name][1])

    def _dtype(self, name: str, stored: Any) -> torch.dtype:
        kind = stored.get_dtype()
        if kind not in _DTYPES:
            raise self.error(f"{name} is of {kind}; read are {', '.join(_DTYPES)}")
        return _DTYPES[kind]

    def _converted(
        self,
        path: Path,
        key: str,
        stored: Tensor,
        device: torch.device | None,
        dtype: torch.dtype | None,
        turned: bool,
    ) -> Tensor:
        """A copy of one tensor of a file, of which no more than a piece is ever in memory twice."""
        if stored.dim() == 0:
            return stored.to(device, dtype)
        shape = stored.mT.shape if turned else stored.shape
        result = torch.empty(shape, dtype=dtype or stored.dtype, device=device)
        step = max(1, PIECE_BYTES * len(stored) // max(1, stored.nbytes))
        for first in range(0, len(stored), step):
            with self.opened(path) as file:
                piece = file.get_slice(key)[first : first + step]
                result[first : first + step] = piece.mT if turned else piece
        return result


def on(device: Target, name: str) -> torch.device | None:
    """The device of one tensor."""
    return device if device is None or isinstance(device, torch.device) else device(name)


def _is_askew(stored: Tensor) -> bool:
    """Whether products with it may differ in their last bit from those with the same numbers.

    MKL's do on CPUs where float32 or float64 does not begin at a multiple of 16 bytes, and the
    same weights may lie so in an edge bundle and not in the checkpoint.
    """
    return stored.dtype in (torch.float32, torch.float64) and stored.data_ptr() % ALIGNED != 0


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending ids as ranges [first, end) without gaps."""
    for _, run in groupby(enumerate(ids), lambda place: place[1] - place[0]):
        rows = [row for _, row in run]
        yield rows[0], rows[-1] + 1
