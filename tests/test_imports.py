"""What may import what: tested by importing in processes that have none of this project yet."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

# What others wrote takes seconds to import, so it is imported once and the process forks.
FORKS = """
import importlib, importlib.abc, json, os, sys, traceback
import grpc, peft, torch, transformers

class Blocked(importlib.abc.MetaPathFinder):
    def __init__(self, blocked):
        self.blocked = blocked

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.blocked:
            raise ImportError(name + " is blocked")

def imported(modules, blocked):
    early = [name for name in sys.modules if name.split(".")[0] in (*blocked, "fednano_flwr")]
    assert not early, early
    sys.meta_path.insert(0, Blocked(blocked))
    for name in modules:
        importlib.import_module(name)
    return sorted(name for name in sys.modules if name.startswith("fednano_flwr."))

for line in sys.stdin:
    if os.fork() == 0:
        try:
            answer = imported(*json.loads(line))
        except BaseException:
            answer = traceback.format_exc()
        print(json.dumps(answer), flush=True)
        os._exit(0)
    os.wait()
"""
Imported = Callable[..., list[str]]

WITHOUT_FLOWER = (
    "fednano_flwr.config",
    "fednano_flwr.config.node",
    "fednano_flwr.adapters.product",
    "fednano_flwr.base.resources",
    "fednano_flwr.data.load",
    "fednano_flwr.data.shard",
    "fednano_flwr.models.checkpoint",
    "fednano_flwr.models.edge_half",
    "fednano_flwr.models.llm_half",
    "fednano_flwr.models.size",
    "fednano_flwr.exchange.wire.client",
    "fednano_flwr.exchange.wire.server",
    "fednano_flwr.exchange.embeddings",
    "fednano_flwr.edge.client",
    "fednano_flwr.edge.training",
    "fednano_flwr.llm.host",
    "fednano_flwr.adapters.packing",
    "fednano_flwr.strategies.merge",
    "fednano_flwr.strategies.registry",
)


@pytest.fixture(scope="module")
def imported() -> Iterator[Imported]:
    """Modules of this project that importing some brings, with others out of reach."""
    command = [sys.executable, "-c", FORKS]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(modules: tuple[str, ...], blocked: tuple[str, ...] = ()) -> list[str]:
            print(json.dumps([modules, blocked]), file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())
            assert isinstance(answer, list), answer
            return answer

        yield ask
        process.stdin.close()


def test_edge_llm_exchange_models_data_and_merging_work_without_flower_and_ray(
    imported: Imported,
) -> None:
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
def test_neither_side_imports_the_others_half(
    imported: Imported, module: str, foreign: str
) -> None:
    assert not [name for name in imported((module,)) if name.startswith(foreign)]


def test_the_library_never_imports_the_demo(imported: Imported) -> None:
    names = imported(("fednano_flwr.client_app", "fednano_flwr.server_app"), ("fednano_demo",))
    assert "fednano_flwr.server_app" in names
