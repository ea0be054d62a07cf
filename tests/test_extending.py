"""The examples of docs/extending.md, each put in its place in a copy of the project and run.

A block under a line "`PATH`:" is the file, or, as a diff, a change of it. What `make proto` would
generate is made of the page's message here, since grpcio-tools is no part of the tests' packages.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from fednano_flwr.exchange.wire import fednano_pb2
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^`(\S+)`:\n```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TESTS = [path for path, _, _ in BLOCKS if path.startswith("tests/")]
PB2 = """\
from google.protobuf import descriptor_pool
from google.protobuf.internal import builder
DESCRIPTOR = descriptor_pool.Default().AddSerializedFile({serialized!r})
builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "fednano_pb2", globals())
"""


def changed(text: str, diff: str) -> str:
    """A text with the change that a block shows: lines with a mark, and some around them."""
    lines = diff.splitlines(keepends=True)
    old, new = ("".join(x[1:] for x in lines if x[0] != mark) for mark in "+-")
    assert text.count(old) == 1, f"is not there once:\n{old}"
    return text.replace(old, new)


def generated(diff: str) -> str:
    """fednano_pb2.py with the message and the field of `Inputs` that a diff adds."""
    file = FileDescriptorProto.FromString(fednano_pb2.DESCRIPTOR.serialized_pb)
    (name,) = re.findall(r"^\+message (\w+) ", diff, re.MULTILINE)
    fields = re.findall(r"^\+ +(repeated )?(\w+) (\w+) = (\d+);", diff, re.MULTILINE)
    inputs = next(one for one in file.message_type if one.name == "Inputs")
    message = file.message_type.add(name=name)
    for repeated, kind, field, number in fields:
        owner = inputs if kind == name else message
        made = owner.field.add(name=field, number=int(number), json_name=field)
        made.label = made.LABEL_REPEATED if repeated else made.LABEL_OPTIONAL
        if kind == "uint32":
            made.type = FieldDescriptorProto.TYPE_UINT32
        else:
            made.type, made.type_name = made.TYPE_MESSAGE, f".{file.package}.{kind}"
        if owner is inputs:
            made.oneof_index = 0
    return PB2.format(serialized=file.SerializeToString())


def install(package: Path) -> None:
    """Leave a package's entry points as pip does."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = package / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    name = f"Name: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{name}", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in points.items())
            for group, points in project["entry-points"].items()
        ),
        encoding="utf-8",
    )


def test_every_example_passes_its_test(tmp_path: Path) -> None:
    for name in ("fednano_flwr", "fednano_demo", "tests"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)  # with bytecode: times are copied, too
    (tmp_path / "docs").mkdir()
    for name in ("pyproject.toml", "docs/config.md"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    for path, kind, block in BLOCKS:
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        text = changed(file.read_text(encoding="utf-8"), block) if kind == "diff" else block
        file.write_text(text, encoding="utf-8")
        if file.suffix == ".proto":
            file.with_name("fednano_pb2.py").write_text(generated(block), encoding="utf-8")
    install(tmp_path / "extras")
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{tmp_path / 'extras'}"}
    keys = [sys.executable, "-m", "fednano_flwr.config.docs", "docs/config.md"]
    subprocess.run(keys, cwd=tmp_path, env=variables, check=True, timeout=60)
    tests = [*TESTS, "tests/test_config_doc.py"]
    pytest = [sys.executable, "-m", "pytest", "-rA", "-n0", "-p", "no:cacheprovider", *tests]
    found = subprocess.run(
        pytest, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300
    )
    assert not found.returncode, found.stdout + found.stderr
    assert all(f"PASSED {test}::" in found.stdout for test in tests), found.stdout


def test_examples_are_five_and_short() -> None:
    assert len(TESTS) == 5
    for path, _, block in BLOCKS:
        assert len(block.splitlines()) < 80, path
        assert max(map(len, block.splitlines())) <= 101, path  # a diff has a mark besides
