"""Addresses that the server cannot listen on, or that clients cannot dial."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from fednano_flwr.config import RunConfig
from fednano_flwr.doctor.listening import check_listening, check_metrics, check_reach
from tests.doctor.found import only, well

Configured = Callable[..., RunConfig]


def test_a_free_port_is_well_and_free_again(config: Configured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    llm = config(llm__port=port).llm
    assert well(check_listening(llm)) and well(check_listening(llm))
    assert "any port that is free" in only(check_listening(config().llm), "ok").what


def test_a_taken_port_is_named_with_how_to_find_who_has_it(config: Configured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = only(check_listening(config(llm__port=port).llm), "problem")
    assert f"llm.port = {port}" in found.what and f"sport = :{port}" in found.do


@pytest.mark.parametrize(
    ("bind", "says"), [("192.0.2.77", "does not have that address"), ("no..name", "is not known")]
)
def test_an_address_of_no_interface_is_a_problem(config: Configured, bind: str, says: str) -> None:
    llm = config(llm__bind=bind, llm__insecure_beyond_loopback=True).llm
    found = only(check_listening(llm), "problem")
    assert f"llm.bind = {bind!r}" in found.what and says in found.what


def test_listening_without_tls_beyond_loopback_is_a_warning(config: Configured) -> None:
    changes = {"llm__bind": "0.0.0.0", "llm__insecure_beyond_loopback": True, "llm__port": 9000}
    llm = config(**changes, llm__address="198.51.100.7:9000").llm
    assert "without TLS" in only(check_reach(llm), "warning").what


def test_an_address_that_clients_cannot_dial_is_found(config: Configured) -> None:
    assert well(check_reach(config(llm__port=9000).llm))
    unusable = config(llm__port=9000, llm__address="host").llm
    assert "give HOST:PORT" in only(check_reach(unusable), "problem").what
    nobody = config(llm__port=9000, llm__address="no-such-host.invalid:9000").llm
    assert "is not known" in only(check_reach(nobody), "problem").what
    own = config(llm__port=9000, llm__address="127.0.0.1:9000").llm
    assert "tunnel" in only(check_reach(own), "warning").do
    drawn = config(llm__address="198.51.100.7:9000").llm
    assert "llm.port = 0" in only(check_reach(drawn), "warning").what


def test_the_metrics_place_is_looked_at_where_there_is_one(config: Configured) -> None:
    assert check_metrics(config().llm) == []
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        found = only(check_metrics(config(llm__metrics=where).llm), "problem")
    assert f"llm.metrics = {where!r}" in found.what and "set llm.metrics" in found.do
    assert well(check_metrics(config(llm__metrics=where).llm))
    open_one = check_metrics(config(llm__metrics="0.0.0.0:0").llm)
    assert "need no token" in only(open_one, "warning").what
