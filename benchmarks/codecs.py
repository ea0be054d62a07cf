"""What `exchange.dtype` costs and spares: bytes, error, speed, and the demo's final accuracy.

    python -m benchmarks.codecs [--seeds 0] [--json benchmarks/results/codecs.json]

Three parts: made-up matrices of LLaVA-1.5's width, one sample of them (704 tokens); embeddings and
gradients of a batch of the demo; whole runs of the demo (`--seeds ""` leaves them out; about two
minutes each on 2 CPU cores). Prints tables and writes JSON.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import ROOT, add_changes, integers, options_of, table, write_json
from benchmarks.runs import fednano_run
from fednano_flwr.adapters.site import build_adapters, named_trainable, randomize
from fednano_flwr.base import int8
from fednano_flwr.config import RunConfig, project
from fednano_flwr.data.load import load_questions
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import next_token_labels, teacher_forced
from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.exchange.wire import codec
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half

DTYPES = ("float32", "bfloat16", "float16", "int8")
CHANNELS, TIMES = 0.01, 300.0  # share of the large channels, and how much larger they are


def relative(error: Tensor, of: Tensor) -> float:
    return (error.norm() / of.norm()).item()


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median; the first call is a warm-up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def made_up(repeats: int) -> dict[str, dict[str, float]]:
    """Errors relative to the rms of the numbers looked at, speeds in float32 MB a second."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(704, 4096, generator=generator)
    large = torch.randperm(4096, generator=generator)[: round(CHANNELS * 4096)]
    ordinary = torch.ones(4096, dtype=torch.bool)
    ordinary[large] = False
    outlying = normal.clone()
    outlying[:, large] *= TIMES

    def row(name: str, send: Callable[[Tensor], tuple[Tensor, int]]) -> dict[str, float]:
        result = {}
        columns = torch.ones_like(ordinary), ordinary
        for kind, numbers, looked_at in zip(
            ("normal", "outliers"), (normal, outlying), columns, strict=True
        ):
            back, size = send(numbers)
            error, of = (back - numbers)[:, looked_at], numbers[:, looked_at]
            result[f"{kind}_bytes_a_number"] = size / numbers.numel()
            result[f"{kind}_max"] = (error.abs().max() / of.pow(2).mean().sqrt()).item()
            result[f"{kind}_rms"] = relative(error, of)
            if name in codec.NAMES:
                message, megabytes = codec.encode(numbers, name), 4e-6 * numbers.numel()
                encoding = seconds(partial(codec.encode, numbers, name), repeats)
                decoding = seconds(partial(codec.decode, message), repeats)
                result[f"{kind}_encode_mb_a_second"] = megabytes / encoding
                result[f"{kind}_decode_mb_a_second"] = megabytes / decoding
        return result

    def sent(dtype: str) -> Callable[[Tensor], tuple[Tensor, int]]:
        def send(numbers: Tensor) -> tuple[Tensor, int]:
            message = codec.encode(numbers, dtype)
            return codec.decode(message).float(), message.ByteSize()

        return send

    def without_outliers(numbers: Tensor) -> tuple[Tensor, int]:
        quantized = int8.quantize(numbers, threshold=math.inf)
        return int8.dequantize(quantized), numbers.numel() + 2 * quantized.scales.numel()

    rows = {dtype: row(dtype, sent(dtype)) for dtype in DTYPES}
    return {**rows, "int8 without outliers": row("", without_outliers)}


def demo_step(size: int) -> dict[str, dict[str, float]]:
    """A batch of the demo with adapters away from their start: what crosses, and where it leads."""
    config = RunConfig.parse(project.defaults(ROOT))
    half, model = load_edge_half(config.model.name), load_llm_half(config.model.name)
    adapters = randomize(build_adapters(model.hidden_size, config.adapter, seed=0), 0.02, seed=1)
    parameters = named_trainable(adapters)
    encoder = load_encoder(ModelCheckpoint(config.model.name))
    batch = [encoder.encode(sample) for sample in load_questions(config.dataset).train[:size]]
    edge = NanoEdge(half, half.token_table(), adapters, encoder)
    inputs = EmbeddingInputs.of(edge(batch, teacher_forced(batch)))
    labels, host = next_token_labels(batch, IGNORE), FrozenLLM(model)

    def adapter_gradient(gradient: Tensor) -> Tensor:
        gradients = torch.autograd.grad(
            inputs.embeds, list(parameters.values()), gradient, retain_graph=True
        )
        return torch.cat([g.flatten() for g in gradients]).double()

    _, (exact,) = host.step(inputs.detach(), labels)
    lengths = exact.norm(dim=1)
    results = {}
    for dtype in DTYPES:
        embeds = codec.decode(codec.encode(inputs.embeds, dtype))
        far = replace(inputs, embeds=embeds).detach()
        down = codec.decode(codec.encode(exact, dtype)).float()
        _, (moved,) = host.step(far, labels)
        whole = codec.decode(codec.encode(moved.float(), dtype)).float()
        results[dtype] = {
            "embeddings_rms": relative(embeds.float() - inputs.embeds.detach(), inputs.embeds),
            "gradient_rms": relative(down - exact, exact),
            "gradient_worst_row": ((down - exact).norm(dim=1) / lengths).max().item(),
            "gradient_set_to_zero": ((down == 0) & (exact != 0)).float().mean().item(),
            "adapters_cosine": F.cosine_similarity(
                adapter_gradient(whole), adapter_gradient(exact), dim=0
            ).item(),
        }
    results["float32"] |= {
        "row_norm_largest": lengths.max().item(),
        "row_norm_median": lengths.median().item(),
        "row_norm_smallest": lengths.min().item(),
    }
    return results


