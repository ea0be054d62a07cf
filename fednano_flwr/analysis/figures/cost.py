"""What a run takes: traffic, time and memory from round to round."""

from __future__ import annotations

from fednano_flwr.analysis import canvas
from fednano_flwr.analysis.canvas import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILION
from fednano_flwr.analysis.picture import Picture
from fednano_flwr.base.console import human_bytes
from fednano_flwr.runs.results import Run

TRAFFIC = {"round": "Round traffic: adapters, by Flower", "step": "Step traffic: LLM, by gRPC"}
WAYS = {"up": (-0.2, BLUE, "up: from clients"), "down": (0.2, ORANGE, "down: to clients")}
PROCESSES = {
    "server_process": ("server", BLUE, "o"),
    "client_process": ("largest client", VERMILION, "s"),
    "server_gpu": ("server's GPU", GREEN, "^"),
    "client_gpu": ("largest client's GPU", PURPLE, "D"),
}


@canvas.styled
def traffic(run: Run) -> Picture:
    """A panel each kind of traffic: bytes up and down in each round."""
    figure, axes = canvas.panels(len(TRAFFIC), 2.5)
    said = []
    for panel, (kind, title) in zip(axes, TRAFFIC.items(), strict=True):
        bytes_of = {way: [r[f"{kind}_bytes_{way}"] for r in run.rounds] for way in WAYS}
        size, unit = _unit(max(map(max, bytes_of.values())))
        for way, (shift, shade, label) in WAYS.items():
            rounds = [record["round"] + shift for record in run.rounds]
            heights = [value / size for value in bytes_of[way]]
            panel.bar(rounds, heights, 0.38, color=shade, label=label)
        panel.set_title(title)
        panel.set_ylabel(f"{unit}, all clients")
        canvas.by_round(panel)
        up, down = (human_bytes(sum(values)) for values in bytes_of.values())
        said.append(f"{title}: {up} up and {down} down in all rounds.")
    canvas.key_below(figure, axes, 2)
    note = (
        "Training and evaluation of all clients together; the panels have scales of their own. "
        "Round 0 only evaluates."
    )
    return Picture("traffic", "Traffic by round", figure, " ".join(said), note)


@canvas.styled
def seconds(run: Run) -> Picture:
    """Above what clients did, in seconds of all of them; below the round by the clock."""
    figure, (parts, clock) = canvas.panels(2, 2.6)
    rounds = [record["round"] for record in run.rounds]
    wall = [record["seconds"] for record in run.rounds]
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
    clock.bar(rounds, wall, 0.6, color=GREY)
    clock.set_title("The whole round by the clock")
    clock.set_ylabel("wall-clock time, s")
    for panel in (parts, clock):
        canvas.by_round(panel)
    canvas.key_below(figure, [parts], 2)
    words = (
        f"All rounds took {sum(wall):.0f} s by the clock. Clients together: {sum(waiting):.0f} s "
        f"waiting for the LLM, {sum(rest):.0f} s of other work; their encoders ran for "
        f"{sum(encoder):.0f} s."
    )
    note = (
        "Clients that work at the same time add up above and overlap in the clock. A client "
        "encodes the next batch while it waits for the LLM, so the encoder's seconds may lie in "
        "either part of a bar and are no part of their own. The merge is within the clock's "
        "seconds and was not timed apart, nor were starting and sending."
    )
    return Picture("seconds", "Time by round", figure, words, note)


@canvas.styled
def memory(run: Run) -> Picture:
    """Peak memory of each process, and of GPUs that were used."""
    name, title = "memory", "Peak memory"
    peaks = {
        key: [record["peak_memory_mb"].get(key, 0.0) for record in run.rounds] for key in PROCESSES
    }
    used = {key: values for key, values in peaks.items() if any(values)}
    if not used:
        return Picture(name, title, reason="the run has not measured any")
    figure, (axes,) = canvas.panels(height=3.2)
    said = []
    for key, values in used.items():
        label, shade, mark = PROCESSES[key]
        rounds = [record["round"] for record in run.rounds]
        axes.plot(rounds, values, color=shade, marker=mark, markersize=4.5, label=label)
        said.append(f"{label} {max(values):,.0f} MiB")
    axes.set_ylim(bottom=0)
    canvas.finish(figure, axes, title, "peak memory, MiB", 2)
    note = (
        "Resident memory of a process, and memory allocated on a GPU, at the peak since the "
        "process began. Where server and clients were one process, so are their lines."
    )
    return Picture(name, title, figure, f"Peaks: {', '.join(said)}.", note)


def _unit(most: float) -> tuple[float, str]:
    """A unit in which the largest value is short, in powers of 1000."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if most >= size:
            return size, unit
    return 1.0, "bytes"
