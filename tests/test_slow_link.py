"""The slow links of the benchmark have the rate, the delay and the loss that are asked for."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.runs import process
from benchmarks.slow_link.link import HOST, Direction, Quality, carry, own_network, why_not

PORT, BYTES, PINGS = 5000, 1_000_000, 5
linked = pytest.mark.skipif(bool(why_not()), reason=f"no networks of their own: {why_not()}")


def sent(quality: Quality, packets: int, seed: int = 0) -> tuple[Direction, list[int]]:
    """When each of some packets of 1250 bytes arrives, sent at once at 0; in ms."""
    way = Direction(quality, seed)
    for _ in range(packets):
        way.send(bytes(1250), 0.0)
    arrived = [ms for ms in range(1000) for _ in way.due(ms / 1e3 + 1e-6)]
    return way, arrived


def test_packets_follow_one_another_at_the_rate_and_arrive_after_half_the_round_trip() -> None:
    _, arrived = sent(Quality(mbit=10, round_trip_ms=40), packets=4)
    assert arrived == [21, 22, 23, 24]


def test_a_full_queue_drops_packets_and_the_rate_stays() -> None:
    quality = Quality(mbit=10, round_trip_ms=200)
    way, arrived = sent(quality, packets=400)
    assert way.dropped == 400 - len(arrived) > 0
    assert len(arrived) == pytest.approx(quality.queue / 1250, abs=1)


def test_lost_packets_are_those_of_the_seed_and_take_their_time() -> None:
    quality = Quality(mbit=100, round_trip_ms=200, loss=0.1)
    way, arrived = sent(quality, packets=1000)
    assert 70 < way.lost < 130 and len(arrived) == 1000 - way.lost
    assert sent(quality, 1000)[1] == arrived != sent(quality, 1000, seed=1)[1]


def host(pipe: Any) -> None:
    pipe.send(own_network())
    pipe.recv()
    listener, echo = socket.create_server((HOST, PORT)), socket.socket(type=socket.SOCK_DGRAM)
    echo.bind((HOST, PORT))
    pipe.send(None)
    stream, _ = listener.accept()
    while stream.recv(1 << 16):
        pass
    stream.close()
    for _ in range(PINGS):
        echo.sendto(*echo.recvfrom(1))
    pipe.poll(None)


def client(pipe: Any) -> None:
    pipe.send(own_network())
    pipe.recv()
    began = time.monotonic()
    with socket.create_connection((HOST, PORT)) as stream:
        stream.sendall(bytes(BYTES))
        stream.shutdown(socket.SHUT_WR)
        stream.recv(1)
    seconds, pings = time.monotonic() - began, []
    with socket.socket(type=socket.SOCK_DGRAM) as ping:
        for _ in range(PINGS):
            began = time.monotonic()
            ping.sendto(b"x", (HOST, PORT))
            ping.recv(1)
            pings.append(time.monotonic() - began)
    pipe.send((seconds, min(pings)))
    pipe.poll(None)


@linked
def test_a_connection_has_the_rate_and_a_ping_the_delay_that_were_asked_for() -> None:
    quality = Quality(mbit=5, round_trip_ms=50)
    with process(host) as here, process(client) as there:
        pids = here.recv(), there.recv()
        with process(carry, pids[0], [pids[1]]) as links:
            links.recv()
            links.send(quality)
            links.recv()
            for pipe in (here, there):
                pipe.send(None)
            seconds, ping = there.recv()
            links.send(None)
            assert links.recv()["bytes"] > BYTES
    assert 0.75 * quality.mbit < 8e-6 * BYTES / seconds < quality.mbit
    assert 0.05 <= ping < 1.25 * 0.05


@linked
@pytest.mark.slow
def test_a_round_takes_at_least_its_bytes_and_passes(tmp_path: Path) -> None:
    from benchmarks.slow_link import script  # the processes of the other tests need no PyTorch

    out = tmp_path / "result.json"
    script.main(["--small", "--steps", "1", "--json", str(out)])
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert {row["clients"] for row in rows} == {1, 4}
    for row in rows:
        assert row["seconds"] > row["least"] >= max(row["sending"], row["busy"]) > 0
        assert row["link_bytes"] > row["clients"] * (row["bytes_up"] + row["bytes_down"])
        assert row["busy"] == pytest.approx(1e-3 * row["pass_ms"] * row["clients"], rel=0.25)
