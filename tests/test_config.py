import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from fednano_flwr.config import EXCHANGE_DTYPES, ConfigError, RunConfig, key_types
from fednano_flwr.exchange.wire import codec


def test_the_defaults_are_valid_and_complete(defaults: dict[str, Any]) -> None:
    assert set(defaults) == set(key_types())
    config = RunConfig.parse(defaults)
    assert config.flat() == defaults
    assert RunConfig.parse(config.flat()) == config


def test_an_unknown_key_is_refused_with_the_nearest_and_all_known(
    defaults: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.alfa.*mean dataset\.alpha\?.*exchange\.kind"):
        RunConfig.parse({**defaults, "dataset.alfa": 1.0})


def test_a_missing_key_is_refused(defaults: dict[str, Any]) -> None:
    rest = {key: value for key, value in defaults.items() if key != "adapter.rank"}
    with pytest.raises(ConfigError, match=r"adapter\.rank is missing"):
        RunConfig.parse(rest)


@pytest.mark.parametrize(
    ("key", "value", "accepts"),
    [
        ("adapter.rank", 0, "at least 1"),
        ("adapter.rank", 2**17, "at most 65536"),
        ("adapter.rank", "8", "type int"),
        ("adapter.rank", True, "type int"),
        ("adapter.ranks", "4,17", r"from 1 to adapter\.rank = 16"),
        ("adapter.ranks", "0", "from 1 to"),
        ("adapter.ranks", "4,,8", "joined by commas"),
        ("adapter.ranks", "4;8", "joined by commas"),
        ("adapter.sites", "image,video", '"image", "text" and "audio"'),
        ("dataset.alpha", 0.0, "above 0"),
        ("dataset.test-split", "train", "another split than dataset.train-split"),
        ("dataset.test-fraction", 1.0, r"in \[0, 1\)"),
        ("dataset.max-skipped", 1.1, r"in \[0, 1\]"),
        ("learning-rate", -1.0, "above 0"),
        ("fraction-train", 1.5, r"in \(0, 1\]"),
        ("strategy.weight-by", "size", "samples, equal"),
        ("edge.dtype", "int8", "float32, bfloat16, float16"),
        ("exchange.dtype", "int4", "auto, float32, bfloat16, float16, int8"),
        (
            "llm.bind",
            "0.0.0.0",
            r"loopback.*no TLS.*llm\.tls-cert.*llm\.tls-key.*llm\.insecure-beyond-loopback",
        ),
        ("upload.adapters", "bfloat16", "float32, int8, int4"),
        ("upload.fisher", "int4", "float32, log4"),
        ("upload.error-feedback", 1, "type bool"),
        ("llm.replicas", 0, "at least 1"),
        ("llm.replica-gpus", -0.5, "share of a GPU"),
        ("llm.replica-gpus", 1.5, "whole number"),
    ],
)
def test_a_bad_value_is_refused_with_key_value_and_what_is_accepted(
    defaults: dict[str, Any], key: str, value: Any, accepts: str
) -> None:
    with pytest.raises(ConfigError, match=accepts) as refusal:
        RunConfig.parse({**defaults, key: value})
    assert key in str(refusal.value) and repr(value) in str(refusal.value)


NEVER: dict[type, list[Any]] = {
    float: [math.nan, math.inf, -math.inf, 2**63, 10**400, "1", None, True],
    int: [2**63, -(2**63) - 1, 10**400, 1.0, math.nan, "1", None, True],
    str: ["a\0b", "\ud800", 1, 1.0, None, True, ["a"]],
    bool: [0, 1.0, "true", None],
}


@pytest.mark.parametrize("key", key_types())
def test_no_key_takes_what_cannot_be_computed_with_or_sent(
    defaults: dict[str, Any], key: str
) -> None:
    """Whatever else is tried is taken or refused with the key; nothing else is raised."""
    for value in NEVER[key_types()[key]]:
        with pytest.raises(ConfigError, match=re.escape(key)):
            RunConfig.parse({**defaults, key: value})
    tried = {float: [-1.0, 0.0, 1e-320, 3e38], int: [-1, 0, 2**62], str: ["", " ", "é\n"]}
    for value in tried.get(key_types()[key], []):
        try:
            RunConfig.parse({**defaults, key: value})
        except ConfigError as error:
            assert key in str(error)


@pytest.mark.parametrize("bind", ["localhost:80", "[::1]", "a b", "http://h"])
def test_what_is_listened_at_has_no_port_and_no_brackets(
    defaults: dict[str, Any], bind: str
) -> None:
    with pytest.raises(ConfigError, match=r"llm\.bind = .*llm\.port|llm\.bind = .*loopback"):
        RunConfig.parse({**defaults, "llm.bind": bind})
    tls = {"llm.tls-cert": "c.pem", "llm.tls-key": "k.pem"}
    with pytest.raises(ConfigError, match=r"llm\.bind = .*llm\.port"):
        RunConfig.parse({**defaults, **tls, "llm.bind": bind})


@pytest.mark.parametrize(
    "key",
    [
        *("round-timeout", "round-limit", "exchange.timeout"),
    ],
)
def test_seconds_are_such_as_can_be_waited_for(defaults: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(key) + ".*at most 1e\\+09"):
        RunConfig.parse({**defaults, "round-limit": 1e9, key: 1e10})


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_a_service_without_tls_may_listen_on_this_machine(
    defaults: dict[str, Any], address: str
) -> None:
    assert RunConfig.parse({**defaults, "llm.bind": address}).llm.bind == address


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5", "gpu.example.org", ""])
@pytest.mark.parametrize("way", ["tls", "insecure"])
def test_a_service_beyond_loopback_needs_tls_or_to_be_asked_for_without(
    defaults: dict[str, Any], address: str, way: str
) -> None:
    there = {**defaults, "llm.bind": address, "llm.address": "gpu.example.org:9000"}
    with pytest.raises(ConfigError, match=r"llm\.bind = .*loopback"):
        RunConfig.parse(there)
    changed = {"llm.tls-cert": "c.pem", "llm.tls-key": "k.pem"}
    if way == "insecure":
        changed = {"llm.insecure-beyond-loopback": True}
    RunConfig.parse({**there, **changed})
    if address in ("0.0.0.0", "::"):
        with pytest.raises(ConfigError, match=r"llm\.address = ''.*that clients dial"):
            RunConfig.parse({**there, **changed, "llm.address": ""})


@pytest.mark.parametrize("lone", ["llm.tls-cert", "llm.tls-key"])
def test_a_certificate_or_a_key_alone_is_refused(defaults: dict[str, Any], lone: str) -> None:
    with pytest.raises(ConfigError, match=r"llm\.tls-key = .*llm\.tls-cert.*both or none"):
        RunConfig.parse({**defaults, lone: "file.pem"})


def test_replicas_on_gpus_need_a_share_of_them_and_no_number(defaults: dict[str, Any]) -> None:
    cuda = {**defaults, "llm.device": "cuda", "llm.replicas": 2, "llm.replica-gpus": 0.5}
    assert RunConfig.parse(cuda).llm.replica_gpus == 0.5
    with pytest.raises(ConfigError, match=r"llm\.replica-gpus = 0\.0.*above 0 .*0\.5 for two"):
        RunConfig.parse({**cuda, "llm.replica-gpus": 0.0})
    with pytest.raises(ConfigError, match=r"llm\.device = 'cuda:1'.*given its GPU"):
        RunConfig.parse({**cuda, "llm.device": "cuda:1"})
    RunConfig.parse({**cuda, "llm.replicas": 1, "llm.replica-gpus": 0.0, "llm.device": "cuda:1"})


def test_a_whole_number_is_taken_where_a_float_is_meant(defaults: dict[str, Any]) -> None:
    assert RunConfig.parse({**defaults, "dataset.alpha": 1}).dataset.alpha == 1.0


def test_every_dtype_of_the_exchange_has_a_codec(defaults: dict[str, Any]) -> None:
    for name in EXCHANGE_DTYPES[1:]:
        assert RunConfig.parse({**defaults, "exchange.dtype": name}).exchange.dtype in codec.NAMES


def test_run_configs_for_tests_are_valid(run_config: Callable[..., dict[str, Any]]) -> None:
    RunConfig.parse(run_config())
