"""Which privacy settings go with which others; the reasons are in docs/privacy.md."""

from __future__ import annotations

from dataclasses import fields

from fednano_flwr.config import ConfigError, Privacy, RunConfig
from fednano_flwr.strategies.registry import MEAN_ONLY, OWN, own_class

ADAPTIVE_ONLY = ("target_quantile", "clip_rate", "count_noise")
DP = ("clip_norm", "noise_multiplier", "delta", *ADAPTIVE_ONLY)


def check_privacy(config: RunConfig) -> None:
    """Reject settings with which the privacy guarantee would not hold.

    Raises:
        ConfigError: names the keys, the reason, and what to use.
    """
    privacy, strategy = config.privacy, config.strategy
    if privacy.dp == "none":
        return
    asked, own = f"privacy.dp = {privacy.dp!r}, ", own_class(strategy.name)
    if reason := reason_against(strategy.name):
        able = [name for name in (*OWN, *MEAN_ONLY) if not reason_against(name)]
        raise ConfigError(
            f"{asked}strategy.name = {strategy.name!r}: {reason}; use one of {', '.join(able)}"
        )
    if own and strategy.weight_by != "equal":
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


def reason_against(name: str) -> str:
    """Why a strategy cannot have differential privacy around it; "" if it can."""
    from fednano_flwr.strategies.base import AdapterStrategy  # brings torch and Flower

    if own := own_class(name):
        return own.without_privacy
    return "" if name in MEAN_ONLY else AdapterStrategy.without_privacy


def check_unread_privacy(asked: Privacy, usual: Privacy) -> None:
    """Reject a value that has no effect, such as a noise multiplier without noise.

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
