"""A client that holds the whole MLLM against a NanoEdge client: memory, disk, seconds, bytes.

    python -m benchmarks.full_model_client [--shape 25m] [--threads 1] [--llm-threads 1]
    python -m benchmarks.full_model_client --shape 7b --device cuda --dtype bfloat16

The whole MLLM with PEFT's LoRA in `q_proj` and `v_proj` of its language model, as FlowerTune-style
apps train it and of the same rank, against NanoEdge with its two adapters and the LLM at a host
(gRPC on loopback). The same random LLaVA, demo questions, order, batch size and optimizer. Every
client and the host has a process of its own; clients take turns, epoch by epoch. Both keep frozen
image features in memory, so only their first epoch has the vision encoder in it.

Memory is a process's peak (VmHWM; Linux only), in all and above what the imports had taken; disk is
the checkpoint, or the edge bundle, with all its small files. NanoEdge's disk and memory are the
point; its steps cross the network and its seconds contain the host's. Accuracy is not compared.
Needs neither flwr nor ray. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.models import add_model, put_model
from benchmarks.report import (
    memory,
    name_of,
    options_of,
    ratios,
    spread,
    spread_text,
    table,
    waiting_for,
    write_json,
)
from benchmarks.runs import process
from benchmarks.whole import WholeModel
from fednano_demo.generate import write_dataset
from fednano_flwr.adapters.site import AdapterSite, build_adapters, named_trainable
from fednano_flwr.config import SITES, Adapter
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.sources.scienceqa import ScienceQA
from fednano_flwr.edge.encoder import QuestionEncoder, load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question
from fednano_flwr.edge.training import TrainingPlan, train
from fednano_flwr.exchange.protocol import LLM
from fednano_flwr.exchange.registry import EXCHANGES
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.connection import StepTraffic
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.bundle import open_checkpoint
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.models.split import write_bundle

FULL, HOST = "whole MLLM, LoRA inside", "host of the LLM"
BATCH, LEARNING_RATE = 16, 1e-3
Client = tuple[Callable[..., None], tuple[Any, ...]]
"""What a client's process does, and with what."""
LAYERS = r".*language_model.*\.(q_proj|v_proj)"


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fednano-bench-", dir=options.folder) as name:
        place = Path(name)
        size = put_model(options, place / "model", options.dtype, options.weights_device)
        write_dataset(place / "data", options.questions, 1, 1)
        write_bundle(ModelCheckpoint(str(place / "model")), place / "bundle")
        stored = {FULL: folder_bytes(place / "model")}
        with process(host, place, options) as host_pipe:
            address = host_pipe.recv()
            clients: dict[str, Client] = {FULL: (full_client, (place, options))}
            for kind in options.exchanges:
                clients[f"NanoEdge, {kind}"] = (nano_client, (place, options, kind, address))
                stored[f"NanoEdge, {kind}"] = folder_bytes(place / "bundle")
            found = side_by_side(clients, options.epochs)
            host_pipe.send(None)
            found_host = host_pipe.recv()
    for client, result in found.items():
        result["disk_bytes"] = stored[client]
        later, base = result["epochs"][1:], found[FULL]["epochs"][1:]
        result["later_epoch"] = spread(later)
        result["times_full"] = ratios(later, base)
    write_json(
        options,
        device=name_of(options.device),
        llm_parameters=size,
        clients=found,
        host=found_host,
    )
    show(options, size, found, found_host)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("full_model_client", __doc__)
    add_model(parser)
    parser.add_argument("--questions", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=4, help="the first encodes pictures")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--exchanges",
        type=lambda text: text.split(","),
        default=["lowrank", "embeddings"],
        help="of NanoEdge's clients, joined by commas",
    )
    parser.add_argument("--device", default="cpu", help="of clients and host")
    parser.add_argument("--dtype", default="float32", help="likewise, and of what is stored")
    parser.add_argument("--threads", type=int, default=1, help="of a client")
    parser.add_argument("--llm-threads", type=int, default=1, help="of the host")
    parser.add_argument("--weights-device", default="cpu", help="where weights are drawn")
    parser.add_argument("--folder", help="where the checkpoint goes, and is removed")
    options = parser.parse_args(argv)
    if options.epochs < 2:
        parser.error(f"--epochs {options.epochs}: at least 2, the first has the encoder in it")
    return options


def side_by_side(clients: dict[str, Client], epochs: int) -> dict[str, dict[str, Any]]:
    """What every client says of itself, after they took turns for so many epochs."""
    with ExitStack() as stack:
        pipes = {
            name: stack.enter_context(process(work, *arguments))
            for name, (work, arguments) in clients.items()
        }
        for pipe in pipes.values():
            pipe.recv()  # it is ready
        for _ in range(epochs):
            for pipe in pipes.values():
                pipe.send(True)
                pipe.recv()
        found = {}
        for name, pipe in pipes.items():
            pipe.send(None)
            found[name] = pipe.recv()
    return found


def full_client(pipe: Any, place: Path, options: argparse.Namespace) -> None:
    """A process with the whole model and PEFT's LoRA in its language model."""
    imports = memory("VmRSS")
    torch.set_num_threads(options.threads)
    lora = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=LAYERS)
    edge, whole = full_edge(place / "model", lora, options.device, options.dtype)
    work(pipe, place, options, edge, whole, StepTraffic(), imports)


