"""What is installed here, and what this machine gives: memory, processors, open files, time."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fednano_flwr.base.console import human_bytes
from fednano_flwr.config import RunConfig
from fednano_flwr.config.machine import Memory, device_memory
from fednano_flwr.config.project import NAME, PACKAGE
from fednano_flwr.doctor.files import parts_of, rows_of
from fednano_flwr.doctor.finding import Finding, ok, problem, warning
from fednano_flwr.exchange.wire.server import STREAMS

if TYPE_CHECKING:
    from fednano_flwr.models.size import Parts

HELPER = "flower-superexec"
SHOWN = ("flwr", "torch", "transformers", "peft", "grpcio")
QUANTIZED_BYTES = {"none": None, "8bit": 1.0, "4bit": 0.5}
"""Of a weight in the language model's linear layers, and nearly all of it is those."""
FILES_BESIDES = 256
"""Open files of a server besides its clients' connections."""
DAY = 86_400.0


def check_python(wanted: str, version: str) -> list[Finding]:
    """Args:
    wanted: as `Requires-Python` has it; "" for any.
    """
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return [ok(f"Python {version} ({wanted or 'any'})")]
    do = "make a virtual environment with a Python in that range, and install into it"
    return [problem(f"Python {version}: {NAME} needs {wanted}", do)]


def check_packages(requires: Sequence[str]) -> list[Finding]:
    """Whether each package is installed, in its range.

    Args:
        requires: as a distribution's metadata has them; those of extras are left out.
    """
    findings: list[Finding] = []
    found: dict[str, str] = {}
    for requirement in map(Requirement, requires):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, wanted = requirement.name, str(requirement.specifier)
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            findings.append(problem(f"{name} is not installed", f"pip install '{name}{wanted}'"))
            continue
        if not requirement.specifier.contains(found[name], prereleases=True):
            what = f"{name} {found[name]}: {NAME} needs {wanted}"
            findings.append(problem(what, f"pip install '{name}{wanted}'"))
    shown = ", ".join(f"{name} {found[name]}" for name in SHOWN if name in found)
    return findings or [ok(f"{len(found)} packages are in their ranges: {shown}")]


def check_installed() -> list[Finding]:
    """Python and packages, against what the installed distribution asks for."""
    try:
        installed = metadata.distribution(NAME)
    except metadata.PackageNotFoundError:
        what = f"{NAME} is not installed in this environment: its ranges are not known"
        return [problem(what, "pip install -e . in its folder")]
    known = "Requires-Python" in installed.metadata
    wanted = installed.metadata["Requires-Python"] if known else ""
    python = check_python(wanted, platform.python_version())
    return [*python, *check_packages(installed.requires or [])]


def check_programs(path: str | None = None) -> list[Finding]:
    """Whether SuperLinks and SuperNodes that are started by hand will find Flower's helper.

    Args:
        path: folders to look in; None is `$PATH`.
    """
    if shutil.which(HELPER, path=path):
        return [ok(f"{HELPER} is on the PATH")]
    return [
        warning(
            f"{HELPER} is not on the PATH: flower-superlink and flower-supernode start it by name",
            f"put {Path(sys.executable).parent} on the PATH of what starts them (activate the "
            "virtual environment, or PATH= in the service's unit); `fednano run` does that itself",
        )
    ]


def check_clock(now: float) -> list[Finding]:
    """Whether the clock is one that certificates' dates can be compared with.

    Args:
        now: seconds since 1970, as this machine counts them.
    """
    clock = f"this machine's clock says {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(now))}"
    if now >= max(file.stat().st_mtime for file in PACKAGE.rglob("*.py")) - DAY:
        return [ok(clock)]
    do = "set the clock (timedatectl set-ntp true): certificates seem not valid yet"
    return [problem(f"{clock}, which is before fednano-flwr was installed", do)]


def check_threads(key: str, threads: int, there: int) -> list[Finding]:
    """Whether PyTorch is asked for more threads than there are processors."""
    if threads <= there:
        return [ok(f"{key} = {threads or 'automatic'}, processors: {there}")]
    what = f"{key} = {threads}: this machine has {there} processors, so threads wait for each other"
    return [warning(what, f"set {key} to {there} or less")]


