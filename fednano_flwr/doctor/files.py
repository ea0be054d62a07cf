"""Room and access of the folders that a run writes to, and what only reading a client's data shows.

That the folders can be written to, and that shard and bundle are whole, the preflight has seen.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fednano_flwr.base.console import human_bytes
from fednano_flwr.base.files import nearest
from fednano_flwr.base.output import OutputError, require_temporary_room
from fednano_flwr.config import ConfigError, Model, RunConfig
from fednano_flwr.doctor.finding import Finding, ok, problem, warning
from fednano_flwr.preflight import check_writable, own_data

if TYPE_CHECKING:
    from fednano_flwr.models.size import Parts

SPARE_BYTES = 64 * 2**20
"""For metrics, logs and what else a run writes beside tensors."""
ADAPTER_COPIES = 3
"""In adapters/: those of the last and of the best round, and one that is being written."""
CHECKPOINT_COPIES = 4
"""In a checkpoint: adapters, the best ones, and up to two moments of a strategy."""
DECODED = 100
"""Questions of each split, evenly spread, whose pictures are decoded."""


def check_room(key: str, folder: Path, needed: int) -> list[Finding]:
    """Whether so many bytes are free on the disk of a folder, which need not be there yet."""
    free = shutil.disk_usage(nearest(folder)).free
    if free >= needed:
        return []
    what = f"{key} = {str(folder)!r}: a run writes up to {human_bytes(needed)}, and "
    what += f"{human_bytes(free)} are free"
    return [problem(what, f"make room, or set {key} to a folder on another disk")]


def check_private(key: str, path: str) -> list[Finding]:
    """Whether a folder with a client's data, or a private key, is its user's alone.

    Args:
        path: "" for none.
    """
    file = Path(path).expanduser()
    mode = file.stat().st_mode & 0o777 if path and file.exists() else 0
    if not mode & 0o077:
        return []
    what = f"{key} = {str(file)!r}: other users of this machine can read it (mode {mode:04o})"
    return [warning(what, shlex.join(["chmod", "700" if file.is_dir() else "600", str(file)]))]


def check_temporary() -> list[Finding]:
    """Of temporary files: Flower's, Ray's, and features that the server's memory cannot hold."""
    try:
        folder = require_temporary_room()
    except OutputError as error:
        what, _, do = str(error).partition("; ")
        return [problem(what, do)]
    asked = os.environ.get("TMPDIR")
    if asked and Path(asked).absolute() != folder.absolute():
        what = f"TMPDIR = {asked!r} cannot be written to; temporary files go to {folder}"
        return [warning(what, "make that folder, or set TMPDIR to another")]
    return [ok(check_writable("TMPDIR", folder))]


def check_run_room(config: RunConfig) -> list[Finding]:
    """Room for a run's adapters and checkpoints."""
    parts = parts_of(config.model)
    needed = SPARE_BYTES + (run_bytes(config, parts) if parts else 0)
    return check_room("run.dir", Path(config.run.dir), needed)


def run_bytes(config: RunConfig, parts: Parts) -> int:
    """Tensors in a run's folder, at most, with a strategy that remembers two moments."""
    from fednano_flwr.models.size import Setting, Sizes

    setting = Setting(config.adapter.rank, parts.vocabulary, 4, 1, 1)
    kept = config.run.keep_checkpoints + 1  # and the one that is being written
    return Sizes(parts, setting).adapter_bytes * (ADAPTER_COPIES + CHECKPOINT_COPIES * kept)


