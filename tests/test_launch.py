from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fednano_flwr.base.signals import interrupts, no_interrupts
from fednano_flwr.base.version import commit_of
from fednano_flwr.config import machine
from fednano_flwr.launcher import environment, launch
from fednano_flwr.launcher import superlink as superlinks
from fednano_flwr.launcher.environment import LaunchError, bin_folder, environment_of
from fednano_flwr.launcher.processes import MARK, Processes, Watcher
from fednano_flwr.launcher.superlink import superlink
from fednano_flwr.rounds.snapshot import PROGRESS_FILE

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
# Starts a child in a session of its own that does not listen to SIGTERM, and ends.
ORPHAN = """
import subprocess, sys
code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); "
child = subprocess.Popen([sys.executable, "-c", code + "time.sleep(60)"], start_new_session=True,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
child.stdout.readline()
print(child.pid)
"""


def marked(run_id: str) -> dict[str, str]:
    return os.environ | {MARK: run_id}


def gone(pid: int, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def orphan(run_id: str) -> int:
    started = subprocess.run(
        [sys.executable, "-c", ORPHAN], env=marked(run_id), capture_output=True, text=True
    )
    return int(started.stdout)


def test_a_process_that_lost_its_parent_and_ignores_sigterm_is_ended():
    pid = orphan("run-a")
    processes = Processes("run-a")
    assert pid in {process.pid for process in processes.look()}
    processes.end(grace=0.3)
    assert gone(pid, 0.1)
    assert processes.look() == set()


def test_a_child_that_lost_the_mark_is_ended_with_its_parent():
    code = f"import subprocess; subprocess.run({SLEEP!r}, env={{}})"
    parent = subprocess.Popen([sys.executable, "-c", code], env=marked("run-b"))
    while not (children := psutil.Process(parent.pid).children()):
        time.sleep(0.02)
    Processes("run-b").end()
    assert gone(children[0].pid, 0.1)
    parent.wait(5)


def test_processes_of_another_run_are_left_alone():
    other = subprocess.Popen(SLEEP, env=marked("run-c"))
    try:
        Processes("run-d").end()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_the_watcher_ends_the_run_when_its_owner_is_killed(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    pid = orphan("run-e")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from fednano_flwr.launcher.processes import Watcher\n"
        "Watcher('run-e', [Path(sys.argv[1])]); print('ready', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert owner.stdout is not None and owner.stdout.readline() == b"ready\n"
    owner.kill()
    owner.communicate()
    assert gone(pid, 20)
    until = time.monotonic() + 5
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not folder.exists()


def test_a_dismissed_watcher_touches_nothing(tmp_path):
    Watcher("run-f", [tmp_path]).dismiss()
    assert tmp_path.exists()


def test_sigterm_is_an_interrupt_within_the_block_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_ctrl_c_does_not_disturb_the_cleaning_up():
    with interrupts(), no_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)


def test_ray_gets_no_more_cpus_than_the_clients_can_use(monkeypatch):
    monkeypatch.setattr(machine, "cpus", lambda: 64)
    assert machine.federation_config(3, 2, 0.5) == (
        "num-supernodes=3 client-resources-num-cpus=2 client-resources-num-gpus=0.5 "
        "init-args-num-cpus=6"
    )
    assert machine.federation_config(100, 1, 0).endswith("init-args-num-cpus=64")


def test_this_machine_has_at_least_one_cpu_and_no_more_than_the_system_says():
    assert 1 <= machine.cpus() <= (os.cpu_count() or 1)


def test_flowers_programs_are_those_of_this_python():
    assert (bin_folder() / "flwr").exists()


def test_a_python_without_flower_is_told_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(environment.sysconfig, "get_path", lambda *_: str(tmp_path))
    with pytest.raises(LaunchError, match="pip install"):
        bin_folder()
    with pytest.raises(LaunchError), superlink(tmp_path):
        pass


def test_paths_in_variables_are_taken_from_where_the_user_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "src"]))
    monkeypatch.setenv("FEDNANO_CACHE", "cache")
    variables = environment_of(tmp_path, "run-g")
    assert variables["PYTHONPATH"] == str(tmp_path / "src")
    assert variables["FEDNANO_CACHE"] == str(tmp_path / "cache")
    assert variables[MARK] == "run-g"


def test_a_run_knows_the_commit_of_its_app_and_none_outside_of_a_checkout(monkeypatch, tmp_path):
    monkeypatch.delenv("FEDNANO_COMMIT", raising=False)
    assert commit_of(tmp_path) is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    assert len(commit_of(tmp_path)) == 12
    monkeypatch.setenv("FEDNANO_COMMIT", "given")
    assert commit_of(tmp_path) == "given"


@pytest.mark.parametrize("watched", [True, False])
def test_the_run_is_told_where_to_say_how_far_it_is_if_somebody_looks(
    monkeypatch, tmp_path, watched
):
    started, files = [], []

    @contextmanager
    def link(folder, environment):
        started.append((folder, environment))
        yield None

    monkeypatch.setattr(launch, "superlink", link)
    monkeypatch.setattr(launch, "_follow", lambda *_: launch.RunStatus(1, "x", "", None))
    status = launch._attempt(tmp_path, {}, "", print, files.append if watched else None)
    assert status.run_id == 1
    ((folder, environment),) = started
    assert files == ([folder / "home" / "progress.json"] if watched else [])
    assert environment.get(PROGRESS_FILE) == (str(files[0]) if watched else None)
    shutil.rmtree(folder)


