"""What a run takes: traffic, time and memory from round to round."""

from __future__ import annotations

from matplotlib.axes import Axes

from fednano_flwr.analysis.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    VERMILION,
    Missing,
    Picture,
    by_round,
    key_below,
    panels,
    styled,
)
from fednano_flwr.base.console import human_bytes
from fednano_flwr.runs.results import Run

TRAFFIC = {"round": "Round traffic: adapters, by Flower", "step": "Step traffic: LLM, by gRPC"}
PROCESSES = {
    "server_process": ("server", BLUE, "o"),
    "client_process": ("largest client", VERMILION, "s"),
    "server_gpu": ("server's GPU", GREEN, "^"),
    "client_gpu": ("largest client's GPU", PURPLE, "D"),
}


@styled
def traffic(run: Run) -> Picture | Missing:
    """A panel each kind of traffic: bytes up and down in each round."""
    figure, axes = panels(len(TRAFFIC), 2.5)
    rounds = [record["round"] for record in run.rounds]
    said = []
    for one, (kind, title) in zip(axes, TRAFFIC.items(), strict=True):
        ways = {way: [r[f"{kind}_bytes_{way}"] for r in run.rounds] for way in ("up", "down")}
        size, unit = _unit(max(max(values) for values in ways.values()))
        shifts = {"up": (-0.2, BLUE, "up: from clients"), "down": (0.2, ORANGE, "down: to clients")}
        for way, (shift, shade, label) in shifts.items():
            heights = [value / size for value in ways[way]]
            one.bar([r + shift for r in rounds], heights, 0.38, color=shade, label=label)
        one.set_title(title)
        one.set_ylabel(f"{unit}, all clients")
        by_round(one)
        up, down = (human_bytes(sum(values)) for values in ways.values())
        said.append(f"{title}: {up} up and {down} down in all rounds.")
    key_below(figure, axes, 2)
    note = (
        "Training and evaluation of all clients together; the panels have scales of their own. "
        "Round 0 only evaluates."
    )
    return Picture("traffic", "Traffic by round", " ".join(said), note, figure)


@styled
def seconds(run: Run) -> Picture | Missing:
    """Above what clients did, in seconds of all of them; below the round by the clock."""
    figure, (parts, clock) = panels(2, 2.6)
    rounds = [record["round"] for record in run.rounds]
    spent = [record["client_seconds"] for record in run.rounds]
    waiting = [one["waiting_for_llm"] for one in spent]
    rest = [
        max(0.0, sum(one["train"]) + sum(one["evaluate"]) - one["waiting_for_llm"]) for one in spent
    ]
    encoder = [one["encoder"] for one in spent]
    parts.bar(rounds, waiting, 0.6, color=BLUE, label="waiting for the LLM")
    parts.bar(rounds, rest, 0.6, bottom=waiting, color=ORANGE, label="rest of the clients' work")
    parts.plot(rounds, encoder, "D", color=INK, markersize=5, label="encoder (within either)")
    parts.set_title("Clients: seconds of all together")
    parts.set_ylabel("client seconds, s")
    _clock(clock, run)
    for one in (parts, clock):
        by_round(one)
    key_below(figure, [parts], 2)
    total = sum(record["seconds"] for record in run.rounds)
    words = (
        f"All rounds took {total:.0f} s by the clock. Clients together: {sum(waiting):.0f} s "
        f"waiting for the LLM, {sum(rest):.0f} s of other work; their encoders ran for "
        f"{sum(encoder):.0f} s."
    )
    note = (
        "Clients that work at the same time add up above and overlap in the clock. A client "
        "encodes the next batch while it waits for the LLM, so the encoder's seconds may lie in "
        "either part of a bar and are no part of their own. The merge is within the clock's "
        "seconds and was not timed apart, nor were starting and sending."
    )
    return Picture("seconds", "Time by round", words, note, figure)


@styled
def memory(run: Run) -> Picture | Missing:
    """Peak memory of each process, and of GPUs that were used."""
    figure, (axes,) = panels(height=3.2)
    rounds = [record["round"] for record in run.rounds]
    said = []
    for key, (label, shade, mark) in PROCESSES.items():
        values = [record["peak_memory_mb"].get(key, 0.0) for record in run.rounds]
        if any(values):
            axes.plot(rounds, values, color=shade, marker=mark, markersize=4.5, label=label)
            said.append(f"{label} {max(values):,.0f} MiB")
    if not said:
        return Missing("memory", "Peak memory", "the run has not measured any")
    axes.set_title("Peak memory")
    axes.set_ylabel("peak memory, MiB")
    axes.set_ylim(bottom=0)
    by_round(axes)
    key_below(figure, [axes], 2)
    note = (
        "Resident memory of a process, and memory allocated on a GPU, at the peak since the "
        "process began. Where server and clients were one process, so are their lines."
    )
    return Picture("memory", "Peak memory", f"Peaks: {', '.join(said)}.", note, figure)


def _clock(axes: Axes, run: Run) -> None:
    axes.bar(
        [record["round"] for record in run.rounds],
        [record["seconds"] for record in run.rounds],
        0.6,
        color=GREY,
    )
    axes.set_title("The whole round by the clock")
    axes.set_ylabel("wall-clock time, s")


def _unit(most: float) -> tuple[float, str]:
    """A unit in which the largest value is short, in powers of 1000."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if most >= size:
            return size, unit
    return 1.0, "bytes"