def check_client_folders(config: RunConfig) -> list[Finding]:
    """Of what a client keeps for itself, and of image features, also where no key names them."""
    from fednano_flwr.edge.process_cache import feature_folder, state_folder

    edge, state = config.edge, state_folder(config.edge)
    findings = _folder("edge.state-dir", state, bool(edge.state_dir))
    findings += check_room("edge.state-dir", state, SPARE_BYTES)
    if not edge.feature_disk_mb:
        return findings
    features = feature_folder(edge)
    findings += _folder("edge.feature-dir", features, bool(edge.feature_dir))
    held = features.iterdir() if features.is_dir() else []
    room = edge.feature_disk_mb * 2**20 - sum(file.stat().st_size for file in held)
    if (free := shutil.disk_usage(nearest(features)).free) < room:
        findings.append(
            warning(
                f"edge.feature-disk-mb = {edge.feature_disk_mb}: up to {human_bytes(room)} more "
                f"are written to {features}, and {human_bytes(free)} are free",
                "make room, or lower edge.feature-disk-mb; features that find no room are computed "
                "again in each process",
            )
        )
    return findings


def _folder(key: str, folder: Path, named: bool) -> list[Finding]:
    """Args:
    named: by its key; then the preflight has seen that it can be written to.
    """
    written = [] if named else [ok(check_writable(key, folder))]
    return written + check_private(key, str(folder))


def check_pictures(data_path: str, config: RunConfig | None) -> list[Finding]:
    """Whether a client's own pictures and sounds can be decoded, of up to `DECODED` a split.

    Raises:
        ConfigError: what reads sounds is not installed.
    """
    from fednano_flwr.data.media import first_defect
    from fednano_flwr.data.sounds import missing_libraries

    if (shard := own_data(data_path, config)) is None:
        return []
    tried = [
        split[place]
        for split in (shard.train, shard.test)
        for place in range(0, len(split), max(1, -(-len(split) // DECODED)))
    ]
    if any(sample.sounds for sample in tried) and (missing := missing_libraries()):
        raise ConfigError(f"data-path = {data_path!r}: {missing}")
    broken = [sample.uid for sample in tried if first_defect(sample)]
    if not broken:
        return []
    return [
        warning(
            f"data-path = {data_path!r}: pictures or sounds of {len(broken)} of {len(tried)} "
            f"questions that were tried cannot be decoded, {broken[0]} for one",
            "the run leaves such questions out, up to the share of dataset.max-skipped; repair "
            "them, those of a shard where it was made, and write that again",
        )
    ]


def check_tokens(key: str, path: str, data_path: str, config: RunConfig | None) -> list[Finding]:
    """Whether a bundle with a cut token table has the tokens of a client's own data.

    Raises:
        ConfigError: it lacks some.
    """
    from fednano_flwr.data.errors import DataError
    from fednano_flwr.edge.encoder import load_encoder
    from fednano_flwr.edge.questions import used_tokens
    from fednano_flwr.models.bundle import TOKEN_IDS, EdgeBundle

    bundle = EdgeBundle(path)
    if TOKEN_IDS not in bundle.files:
        return [ok(f"{key}: the bundle holds the embeddings of all tokens")]
    encode, questions = load_encoder(bundle).encode, []
    if (shard := own_data(data_path, config)) is None:
        return []
    for sample in itertools.chain(shard.train, shard.test):
        with contextlib.suppress(DataError):  # a run leaves these out
            questions.append(encode(sample))
    ids = used_tokens(questions)
    bundle.embedding_rows(ids)
    return [ok(f"{key}: the bundle holds the embeddings of the shard's {len(ids)} tokens")]


def rows_of(bundle: str) -> int | None:
    """Token embeddings in a bundle; None where that cannot be read, which another check says."""
    from fednano_flwr.models.bundle import MANIFEST

    try:
        manifest = json.loads((Path(bundle).expanduser() / MANIFEST).read_text(encoding="utf-8"))
        return int(manifest["token_rows"]["kept"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def parts_of(model: Model) -> Parts | None:
    """Sizes of a model's parts; None where its config is not here, or no good."""
    from fednano_flwr.models.size import count
    from fednano_flwr.models.source import locate, read_config

    try:
        folder = locate(model.name, model.revision)[0]
        return count(read_config(model.name, folder, model.family))
    except ConfigError:
        return None