def full_edge(
    model: Path, lora: LoraConfig, device: str = "cpu", dtype: str = "float32"
) -> tuple[NanoEdge, WholeModel]:
    """The whole model as both ends of a training step; what is trained is inside it."""
    whole = WholeModel(model, device, dtype)
    # NanoEdge's places, without adapters: frozen embeddings go into the model as they are.
    for site in SITES:
        setattr(whole.model, f"{site}_adapter", AdapterSite(whole.hidden_size))
    adapters = get_peft_model(whole.model, lora)
    return whole.edge(adapters, load_encoder(ModelCheckpoint(str(model)))), whole


def nano_client(
    pipe: Any, place: Path, options: argparse.Namespace, kind: str, address: str
) -> None:
    """A process with NanoEdge, from its bundle."""
    imports = memory("VmRSS")
    torch.set_num_threads(options.threads)
    bundle = str(place / "bundle")
    half = load_edge_half(bundle, options.device, options.dtype)
    settings = Adapter(options.rank, 2.0 * options.rank, 0.0, "image,text")
    adapters = build_adapters(half.hidden_size, settings, seed=0)
    edge = NanoEdge(half, half.token_table(), adapters, load_encoder(open_checkpoint(bundle)))
    node = list(EXCHANGES).index(kind)  # features belong to the node that sent them
    with RemoteLLM(address, Caller(node=node)) as remote:
        remote.describe()
        llm = EXCHANGES[kind](remote, "server")
        work(pipe, place, options, edge, llm, remote.traffic, imports)


def work(
    pipe: Any,
    place: Path,
    options: argparse.Namespace,
    edge: NanoEdge,
    llm: LLM,
    traffic: StepTraffic,
    imports: int,
) -> None:
    """An epoch of training whenever the pipe asks for one; in the end what all of it took."""
    torch.manual_seed(0)
    questions = read_questions(place / "data", edge.encoder)
    plan = TrainingPlan(1, BATCH, LEARNING_RATE, 0.0, 1.0)
    finish = waiting_for(options.device)
    epochs: list[float] = []
    sent: list[float] = []
    losses: list[float] = []
    pipe.send(True)
    while pipe.recv():
        before = traffic.bytes_up + traffic.bytes_down
        started = time.perf_counter()
        losses.append(train(edge, llm, questions, plan, seed=len(epochs)).loss)
        finish()
        epochs.append(time.perf_counter() - started)
        sent.append((traffic.bytes_up + traffic.bytes_down - before) / len(questions))
        pipe.send(True)
    trained = named_trainable(edge.adapters).values()
    pipe.send(
        {
            "trained_parameters": sum(parameter.numel() for parameter in trained),
            "round_bytes": sum(parameter.nbytes for parameter in trained),
            "step_bytes_a_question": sent,
            "epochs": epochs,
            "losses": losses,
            **memory_of(options.device, imports),
        }
    )


def read_questions(data: Path, encoder: QuestionEncoder) -> list[Question]:
    """Those that `write_dataset` wrote to train on."""
    read = ScienceQA(data / "scienceqa").read("train").problems
    return [encoder.encode(sample) for _, sample in read if isinstance(sample, Sample)]


def host(pipe: Any, place: Path, options: argparse.Namespace) -> None:
    """A process with the language model, until the pipe says that it is enough."""
    imports = memory("VmRSS")
    torch.set_num_threads(options.llm_threads)
    half = load_llm_half(str(place / "model"), options.device, options.dtype)
    with serve(FrozenLLM(half)) as address:
        pipe.send(address)
        pipe.recv()
    pipe.send(memory_of(options.device, imports))


def memory_of(device: str, imports: int) -> dict[str, int]:
    """Bytes of this process at its peak; `gpu` is PyTorch's own count, 0 on a CPU."""
    gpu = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0
    peak = memory("VmHWM")
    return {"peak": peak, "peak_without_imports": peak - imports, "gpu": gpu}


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def show(
    options: argparse.Namespace, size: int, found: dict[str, Any], found_host: dict[str, int]
) -> None:
    print(
        f"LLM of {size / 1e6:.1f} M parameters, {name_of(options.device)}, {options.dtype}; rank "
        f"{options.rank}, {options.questions} questions; {options.threads} thread(s) a client, "
        f"{options.llm_threads} at the host\n"
    )
    headings = ["", "disk MB", "peak MB", "without imports", "GPU MB", "first epoch s"]
    headings += ["later epoch s", "times the whole MLLM's", "round ↑ and ↓ kB, each"]
    headings += ["step kB a question: first epoch", "later"]
    rows = []
    for client, one in found.items():
        steps = one["step_bytes_a_question"]
        cells = [f"{one['disk_bytes'] / 1e6:.1f}", *memory_cells(one), f"{one['epochs'][0]:.2f}"]
        cells += [spread_text(one["later_epoch"]), spread_text(one["times_full"])]
        cells += [f"{value / 1e3:.1f}" for value in (one["round_bytes"], steps[0], steps[-1])]
        rows.append((client, *cells))
    rows.append((HOST, "", *memory_cells(found_host), *[""] * 6))
    print(table(headings, rows))
    print("\nThe host is there once, however many clients; the first epoch encodes the pictures.")


def memory_cells(found: dict[str, int]) -> list[str]:
    return [f"{found[key] / 1e6:.0f}" for key in ("peak", "peak_without_imports", "gpu")]


if __name__ == "__main__":
    main()