def demo_run(dtype: str, seed: int, changes: Sequence[str], folder: Path) -> list[dict]:
    """The lines of metrics.jsonl of one run."""
    own = [*changes, f"exchange.dtype={dtype}", f"seed={seed}"]
    return fednano_run(folder, f"{dtype}-{seed}", own)


def demo_runs(dtypes: list[str], seeds: list[int], changes: Sequence[str]) -> dict[str, dict]:
    results = {}
    with tempfile.TemporaryDirectory(prefix="fednano-bench-") as folder:
        for dtype in dtypes:
            runs = [demo_run(dtype, seed, changes, Path(folder)) for seed in seeds]
            last = [100 * records[-1]["accuracy"] for records in runs]
            rounds = [record for records in runs for record in records[1:]]
            results[dtype] = {
                "round_0": statistics.mean(100 * records[0]["accuracy"] for records in runs),
                "last": statistics.mean(last),
                "last_stdev": statistics.stdev(last) if len(last) > 1 else None,
                "step_mb_a_round": statistics.mean(
                    (r["step_bytes_up"] + r["step_bytes_down"]) / 1e6 for r in rounds
                ),
                "seconds_a_round": statistics.mean(r["seconds"] for r in rounds),
                "accuracy_by_round": [[100 * r["accuracy"] for r in records] for records in runs],
            }
            print(f"{dtype}: {results[dtype]['last']:.1f} %", file=sys.stderr, flush=True)
    return results


def show(results: dict[str, dict], seeds: list[int]) -> None:
    rows = []
    for name, row in results["made_up"].items():
        cells = [name]
        for kind in ("normal", "outliers"):
            cells.append(f"{row[f'{kind}_bytes_a_number']:.2f}")
            cells.append(f"{row[f'{kind}_max']:.1e}, {row[f'{kind}_rms']:.1e}")
        for kind in ("normal", "outliers"):
            ways = [row.get(f"{kind}_{way}_mb_a_second") for way in ("encode", "decode")]
            cells.append(
                ", ".join("–" if speed is None else f"{speed / 1e3:.1f}" for speed in ways)
            )
        rows.append(cells)
    large = f"{100 * CHANNELS:.0f} % of channels × {TIMES:.0f}"
    headings = ["codec", "bytes a number", "max, rms error", f"bytes, {large}"]
    headings += ["max, rms error, other channels", "encode, decode GB/s", f"the same, {large}"]
    print(table(headings, rows))
    rows = [
        [
            name,
            f"{row['embeddings_rms']:.1e}",
            f"{row['gradient_rms']:.1e}",
            f"{row['gradient_worst_row']:.1e}",
            f"{100 * row['gradient_set_to_zero']:.1f} %",
            f"{row['adapters_cosine']:.6f}",
        ]
        for name, row in results["demo_step"].items()
    ]
    headings = ["codec", "embeddings, rms", "gradient, rms", "its worst row"]
    headings += ["its numbers set to 0", "cosine of the adapters' gradient"]
    print(f"\n{table(headings, rows)}")
    if not seeds:
        return
    rows = []
    for name, row in results["demo_runs"].items():
        spread = "" if row["last_stdev"] is None else f" ± {row['last_stdev']:.1f}"
        cells = [name, f"{row['round_0']:.1f}", f"{row['last']:.1f}{spread}"]
        rows.append([*cells, f"{row['step_mb_a_round']:.1f}", f"{row['seconds_a_round']:.1f}"])
    headings = ["codec", "round 0", f"last round, {len(seeds)} seed(s)", "step MB a round", "s"]
    print(f"\n{table(headings, rows)}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("codecs", __doc__)
    parser.add_argument("--seeds", type=integers, default=[0], help="of the demo's runs, by commas")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="of the demo's runs")
    parser.add_argument("--repeats", type=int, default=15, help="of each timing")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    add_changes(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    seeds, dtypes = options.seeds, options.dtypes.split(",")

    results: dict[str, dict] = {
        "made_up": made_up(options.repeats),
        "demo_step": demo_step(options.batch),
        "demo_runs": demo_runs(dtypes, seeds, options.changes) if seeds else {},
    }
    show(results, seeds)
    write_json(options, results=results)


if __name__ == "__main__":
    main()
