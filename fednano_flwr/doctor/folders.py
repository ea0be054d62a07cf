"""Folders that a run writes to: whether it may, how much room there is, and who may read them."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fednano_flwr.base.console import human_bytes
from fednano_flwr.base.files import nearest
from fednano_flwr.base.output import TEMPORARY_BYTES, OutputError, require_temporary_room
from fednano_flwr.config import RunConfig
from fednano_flwr.doctor.finding import Finding, ok, problem, warning

if TYPE_CHECKING:
    from fednano_flwr.models.size import Parts

SPARE_BYTES = 64 * 2**20
"""For metrics, logs and what else a run writes beside tensors."""
ADAPTER_COPIES = 3
"""In adapters/: those of the last and of the best round, and one that is being written."""
CHECKPOINT_COPIES = 4
"""In a checkpoint: adapters, the best ones, and up to two moments of a strategy."""


def check_folder(key: str, folder: Path, needed: int, private: bool = False) -> list[Finding]:
    """Whether files can be written to a folder that is there, or be made; nothing is left there.

    Args:
        key: that names it, for findings.
        needed: bytes that its disk should have free.
        private: nobody else should read what is in it.
    """
    name = f"{key} = {str(folder)!r}"
    there = nearest(folder)
    if not there.is_dir():
        return [problem(f"{name}: {there} is a file", f"remove it, or set {key} to a folder")]
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return [
            problem(
                f"{name}: {there} cannot be written to: {error.strerror}",
                f"give this user the right to (chown, chmod u+rwx), or set {key} to another folder",
            )
        ]
    findings = []
    free = shutil.disk_usage(there).free
    if free < needed:
        findings.append(
            problem(
                f"{name}: up to {human_bytes(needed)} will be written there, and its disk has "
                f"{human_bytes(free)} free",
                f"make room, or set {key} to a folder on another disk",
            )
        )
    if private and there == folder and (mode := folder.stat().st_mode & 0o777) & 0o077:
        findings.append(
            warning(
                f"{name}: others of this machine may look into it (mode {mode:04o}); what lies "
                "there tells of this client's data",
                shlex.join(["chmod", "700", str(folder)]),
            )
        )
    how = "can be written to" if there == folder else f"can be made in {there}"
    return findings or [ok(f"{name} {how}; {human_bytes(free)} free")]


def check_temporary() -> list[Finding]:
    """Of temporary files: Flower's, Ray's, and features that the server's memory cannot hold."""
    try:
        folder = require_temporary_room()
    except OutputError as error:
        what, _, do = str(error).rpartition("; ")
        return [problem(what, do)]
    asked = os.environ.get("TMPDIR")
    if asked and Path(asked).absolute() != folder.absolute():
        return [
            warning(
                f"TMPDIR = {asked!r} cannot be written to; temporary files go to {folder}",
                "make that folder, or set TMPDIR to another",
            )
        ]
    return check_folder("TMPDIR", folder, TEMPORARY_BYTES)


def check_client_folders(config: RunConfig) -> list[Finding]:
    """Of what a client keeps for itself, and of image features."""
    from fednano_flwr.edge.process_cache import feature_folder, state_folder

    edge = config.edge
    findings = check_folder("edge.state-dir", state_folder(edge), SPARE_BYTES, private=True)
    if not edge.feature_disk_mb:
        return findings
    features = feature_folder(edge)
    bound = edge.feature_disk_mb * 2**20
    room = max(0, bound - _held(features))
    found = check_folder("edge.feature-dir", features, 0, private=True)
    writable = all(finding.level != "problem" for finding in found)
    if writable and shutil.disk_usage(nearest(features)).free < room:
        found.append(
            warning(
                f"edge.feature-disk-mb = {edge.feature_disk_mb}: up to {human_bytes(room)} more "
                f"may be written to {features}, and its disk has less free",
                "make room, or lower edge.feature-disk-mb; features that find no place are "
                "computed anew in each process",
            )
        )
    return findings + found


def check_run_dir(config: RunConfig, parts: Parts | None) -> list[Finding]:
    """Of runs, with room for adapters and checkpoints.

    Args:
        parts: of the model; None where it cannot be read.
    """
    needed = SPARE_BYTES + (run_bytes(config, parts) if parts else 0)
    return check_folder("run.dir", Path(config.run.dir).expanduser(), needed)


def run_bytes(config: RunConfig, parts: Parts) -> int:
    """Tensors in a run's folder, at most, with a strategy that remembers two moments."""
    from fednano_flwr.models.size import Setting, Sizes

    setting = Setting(config.adapter.rank, parts.vocabulary, 4, 1, 1)
    kept = config.run.keep_checkpoints + 1  # and the one that is being written
    return Sizes(parts, setting).adapter_bytes * (ADAPTER_COPIES + CHECKPOINT_COPIES * kept)


def _held(folder: Path) -> int:
    """Bytes of the files in a folder."""
    if not folder.is_dir():
        return 0
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
