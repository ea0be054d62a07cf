"""Puts the app's own files into the wheel, so that what it installs can be run without a checkout.

All else that there is to say of the package is in pyproject.toml.
"""

from pathlib import Path
from shutil import copy2

from setuptools import setup
from setuptools.command.build_py import build_py

APP_FILES = ("pyproject.toml", "README.md", "LICENSE")


class BuildWithApp(build_py):
    """Builds the package and `fednano_flwr/app/`, which Flower needs beside the code."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "fednano_flwr", "app")
            folder.mkdir(parents=True, exist_ok=True)
            for name in APP_FILES:
                copy2(name, folder / name)


setup(cmdclass={"build_py": BuildWithApp})
