"""Python, the packages that the installed `fednano-flwr` asks for, and PyTorch's devices."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fednano_flwr.config import ConfigError
from fednano_flwr.config.project import NAME
from fednano_flwr.doctor.finding import Finding, ok, problem, warning

HELPER = "flower-superexec"
SHOWN = ("flwr", "torch", "transformers", "peft", "grpcio")


def check_python(wanted: str, version: str) -> list[Finding]:
    """Args:
    wanted: as `Requires-Python` has it; "" for any.
    """
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return [
            problem(
                f"Python {version}: {NAME} needs {wanted}",
                "make a virtual environment with a Python in that range and install into it",
            )
        ]
    return [ok(f"Python {version}" + (f" ({wanted})" if wanted else ""))]


def check_packages(requires: Sequence[str]) -> list[Finding]:
    """Whether each package is installed, in its range.

    Args:
        requires: as a distribution's metadata has them; those of extras are left out.
    """
    findings: list[Finding] = []
    found: dict[str, str] = {}
    for requirement in map(Requirement, requires):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, wanted = requirement.name, str(requirement.specifier)
        do = f"pip install '{name}{wanted}'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            findings.append(problem(f"{name} is not installed", do))
            continue
        found[name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            findings.append(problem(f"{name} {version}: {NAME} needs {wanted}", do))
    if not findings:
        shown = ", ".join(f"{name} {found[name]}" for name in SHOWN if name in found)
        findings.append(ok(f"{len(found)} packages are in their ranges: {shown}"))
    return findings


def check_installed() -> list[Finding]:
    """Python and packages, against what the installed distribution asks for."""
    try:
        installed = metadata.distribution(NAME)
    except metadata.PackageNotFoundError:
        return [
            problem(
                f"{NAME} is not installed in this environment, so that its ranges are not known",
                "pip install -e . in its folder",
            )
        ]
    wanted = ""
    if "Requires-Python" in installed.metadata:
        wanted = installed.metadata["Requires-Python"]
    python = check_python(wanted, platform.python_version())
    return [*python, *check_packages(installed.requires or [])]


def check_programs(path: str | None = None) -> list[Finding]:
    """Whether SuperLinks and SuperNodes that are started by hand will find Flower's helper.

    Args:
        path: folders to look in; None is `$PATH`.
    """
    if shutil.which(HELPER, path=path):
        return [ok(f"{HELPER} is on the PATH")]
    return [
        warning(
            f"{HELPER} is not on the PATH: flower-superlink and flower-supernode start it by name",
            f"put {Path(sys.executable).parent} on the PATH of what starts them (activate the "
            "virtual environment, or PATH= in the service's unit); `fednano run` does that itself",
        )
    ]


def check_device(key: str, device: str) -> list[Finding]:
    """Whether PyTorch has a device here.

    Args:
        key: that names it, for findings.
    """
    from fednano_flwr.models.device import describe_device

    try:
        return [ok(f"{key} = {device!r} ({describe_device(key, device)})")]
    except ConfigError as error:
        what, _, do = str(error).partition("; ")
        return [problem(what, do)]
