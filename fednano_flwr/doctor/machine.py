"""Memory, processors and open files, against what a run takes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fednano_flwr.base.console import human_bytes
from fednano_flwr.config import SITES, RunConfig
from fednano_flwr.doctor.finding import Finding, ok, problem, warning

if TYPE_CHECKING:
    from fednano_flwr.models.size import Parts

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED_BYTES = {"none": None, "8bit": 1.0, "4bit": 0.5}
"""Of a weight in the language model's linear layers, and nearly all of it is those."""
FILES_BESIDES = 256
"""Open files of a server besides its clients' connections."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes of a device: in all, and free now."""

    total: int
    free: int


def check_server_memory(config: RunConfig, parts: Parts) -> list[Finding]:
    """Whether the language model fits where `llm.device` says."""
    llm = config.llm
    memory = device_memory(llm.device, bool(llm.device_map))
    if memory is None:
        return []  # no such device: said elsewhere
    weights = server_bytes(config, parts)
    copies = f", {llm.replicas} times" if llm.replicas > 1 else ""
    return check_memory(
        f"the language model in {llm.quantization if llm.quantization != 'none' else llm.dtype}"
        f"{copies} on llm.device = {llm.device!r}",
        weights,
        llm.feature_memory_mb * 2**20,
        "llm.feature-memory-mb",
        memory,
        "take a smaller llm.dtype or llm.quantization, fewer llm.replicas, or a larger machine",
    )


def check_client_memory(
    config: RunConfig, parts: Parts, key: str, device: str, rows: int | None, rank: int | None
) -> list[Finding]:
    """Whether a client's half and its training fit; activations are not counted.

    Args:
        key: that names the device, for findings.
        rows: of the token table that the client holds; None for all.
        rank: of its adapters; None for `adapter.rank`.
    """
    memory = device_memory(device)
    if memory is None:
        return []
    return check_memory(
        f"the client's half in {config.edge.dtype} and its training on {key} = {device!r}",
        client_bytes(config, parts, rows, rank),
        config.edge.feature_cache_mb * 2**20,
        "edge.feature-cache-mb",
        memory,
        'take edge.dtype = "bfloat16", a bundle split with --shard, or a larger machine',
    )


def server_bytes(config: RunConfig, parts: Parts) -> int:
    """Of the language model's weights on `llm.device`, all copies."""
    llm, dtype = config.llm, DTYPE_BYTES[config.llm.dtype]
    layers = QUANTIZED_BYTES[llm.quantization] or dtype
    one = parts.language_model * layers + (parts.token_embeddings + parts.head) * dtype
    return round(one * llm.replicas)


def client_bytes(config: RunConfig, parts: Parts, rows: int | None, rank: int | None) -> int:
    """Of a client's weights, gradients and optimizer."""
    from fednano_flwr.models.size import Setting, Sizes

    kept = parts.vocabulary if rows is None else rows
    setting = Setting(
        rank or config.adapter.rank, kept, DTYPE_BYTES[config.edge.dtype], tokens=1, batch_size=1
    )
    sizes = Sizes(parts, setting)
    training = sum(item.bytes for item in sizes.training_memory())
    share = len(config.adapter.site_names) / len(SITES)
    stored = sizes.client_bytes - sizes.adapter_bytes
    return stored + round((sizes.adapter_bytes + training) * share)


def check_memory(
    what: str, needed: int, features: int, features_key: str, memory: Memory, do: str
) -> list[Finding]:
    """Compare what is needed at least, and with a full store of features, with what there is."""
    size, free = human_bytes(needed), f"{human_bytes(memory.free)} of {human_bytes(memory.total)}"
    if needed > memory.total:
        return [problem(f"{what} takes {size}, and there are {human_bytes(memory.total)}", do)]
    if needed > memory.free:
        return [warning(f"{what} takes {size}, and {free} are free", f"end other programs; {do}")]
    if needed + features > memory.free:
        return [
            warning(
                f"{what} takes {size}, up to {human_bytes(features)} of features come to it "
                f"({features_key}), and {free} are free",
                f"lower {features_key}",
            )
        ]
    return [ok(f"{what} takes {size} and what a step needs; {free} are free")]


def device_memory(device: str, all_gpus: bool = False) -> Memory | None:
    """Memory of a PyTorch device, or of all GPUs; None where it is not here or tells nothing."""
    import torch

    try:
        asked = torch.device(device)
    except RuntimeError:
        return None
    if asked.type == "cpu":
        return main_memory()
    if asked.type != "cuda" or (asked.index or 0) >= torch.cuda.device_count():
        return None
    indices = range(torch.cuda.device_count()) if all_gpus else [asked.index or 0]
    each = [torch.cuda.mem_get_info(index) for index in indices]
    return Memory(sum(total for _, total in each), sum(free for free, _ in each))


def main_memory() -> Memory:
    """The machine's, or its container's where that has less."""
    import psutil

    whole = psutil.virtual_memory()
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return Memory(whole.total, whole.available)
    return Memory(min(whole.total, limit), min(whole.available, max(0, limit - used)))


def check_threads(key: str, threads: int, there: int) -> list[Finding]:
    """Whether PyTorch is asked for more threads than there are processors."""
    if threads > there:
        return [
            warning(
                f"{key} = {threads}, and this machine gives {there} processors: threads will wait "
                "for each other",
                f"set {key} to {there} or less",
            )
        ]
    return [ok(f"{key} = {threads or 'automatic'}, processors: {there}")]


def check_open_files(max_clients: int, limit: int) -> list[Finding]:
    """Whether so many clients may be connected at once.

    Args:
        limit: open files that a process may have.
    """
    needed = max_clients + FILES_BESIDES
    if needed <= limit:
        return [ok(f"llm.max-clients = {max_clients}, open files: up to {limit}")]
    return [
        warning(
            f"llm.max-clients = {max_clients} take about {needed} open files, and a process here "
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


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
