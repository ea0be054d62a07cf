"""What a SuperNode is told with `--node-config`, read as Flower reads it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from fednano_flwr.config import ConfigError
from fednano_flwr.config.node import KEYS, NodeConfig
from fednano_flwr.doctor.finding import Finding, problem

PARTITION = ("partition-id", "num-partitions")
_PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")
EXAMPLE = (
    "put text in double quotes and numbers in none, with no space around the sign: a SuperNode "
    'takes --node-config \'data-path="/the/shard" edge-path="/the/bundle"\''
)


def read_node(text: str) -> tuple[NodeConfig, list[Finding]]:
    """The node that a text describes, as far as it does, and what is wrong with the text."""
    from fednano_flwr.rounds.compat import parse_config_args

    try:
        mapping: dict[str, Any] = parse_config_args([text])
    except Exception as error:  # click's, or of the file that the text names
        reason = getattr(error, "message", error)
        return NodeConfig(), [problem(f"--node-config {text!r} cannot be read: {reason}", EXAMPLE)]
    findings = []
    if rest := "" if text.endswith(".toml") else " ".join(_PAIR.sub(" ", text).split()):
        findings.append(
            problem(f"--node-config: Flower silently ignores {rest!r}, not key=value", EXAMPLE)
        )
    good: dict[str, Any] = {}
    for part in _parts(mapping):
        try:
            NodeConfig.parse(part)
        except ConfigError as error:
            near = (
                []
                if part.keys() <= set(KEYS)
                else difflib.get_close_matches(next(iter(part)), KEYS, n=1)
            )
            hint = f"did you mean {near[0]}? " if near else ""
            findings.append(problem(str(error), hint + EXAMPLE))
        else:
            good |= part
    return NodeConfig.parse(good), findings


def _parts(mapping: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each key alone, so that all that are wrong are named; but for two that go together."""
    together = {key: mapping[key] for key in PARTITION if key in mapping}
    alone = [{key: value} for key, value in mapping.items() if key not in PARTITION]
    return [*alone, *([together] if together else [])]
