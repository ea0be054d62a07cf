"""What may import what: tested by importing in a process of its own."""

import subprocess
import sys
from functools import cache

import pytest

BLOCK = """
import importlib, importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
for name in {modules!r}:
    importlib.import_module(name)
print(sorted(name for name in sys.modules if name.startswith("fednano_flwr.")))
"""

WITHOUT_FLOWER = (
    "fednano_flwr.config",
    "fednano_flwr.node_config",
    "fednano_flwr.product",
    "fednano_flwr.resources",
    "fednano_flwr.data.registry",
    "fednano_flwr.data.shard",
    "fednano_flwr.models.checkpoint",
    "fednano_flwr.models.edge_half",
    "fednano_flwr.models.llm_half",
    "fednano_flwr.models.size",
    "fednano_flwr.exchange.client",
    "fednano_flwr.exchange.server",
    "fednano_flwr.exchange.embeddings",
    "fednano_flwr.edge.client",
    "fednano_flwr.edge.training",
    "fednano_flwr.llm.host",
    "fednano_flwr.upload.update",
    "fednano_flwr.strategies.merge",
    "fednano_flwr.strategies.registry",
)


@cache
def imported(modules: tuple[str, ...], blocked: tuple[str, ...] = ()) -> list[str]:
    """Modules of this project that importing these brings, with some others out of reach."""
    script = BLOCK.format(modules=modules, blocked=blocked)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return eval(result.stdout.splitlines()[-1])


def test_edge_llm_exchange_models_data_and_merging_work_without_flower_and_ray() -> None:
    assert set(WITHOUT_FLOWER) <= set(imported(WITHOUT_FLOWER, ("flwr", "ray")))


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        ("fednano_flwr.client_app", "fednano_flwr.models.llm_half"),
        ("fednano_flwr.client_app", "fednano_flwr.llm"),
        ("fednano_flwr.edge.client", "fednano_flwr.llm"),
        ("fednano_flwr.ask.opening", "fednano_flwr.models.llm_half"),
        ("fednano_flwr.ask.serve", "fednano_flwr.edge"),
        ("fednano_flwr.llm.host", "fednano_flwr.edge"),
        ("fednano_flwr.llm.host", "fednano_flwr.models.edge_half"),
    ],
)
def test_neither_side_imports_the_others_half(module: str, foreign: str) -> None:
    assert not [name for name in imported((module,)) if name.startswith(foreign)]


def test_the_library_never_imports_the_demo() -> None:
    names = imported(("fednano_flwr.client_app", "fednano_flwr.server_app"), ("fednano_demo",))
    assert "fednano_flwr.server_app" in names
