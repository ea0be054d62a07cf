"""What a LoRA inside the language model, which the host trains, goes together with."""

from __future__ import annotations

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.strategies.base import local_work_of
from fednano_flwr.strategies.registry import make_strategy, own_class


def check_llm_site(config: RunConfig) -> None:
    """Refuse what cannot be where `adapter.sites` has `llm`.

    Raises:
        ConfigError: with the reason, and what to set.
    """
    adapter, name = config.adapter, config.strategy.name
    if not adapter.at_llm:
        return
    sites, own = f"adapter.sites = {adapter.sites!r}", own_class(name)
    work = local_work_of(make_strategy(config.strategy))
    if work.adapters != "global":
        raise ConfigError(
            f"{sites}, strategy.name = {name!r}: its clients keep adapters of their own, and the "
            "host keeps no client's beyond its round; leave llm out of adapter.sites"
        )
    if own is not None and own.keeps_map:
        raise ConfigError(
            f"{sites}, strategy.name = {name!r}: its map is applied before the language model, and "
            "there is none inside; leave llm out of adapter.sites"
        )
    if work.fisher == "pass-model":
        raise ConfigError(
            f'{sites}, strategy.fisher-estimate = "pass-model": a client cannot draw answers from '
            'the model that it has just trained at the host; use "pass"'
        )
    if config.privacy.at_client and config.privacy.dp != "none":
        raise ConfigError(
            f"{sites}, privacy.dp = {config.privacy.dp!r}: a client cannot clip the part of its "
            f"update that is at the host; use {config.privacy.dp.replace('client', 'server')!r}"
        )