def tried(
    monkeypatch: pytest.MonkeyPatch, *logs: Path | None, details: str = ""
) -> tuple[launch.RunStatus, list[str]]:
    """A launch whose attempts leave these logs; None is a run that completed."""
    left = iter(logs)

    def attempt(*_: object) -> launch.RunStatus:
        log = next(left)
        status = launch.COMPLETED if log is None else "finished:failed"
        return launch.RunStatus(0, status, details, log)

    said: list[str] = []
    monkeypatch.setattr(launch, "_attempt", attempt)
    status = launch.launch(Path(), {}, 1, 1, 0.0, said.append)
    assert list(left) == []
    return status, said


@pytest.mark.parametrize(
    "reason",
    [
        "Exception: The current node timed out during startup. Perhaps overloaded.",
        "RuntimeError: Timed out waiting for file /tmp/ray/session_1/gcs_server_port_2",
        "TimeoutError: Timed out after 60 seconds while waiting for node to startup.",
        "RuntimeError: Failed to start GCS. Last 0 lines of error files:",
        "RuntimeError: Failed to connect to GCS. Last 0 lines of error files:",
        "RuntimeError: GCS cannot find the node with node ID 3f",
        "RuntimeError: Failed to get node info for possible node ids: []",
        "ConnectionError: Could not find any running Ray instance.",
    ],
)
def test_a_ray_that_did_not_start_is_tried_once_more_whatever_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reason: str
) -> None:
    folder = tmp_path / "fednano-1"
    folder.mkdir()
    log = folder / "run.log"
    frame = '  File ".../raybackend.py", line 128, in init_ray\n    ray.init(\n'
    log.write_text(
        f"fednano | server   LLM half\n{frame if 'Connection' in reason else ''}{reason}"
    )
    status, said = tried(monkeypatch, log, log)
    assert "Ray did not start in time on this machine" in status.details and len(said) == 1
    assert log.exists()
    status, said = tried(monkeypatch, log, None)
    assert status.completed and not folder.exists()
    assert len(said) == 1 and "Ray did not start in time on this machine" in said[0]


def test_flower_still_starts_ray_where_it_is_looked_for() -> None:
    source = Path(importlib.util.find_spec("flwr").origin).parent  # type: ignore
    backend = source / "server/superlink/fleet/vce/backend/raybackend.py"
    _, _, function = backend.read_text("utf-8").partition("def init_ray(")
    assert "ray.init(" in function.partition("\n    def ")[0]


def test_a_ray_whose_process_was_ended_is_found_in_the_superlinks_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "fednano-1"
    folder.mkdir()
    (folder / "run.log").write_text("")
    (folder / "superlink.log").write_text("E core_worker.cc: Failed to register worker to Raylet")
    status, _ = tried(monkeypatch, folder / "run.log", None)
    assert status.completed


@pytest.mark.parametrize(
    "text",
    [
        "Exception: the model is broken",
        # It was up, and was lost later: what was trained is not begun anew.
        "fednano | round  0  loss –\nRuntimeError: Failed to connect to GCS.",
    ],
)
def test_another_failure_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (tmp_path / "run.log").write_text(text)
    status, said = tried(monkeypatch, tmp_path / "run.log")
    assert said == [] and "Ray" not in status.details


def test_a_full_folder_for_temporary_files_is_named_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6, 0))

    @contextmanager
    def link(folder: Path, environment: object) -> Iterator[None]:
        yield None

    failed = f"Simulation failed with exception: [Errno 28] {launch.NO_ROOM}"
    monkeypatch.setattr(launch, "superlink", link)
    monkeypatch.setattr(launch, "_follow", lambda *_: launch.RunStatus(1, "x", failed, None))
    status = launch._attempt(tmp_path, {}, "", print, None)
    assert status.details == f"no room in TMPDIR = {tmp_path}; set TMPDIR to another folder"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 10**9))
    assert "has room" in launch._attempt(tmp_path, {}, "", print, None).details


# Listens on its port after a moment, as Flower does, or ends where that is taken.
LISTENER = """
import socket, sys, time
time.sleep(0.3)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    time.sleep(60)
"""


def test_another_program_on_the_port_is_not_taken_for_our_superlink(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(program: str, arguments: Sequence[str], folder: Path, variables: object, **_: object):
        return subprocess.Popen([sys.executable, "-c", LISTENER, arguments[-1]], env=variables)

    free = superlinks._free_port()
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = [other.getsockname()[1], free]
        monkeypatch.setattr(superlinks, "_free_port", lambda: ports.pop(0))
        monkeypatch.setattr(superlinks, "_start", start)
        with superlink(tmp_path) as link:
            assert link.port == free and link.process.poll() is None
    assert ports == []


@pytest.mark.parametrize("long", [False, True])
def test_rays_files_are_never_where_those_of_all_users_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, long: bool
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = tmp_path if long else Path(tempfile.mkdtemp(dir="/tmp"))
    assert (len(str(folder)) > environment.LONGEST_RAY_FOLDER) == long
    variables = {}

    def started(_: Path, flags: object, given: dict[str, str], processes: Processes) -> object:
        variables.update(given)
        return SimpleNamespace(address="", process=SimpleNamespace(poll=print), started=[])

    monkeypatch.setattr(superlinks, "_started", started)
    with superlink(folder):
        own = Path(variables["RAY_TMPDIR"])
        assert len(str(own)) <= environment.LONGEST_RAY_FOLDER
        assert own.stat().st_mode & 0o777 == 0o700 and own.is_dir()
    assert own.exists() != long
    if not long:
        shutil.rmtree(folder)