def check_open_files(max_clients: int) -> list[Finding]:
    """Whether so many clients may be connected at once."""
    limit, needed = open_files(), STREAMS * max_clients + FILES_BESIDES
    if needed <= limit:
        return [ok(f"llm.max-clients = {max_clients}, open files: up to {limit}")]
    return [
        warning(
            f"llm.max-clients = {max_clients} takes about {needed} open files, and a process here "
            f"may have {limit}",
            f"ulimit -n {needed} before the server is started (systemd: LimitNOFILE={needed}), or "
            "lower llm.max-clients",
        )
    ]


def open_files() -> int:
    """How many files a process of this user may have open."""
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**31 if soft == resource.RLIM_INFINITY else soft


def check_server_memory(config: RunConfig) -> list[Finding]:
    """Whether the language model fits where `llm.device` says."""
    llm, parts = config.llm, parts_of(config.model)
    memory = device_memory(llm.device, bool(llm.device_map))
    if memory is None or parts is None:
        return []  # another check says why
    kept = llm.dtype if llm.quantization == "none" else llm.quantization
    copies = f", {llm.replicas} times" if llm.replicas > 1 else ""
    return check_memory(
        f"the language model in {kept}{copies} on llm.device = {llm.device!r}",
        server_bytes(config, parts),
        ("llm.feature-memory-mb", llm.feature_memory_mb * 2**20),
        memory,
        "take a smaller llm.dtype or llm.quantization, fewer llm.replicas, or a larger machine",
    )


def check_client_memory(
    config: RunConfig, key: str, device: str, bundle: str, rank: int | None
) -> list[Finding]:
    """Whether a client's half and its training fit; activations are not counted.

    Args:
        key: that names the device, for findings.
        bundle: that the client reads; "" for none.
        rank: of its adapters; None for `adapter.rank`.
    """
    source = replace(config.model, name=bundle, revision="") if bundle else config.model
    memory, parts = device_memory(device), parts_of(source)
    if memory is None or parts is None:
        return []
    return check_memory(
        f"the client's half in {config.edge.dtype} and its training on {key} = {device!r}",
        client_bytes(config, parts, rows_of(bundle) if bundle else None, rank),
        ("edge.feature-cache-mb", config.edge.feature_cache_mb * 2**20),
        memory,
        'take edge.dtype = "bfloat16", a bundle split with --shard, or a larger machine',
    )


def server_bytes(config: RunConfig, parts: Parts) -> int:
    """Of the language model's weights on `llm.device`, all copies."""
    from fednano_flwr.models.size import DTYPE_BYTES

    llm, dtype = config.llm, DTYPE_BYTES[config.llm.dtype]
    layers = QUANTIZED_BYTES[llm.quantization] or dtype
    one = parts.language_model * layers + (parts.token_embeddings + parts.head) * dtype
    return round(one * llm.replicas)


def client_bytes(config: RunConfig, parts: Parts, rows: int | None, rank: int | None) -> int:
    """Of a client's weights, gradients and optimizer.

    Args:
        rows: of the token table that the client holds; None for all.
    """
    from fednano_flwr.models.size import DTYPE_BYTES, Setting, Sizes

    dtype, rows = DTYPE_BYTES[config.edge.dtype], parts.vocabulary if rows is None else rows
    sizes = Sizes(parts, Setting(rank or config.adapter.rank, rows, dtype, tokens=1, batch_size=1))
    training = sizes.adapter_bytes + sum(item.bytes for item in sizes.training_memory())
    share = len(config.adapter.sites_on(parts.sites)) / len(parts.sites)
    return sizes.client_bytes - sizes.adapter_bytes + round(training * share)


def check_memory(
    what: str, needed: int, features: tuple[str, int], memory: Memory, do: str
) -> list[Finding]:
    """Compare what is needed at least, and with a full store of features, with what there is.

    Args:
        features: the store's key and bytes.
    """
    taken, free = f"{what} takes {human_bytes(needed)}", f"{human_bytes(memory.free)} are free"
    if needed > memory.total:
        return [problem(f"{taken}, and there are {human_bytes(memory.total)}", do)]
    if needed > memory.free:
        return [warning(f"{taken}, and {free}", f"end other programs, or {do}")]
    key, store = features
    if needed + store > memory.free:
        full = f"up to {human_bytes(store)} of features ({key}) come to it"
        return [warning(f"{taken}, {full}, and {free}", f"lower {key}")]
    return [ok(f"{taken} and what a step needs; {free}")]
