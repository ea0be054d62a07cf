import gc
import os
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch

from fednano_flwr.config import Dataset, RunConfig, project
from fednano_flwr.edge.encoder import QuestionEncoder, load_encoder
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import EdgeHalf, load_edge_half
from fednano_flwr.models.llm_half import LLMHalf, load_llm_half
from fednano_flwr.rounds.compat import identify
from tests import families, tiny

REPOSITORY = Path(__file__).resolve().parents[1]
BESIDE_REPOSITORY = REPOSITORY.parent / "shared" / "data"


gc.disable()  # until all is imported: what is imported is no garbage, and looking costs a fifth
torch.set_num_threads(1)  # tiny models: threads that wait for each other only cost time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take minutes come first: they wait for processes while others compute."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A test before may have left another number, and with it sums end in other bits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def a_run() -> None:
    """Flower's messages need one; a test before may have begun another."""
    identify(run_id=1)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """No test takes the machine's power away: what is written need not reach the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def imports_are_no_garbage() -> Iterator[None]:
    """Flower collects garbage with every array record it unpacks: among what tests have made."""
    gc.collect()
    gc.freeze()
    gc.enable()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def templates_compiled_once() -> Iterator[None]:
    """PEFT compiles its model card's template whenever adapters are saved: half of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        remembering = lru_cache(maxsize=64)(jinja2.Environment.compile)
        patch.setattr(jinja2.Environment, "compile", remembering)
        yield


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of real samples: `scienceqa/` and `iconqa/`, in the datasets' own layouts."""
    path = Path(os.environ.get("FEDNANO_TEST_DATA") or BESIDE_REPOSITORY)
    if not (path / "scienceqa").is_dir() or not (path / "iconqa").is_dir():
        pytest.skip(
            f"no real samples in {path}: set FEDNANO_TEST_DATA to a folder that holds scienceqa/ "
            "and iconqa/"
        )
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA checkpoint in the hub's format, in several shards."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of each family, written when it is asked for."""

    @cache
    def folder(family: str) -> Path:
        return families.write(family, tmp_path_factory.mktemp("model") / family)

    return folder


@pytest.fixture(scope="session")
def tiny_questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 + 24 random questions in ScienceQA's layout."""
    return tiny.write_scienceqa(tmp_path_factory.mktemp("scienceqa"))


@pytest.fixture(scope="session")
def edge_half(tiny_model: Path) -> EdgeHalf:
    return load_edge_half(str(tiny_model))


@pytest.fixture(scope="session")
def llm_half(tiny_model: Path) -> LLMHalf:
    return load_llm_half(str(tiny_model))


@pytest.fixture(scope="session")
def encoder(tiny_model: Path) -> QuestionEncoder:
    return load_encoder(ModelCheckpoint(str(tiny_model)))


@pytest.fixture(scope="session")
def tiny_dataset(defaults: dict[str, Any], tiny_questions: Path) -> Dataset:
    """The run config's data section for `tiny_questions`."""
    return RunConfig.parse({**defaults, "dataset.path": str(tiny_questions)}).dataset


@pytest.fixture(scope="session")
def defaults() -> dict[str, Any]:
    """The run config's defaults as pyproject.toml has them, flat."""
    return project.defaults(REPOSITORY)


@pytest.fixture
def run_config(
    defaults: dict[str, Any], tiny_model: Path, tiny_questions: Path, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Defaults with the tiny model and data; keyword arguments override keys (`__` for a dot)."""
    return tiny_config(defaults, tiny_model, tiny_questions, tmp_path)


def tiny_config(
    defaults: dict[str, Any], model: Path, questions: Path, folder: Path
) -> Callable[..., dict[str, Any]]:
    """What `run_config` is, for runs that keep what is theirs in `folder`."""

    def make(**overrides: Any) -> dict[str, Any]:
        config = {
            **defaults,
            "model.name": str(model),
            "dataset.path": str(questions),
            "run.dir": str(folder / "runs"),
            "run.name": "test",
            "num-server-rounds": 2,
            "adapter.rank": 4,
            "llm.threads": 1,
            "edge.feature-dir": str(folder / "features"),
            "edge.state-dir": str(folder / "state" / overrides.get("run__name", "test")),
        }
        for key, value in overrides.items():
            config[key.replace("__", ".").replace("_", "-")] = value
        return config

    return make
