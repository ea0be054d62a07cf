"""Which privacy settings go with which others; the reasons are in docs/privacy.md."""

from __future__ import annotations

from dataclasses import fields

from fednano_flwr.config import ConfigError, Privacy, RunConfig

UNIFORM = ("fedavg", "fedprox", "feddpa-f")
"""This project's strategies that a noised mean can stand for; by `strategy.weight-by = "equal"`."""
SERVER_STEPS = ("FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedYogi")
"""Flower's that make something of a mean, and nothing of single updates."""
ADAPTIVE_ONLY = ("target_quantile", "clip_rate", "count_noise")
DP = ("clip_norm", "noise_multiplier", "delta", *ADAPTIVE_ONLY)
REASONS = {
    "fednano": "Fisher values weigh the updates, so that no clip norm bounds what one client can "
    "change",
    "fednano-ef": "Fisher values weigh the updates, so that no clip norm bounds what one client "
    "can change",
    "fisher-product": "Fisher values weigh the updates, so that no clip norm bounds what one "
    "client can change",
    "fedavg-exact": "it merges products B A, and what is clipped and noised is the mean of their "
    "factors; of that it would make what fedavg makes",
    "locft": "its clients send no update",
    "centralized": "one client trains on everyone's questions, so that clipping its update "
    "protects no one",
}
ROBUST = "it compares single updates, and of these only their noised mean may be seen"


def check_privacy(config: RunConfig) -> None:
    """Refuse settings whose privacy statement would not hold.

    Raises:
        ConfigError: names the keys, the reason, and what to use.
    """
    privacy, strategy = config.privacy, config.strategy
    if privacy.secure_aggregation:
        raise ConfigError(
            "privacy.secure-aggregation = true: Flower's SecAgg+ runs in its legacy server "
            "workflow only, with another kind of strategy and of messages than this app's; there "
            "is no secure aggregation here. The ServerApp sees each update: run it where that may "
            "be, and set privacy.secure-aggregation = false (docs/privacy.md says what is missing)"
        )
    if privacy.dp == "none":
        return
    asked = f"privacy.dp = {privacy.dp!r}, "
    name = strategy.name
    if name not in (*UNIFORM, *SERVER_STEPS):
        raise ConfigError(
            f"{asked}strategy.name = {name!r}: {REASONS.get(name, ROBUST)}; use one of "
            f"{', '.join((*UNIFORM, *SERVER_STEPS))}"
        )
    if name in UNIFORM and strategy.weight_by != "equal":
        raise ConfigError(
            f"{asked}strategy.weight-by = {strategy.weight_by!r}: a client with more questions "
            'would change more than the noise covers; use strategy.weight-by = "equal"'
        )
    if privacy.at_client and config.upload.adapters != "float32":
        where = privacy.dp.replace("client", "server")
        raise ConfigError(
            f"{asked}upload.adapters = {config.upload.adapters!r}: rounding, and what it left out "
            "of earlier updates, would be added after the client has clipped; use "
            f'privacy.dp = {where!r}, or upload.adapters = "float32"'
        )


def check_unread_privacy(asked: Privacy, usual: Privacy) -> None:
    """Refuse a value that would change nothing, such as a noise multiplier without noise.

    Args:
        usual: the section as it is by default.

    Raises:
        ConfigError: with the value of `privacy.dp` that reads it.
    """
    unread = DP if asked.dp == "none" else () if asked.adaptive else ADAPTIVE_ONLY
    for name in (field.name for field in fields(Privacy) if field.name in unread):
        value = getattr(asked, name)
        if value != getattr(usual, name):
            able = "server-adaptive" if name in ADAPTIVE_ONLY else "server-fixed"
            raise ConfigError(
                f"privacy.{name.replace('_', '-')} = {value!r}: privacy.dp = {asked.dp!r} does not "
                f"use it; privacy.dp = {able!r} does"
            )
