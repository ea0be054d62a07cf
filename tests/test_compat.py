"""What Flower does not promise is imported in one file, and each such name is listed there."""

import ast
from importlib import import_module
from pathlib import Path

import flwr.app
import pytest

import fednano_flwr
from fednano_flwr.rounds import compat
from tests.test_layers import imported, modules

PUBLIC = ("flwr.app", "flwr.serverapp", "flwr.clientapp")
PACKAGE = Path(fednano_flwr.__file__).parent


def private_names(source: str, module: str) -> set[str]:
    """What a module takes of Flower beyond its public API."""
    names = {name for name in imported(source, module) if name.split(".")[0] == "flwr"}
    found = {name for name in names if not name.startswith(PUBLIC)}
    texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return found | {"flwr.app.Metadata._message_id" for text in texts if text == "_message_id"}


def test_only_one_file_imports_what_flower_does_not_promise() -> None:
    found = {
        module: private_names(file.read_text("utf-8"), module)
        for module, file in modules()
        if private_names(file.read_text("utf-8"), module)
    }
    assert found == {"fednano_flwr.rounds.compat": set(compat.PRIVATE)}


@pytest.mark.parametrize("name", compat.PRIVATE)
def test_each_private_name_is_still_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    if name == "flwr.app.Metadata._message_id":
        compat.identify(run_id=1)
        message = flwr.app.Message(flwr.app.RecordDict(), 1, flwr.app.MessageType.QUERY)
        assert compat.give_id(message) == message.metadata.message_id
    else:
        assert hasattr(import_module(module), attribute)
