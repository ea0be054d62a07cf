"""Flower's programs in this Python environment, and the variables that they are started with."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from fednano_flwr.config.proxies import spare_this_machine
from fednano_flwr.launcher.processes import MARK

HOME = "home"  # FLWR_HOME, in a SuperLink's folder; removed with the SuperLink
LONGEST_RAY_FOLDER = 35  # Ray puts about 68 more into a Unix socket's path; 103 is the limit
VARIABLES = {
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",  # seconds until a submitted run is taken up
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_grpc_enable_http_proxy": "0",  # all of it is on this machine
    "RAY_ADDRESS": "local",  # a Ray of this run, never a cluster that happens to be up
    "PYTHONUNBUFFERED": "1",  # else the streamed log comes in blocks of 8 KB
    "PYTHONUTF8": "1",  # their output is read as UTF-8, whatever the terminal has
    "PYTHONIOENCODING": "utf-8:replace",
}
PATH_VARIABLES = ("FEDNANO_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME")


class LaunchError(RuntimeError):
    """Flower could not be started. `log` is the file that says more, where there is one."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


def bin_folder() -> Path:
    """The folder of Flower's programs in this Python environment, activated or not.

    Raises:
        LaunchError: Flower is not installed in it.
    """
    user = sysconfig.get_preferred_scheme("user")
    scripts = [sysconfig.get_path("scripts"), sysconfig.get_path("scripts", user)]
    for candidate in [Path(sys.executable).parent, *map(Path, scripts)]:
        if (candidate / "flower-superlink").exists():
            return candidate
    raise LaunchError(
        f"flower-superlink is not in the environment of {sys.executable}; "
        "install it there: pip install 'flwr[simulation]>=1.42,<1.43'"
    )


def environment_of(folder: Path, run_id: str) -> dict[str, str]:
    """Environment variables of a SuperLink with its state in `folder`, and of all it starts.

    SuperLink and apps start their helpers by name, so Flower's programs have to be on the PATH.
    Relative paths are made absolute, since these programs run in another folder.
    """
    variables = os.environ | VARIABLES | {MARK: run_id, "FLWR_HOME": str(folder / HOME)}
    variables["PATH"] = os.pathsep.join([str(bin_folder()), os.environ.get("PATH", "")])
    if len(str(folder)) <= LONGEST_RAY_FOLDER:
        variables["RAY_TMPDIR"] = str(folder)
    for name in PATH_VARIABLES:
        if variables.get(name):
            variables[name] = os.path.abspath(variables[name])
    spare_this_machine(variables)
    if paths := [p for p in variables.get("PYTHONPATH", "").split(os.pathsep) if p]:
        variables["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths))
    return variables
