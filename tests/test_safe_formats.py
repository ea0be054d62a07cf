"""Nothing that a peer sends or a downloaded file holds is run: only formats that hold data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    file for package in ("fednano_flwr", "fednano_demo") for file in (ROOT / package).rglob("*.py")
)
OWN_PROCESSES = {"fednano_flwr/llm/replica_actor.py"}
"""What the ServerApp and the replicas that it started say to each other. No peer's bytes reach it
but as numbers inside tensors."""

MODULES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "yaml"}
BUILTINS = {"eval", "exec", "compile"}
CALLS = {"torch.load", "torch.jit.load", "np.load", "numpy.load", "torch.hub.load"}
ARCHIVES = {"zipfile", "tarfile"}
PINNED = {"fednano_demo/real/smollm2.py"}
"""Opens an archive whose SHA-256 is in the code."""
LOADS_MODELS = {"from_pretrained"}


def faults(source: str, file: str) -> Iterator[str]:
    """What in a module's source could run code that came with data."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
        for name in names:
            if name in MODULES and file not in OWN_PROCESSES:
                yield f"{file}:{node.lineno} imports {name}"  # type: ignore[attr-defined]
            if name in ARCHIVES and file not in PINNED:
                yield f"{file}:{node.lineno} imports {name}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            yield from _calls(node, file)


def _calls(node: ast.Call, file: str) -> Iterator[str]:
    called = ast.unparse(node.func)
    keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
    if called in BUILTINS or called in CALLS or called.endswith("unpack_archive"):
        yield f"{file}:{node.lineno} calls {called}"
    if keywords.get("weights_only") == "False" or keywords.get("allow_pickle") == "True":
        yield f"{file}:{node.lineno} calls {called} for pickles"
    if "trust_remote_code" in keywords and keywords["trust_remote_code"] != "False":
        yield f"{file}:{node.lineno} trusts remote code"
    if isinstance(node.func, ast.Attribute) and node.func.attr in LOADS_MODELS:
        if keywords.get("trust_remote_code") != "False":
            yield f"{file}:{node.lineno} leaves trust_remote_code open"
        of_weights = not any(k in called for k in ("Config", "Processor", "Extractor", "kind"))
        holds_data = keywords.get("use_safetensors") == "True" or "gguf_file" in keywords
        if of_weights and not holds_data:
            yield f"{file}:{node.lineno} may load weights that are no safetensors"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_can_run_what_it_reads(file: Path) -> None:
    assert list(faults(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import yaml",
        "import tarfile",
        "torch.load(file)",
        "np.load(file)",
        "eval(text)",
        "exec(text)",
        "load(file, weights_only=False)",
        "load(file, allow_pickle=True)",
        "AutoConfig.from_pretrained(folder)",
        "AutoConfig.from_pretrained(folder, trust_remote_code=True)",
        "Llava.from_pretrained(folder, trust_remote_code=False)",
        "shutil.unpack_archive(file)",
    ],
)
def test_each_way_to_run_what_is_read_would_be_found(source: str) -> None:
    assert list(faults(source, "made_up.py"))
