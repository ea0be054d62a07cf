"""Imports go down only: those inside functions and under TYPE_CHECKING too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import fednano_flwr

PACKAGE = Path(fednano_flwr.__file__).parent
LAYERS: tuple[tuple[str, ...], ...] = (
    ("base",),
    ("config",),
    ("models", "data"),
    ("exchange", "adapters"),
    ("runs", "edge", "llm", "trackers"),
    ("rounds",),
    ("strategies",),
    ("privacy",),
    ("preflight",),
    ("client_app", "server_app"),
    ("in_process", "launcher"),
    ("check", "doctor", "preview", "ask", "export", "analysis"),
    ("cli",),
)
"""From the ground floor to the roof; names on one floor do not import one another."""
FLOOR = {name: floor for floor, names in enumerate(LAYERS) for name in names}
OTHERS = ("fednano_demo", "benchmarks", "tests")


def imported(source: str, module: str) -> Iterator[str]:
    """Every module that a module's source imports, as `fednano_flwr.config.project`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def climbs(source: str, module: str) -> list[str]:
    """Imports of a module of the package that do not go down, as `edge.x -> rounds.records`."""
    room = module.split(".")[1]
    found = set()
    for name in imported(source, module):
        parts = name.split(".")
        if parts[0] in OTHERS:
            found.add(f"{module} -> {name}")
        if parts[0] == "fednano_flwr" and len(parts) > 1 and parts[1] in FLOOR:
            down = FLOOR[parts[1]] < FLOOR[room] or parts[1] == room
            found |= set() if down else {f"{module} -> {'.'.join(parts[:3])}"}
    return sorted(found)


def modules() -> Iterator[tuple[str, Path]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):  # the names of the public API, each imported when it is used
            yield ".".join(["fednano_flwr", *parts]).removesuffix(".__init__"), file


def test_every_package_and_root_module_has_its_floor() -> None:
    assert {module.split(".")[1] for module, _ in modules()} == set(FLOOR)


def test_imports_go_down_only() -> None:
    found = [one for module, file in modules() for one in climbs(file.read_text("utf-8"), module)]
    assert not found, "\n".join(found)


def test_an_upward_import_is_found_at_the_top_in_a_function_and_relative() -> None:
    inside = "def f():\n    from fednano_flwr.cli import app\n"
    assert climbs("import fednano_flwr.rounds.records\n", "fednano_flwr.edge.training")
    assert climbs(inside, "fednano_flwr.edge.training")
    assert climbs("from ..llm import host\n", "fednano_flwr.edge.training")
    assert climbs("import fednano_demo.generate\n", "fednano_flwr.edge.training")
    assert not climbs("from ..exchange import protocol\n", "fednano_flwr.edge.training")
