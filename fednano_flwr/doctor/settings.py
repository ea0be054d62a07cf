"""The run config, and what it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.config.project import find_app
from fednano_flwr.doctor.finding import Finding, ok, problem, warning
from fednano_flwr.preflight import check_host, check_strategy, config_of


def read_settings(
    app: Path | None, overrides: Sequence[str], cwd: Path, is_client: bool
) -> tuple[RunConfig | None, list[Finding]]:
    """The run config, or None where there is none that can be read, and what is to be said of it.

    A client gets the run's config from the server, so one that has no app is not lost.
    """
    try:
        folder = find_app(app, cwd)
    except ConfigError as error:
        if is_client and app is None and not overrides:
            return None, [
                warning(
                    "the run config is not known here, so that what depends on it is not looked at",
                    "give the app's folder with --app, and with -c what the server's run changes",
                )
            ]
        return None, [problem(str(error))]
    try:
        return config_of(folder, overrides, cwd), [ok(f"the run config of {folder}")]
    except ConfigError as error:
        return None, [
            problem(
                str(error), "until it is right, what depends on the run config is not looked at"
            )
        ]


def check_names(config: RunConfig) -> list[Finding]:
    """Whether strategy, ranks, privacy and trackers are such that there are, and go together.

    Raises:
        ConfigError: they are not.
    """
    return [ok(check_strategy(config))]


def check_host_options(config: RunConfig) -> list[Finding]:
    """Whether the host can run here as it is asked to.

    Raises:
        ConfigError: it cannot.
    """
    llm = config.llm
    check_host(llm)
    asked = [f"llm.quantization = {llm.quantization!r}"] if llm.quantization != "none" else []
    asked += [f"llm.device-map = {llm.device_map!r}"] if llm.device_map else []
    return [ok(f"{', '.join(asked)}: can be had here")] if asked else []


def check_resume(config: RunConfig) -> list[Finding]:
    """Whether the run's folder is there, or is not, as `resume` says.

    Raises:
        ConfigError: it is not so.
    """
    from fednano_flwr.runs.resume import NEVER, continues, folder_of

    folder = folder_of(config)
    if continues(config, folder):
        return [ok(f"{folder} is a run that can be continued")]
    return [] if config.resume == NEVER else [ok(f"{folder} is new: the run begins there")]
