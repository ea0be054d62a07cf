"""Draws of one run are independent: none shares its seed with another."""

from __future__ import annotations

import ast
from collections import Counter
from itertools import product
from pathlib import Path

import fednano_flwr
from fednano_flwr.base.seeds import Purpose, derive_seed

PACKAGE = Path(fednano_flwr.__file__).parent
AUDIT = PACKAGE.parent / "benchmarks" / "audit"
SEEDED = ("default_rng", "manual_seed", "Random", "SeedSequence", "RandomState", "seed")
GIVEN = {
    ("data/partition.py", "seed"),
    ("data/partition.py", "self.seed"),
    ("adapters/site.py", "seed"),
    ("edge/training.py", "drawn_with"),
    ("check/compare.py", "1"),
    ("check/compare.py", "width"),
    ("check/shrink.py", "0"),
    ("data/sounds.py", "seed"),
}
"""Arguments that a caller has derived; and what checks of a model make, which no run uses."""


def test_no_two_purposes_or_arguments_share_a_seed() -> None:
    numbers = (0, 1, 2, 12, 2**32, 2**32 + 1, 2**63)
    arguments = [parts for n in range(4) for parts in product(numbers, repeat=n)]
    found = [derive_seed(purpose, *parts) for purpose in Purpose for parts in arguments]
    assert len(set(found)) == len(Purpose) * len(arguments)
    assert all(0 <= seed < 2**63 for seed in found)


def test_a_seed_stays_what_it_is() -> None:
    assert derive_seed(Purpose.TRAINING, 0, 1, 2) == 4562742919364622742


def test_every_generator_of_the_package_is_seeded_for_one_purpose_of_its_own() -> None:
    used: Counter[str] = Counter()
    for file in (*PACKAGE.rglob("*.py"), *AUDIT.rglob("*.py")):
        name = file.relative_to(PACKAGE.parent).as_posix().removeprefix("fednano_flwr/")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Purpose":
                used[node.attr] += 1
            if isinstance(node, ast.Call) and node.args and _called(node) in SEEDED:
                seed = node.args[0]
                derived = isinstance(seed, ast.Call) and _called(seed) == "derive_seed"
                at = f"{name}:{node.lineno}: {ast.unparse(node)}"
                assert derived or (name, ast.unparse(seed)) in GIVEN, at
    assert used == Counter(purpose.name for purpose in Purpose)


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]
