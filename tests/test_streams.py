"""What is printed for people never ends the work: other encodings, no reader, a full disk."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fednano_flwr.base import console
from fednano_flwr.launcher.environment import environment_of

PACKAGE = Path(console.__file__).parent
FULL = Path("/dev/full")
# A command that says something, works, says more and ends as it does without a reader.
COMMAND = """
import sys, pathlib, typer
from fednano_flwr.base import console
from fednano_flwr.cli import app as cli
from rich.console import Console

@cli.cli.command("works")
def works(folder: pathlib.Path, status: int) -> None:
    for number in range(3):
        typer.echo(f"line {number} \\u03b1 \\u2191 \\udce9")
        Console().print("\\u2713 \\u28bf")
        print("\\u2013", flush=True)
        console.say("\\u03b1 = 0.5 \\udce9")
        sys.stderr.write("\\u03b1 \\udce9\\n")
        if number == 0:
            print("ready", file=sys.stderr, flush=True)
            sys.stdin.readline()
    (folder / "result").write_text("whole")
    raise typer.Exit(status)

cli.main()
"""


def works(folder: Path, status: int = 0, **popen: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", COMMAND, "works", str(folder), str(status)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **(pipes | popen))  # type: ignore[call-overload, no-any-return]


def in_encoding(name: str) -> dict[str, str]:
    return os.environ | {"PYTHONIOENCODING": name, "PYTHONUTF8": "0"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "cp1252", "utf-8"])
def test_a_terminal_of_any_encoding_gets_what_it_can_show(tmp_path: Path, encoding: str) -> None:
    process = works(tmp_path, env=in_encoding(encoding))
    output, errors = process.communicate(b"\n")
    assert process.returncode == 0, errors.decode(errors="replace")
    assert output.count(b"line ") == 3 and b"fednano | " in output
    assert (tmp_path / "result").exists() and b"Traceback" not in errors


@pytest.mark.parametrize("status", [0, 3])
def test_the_work_goes_on_without_a_reader_and_its_status_is_its_own(
    tmp_path: Path, status: int
) -> None:
    process = works(tmp_path, status)
    assert process.stdout is not None and process.stdin is not None and process.stderr is not None
    assert process.stdout.readline().startswith(b"line 0")
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    errors = process.stderr.read()
    assert process.wait(30) == status
    assert (tmp_path / "result").exists()
    assert errors.count(b"nobody reads") == 1 and b"Traceback" not in errors


@pytest.mark.parametrize("closed", [1, 2])
def test_a_stream_that_was_closed_from_the_start_is_no_error(tmp_path: Path, closed: int) -> None:
    command = f'exec "$0" -c "$1" works "$2" 0 {closed}>&-'
    ended = subprocess.run(
        ["sh", "-c", command, sys.executable, COMMAND, str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert ended.returncode == 0 and (tmp_path / "result").exists()
    assert b"Traceback" not in ended.stderr


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("status", "expected"), [(0, 1), (3, 3)])
def test_output_that_a_full_disk_lost_is_a_failure_of_a_work_that_was_done(
    tmp_path: Path, status: int, expected: int
) -> None:
    with FULL.open("wb") as full:
        process = works(tmp_path, status, stdout=full)
        _, errors = process.communicate(b"\n")
    assert process.returncode == expected and (tmp_path / "result").exists()
    assert errors.count(b"No space left") == 1 and b"Traceback" not in errors


class Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "stream",
    [
        None,
        Broken(BrokenPipeError()),
        Broken(OSError(28, "No space left on device")),
        Broken(ValueError("I/O operation on closed file")),
    ],
)
def test_a_notice_that_cannot_be_printed_never_raises_into_the_run(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None
) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    console.say("Dirichlet \u03b1 = 0.5")


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "gbk", "utf-8"])
def test_a_notice_has_what_the_encoding_has(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    kept = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(kept, encoding=encoding))
    console.say("Dirichlet \u03b1 = 0.5, \u2191 \udce9")
    text = kept.getvalue().decode(encoding)
    assert text.startswith(f"{console.MARK}Dirichlet ") and " = 0.5" in text
    assert ("\u03b1" in text) == (encoding in ("gbk", "utf-8"))


def test_flowers_programs_print_utf_8_whatever_the_terminal_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code = "print('\\u03b1 \\udce9')"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment_of(tmp_path, "x"), capture_output=True
    )
    assert ended.stdout.decode("utf-8") == "\u03b1 ?\n"


def test_no_text_file_is_read_or_written_in_the_locales_encoding() -> None:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(call, ast.Call) and _depends_on_the_locale(call):
                found.append(f"{file.relative_to(PACKAGE)}:{call.lineno}")
    assert found == []


def _depends_on_the_locale(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {keyword.arg for keyword in call.keywords}
    texts = [one.value for one in call.args if isinstance(one, ast.Constant)]
    if "encoding" in named:
        return False
    match name:
        case "read_text":
            return not texts
        case "write_text":
            return len(call.args) < 2
        case "open":  # of a file: modes of bytes have a b; tokens and pictures are opened, too
            return bool({"r", "w", "a", "x"} & set(texts))
        case "run" | "Popen" | "check_output":
            return bool(named & {"text", "universal_newlines"})
    return False
