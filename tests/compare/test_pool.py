"""Worker processes: which run goes where, and what is left when something goes wrong."""

from pathlib import Path

import psutil
import pytest

from fednano_flwr.analysis.experiments import pool
from fednano_flwr.analysis.experiments.plan import Plan, Run
from fednano_flwr.analysis.experiments.pool import run_all
from fednano_flwr.analysis.experiments.progress import duration, seconds_left
from fednano_flwr.analysis.experiments.store import clear, locked
from fednano_flwr.analysis.experiments.worker import Outcome
from fednano_flwr.base.output import OutputError
from tests.compare import idle, made_up


@pytest.fixture(autouse=True)
def idle_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "work", idle.work)


def test_a_process_that_dies_fails_its_run_and_the_others_go_on(tmp_path: Path) -> None:
    plan = made_up.a_plan(tmp_path, ["fedavg", "fednano"], seeds="6..8")
    ended: dict[Run, Outcome] = {}
    plan.out.mkdir()
    run_all(plan.runs, 1, plan.out, lambda run, outcome: ended.update({run: outcome}))
    assert list(ended) == plan.runs
    errors = [outcome.error for outcome in ended.values()]
    dead = "its process ended with signal 9"
    assert errors == [None, None, dead, dead, None, None]
    notes = [run.log.read_text().split() for run in plan.runs]
    processes = [process for process, _ in notes]
    assert processes[0] == processes[1] == processes[2] and len(set(processes)) == 3
    assert len({commit for _, commit in notes}) == 1
    assert [path.name for path in plan.out.iterdir()] == ["runs"]


def test_an_interrupt_leaves_no_process_and_no_temporary_file(tmp_path: Path) -> None:
    plan = made_up.a_plan(tmp_path, ["fedavg"], seeds="0,9")
    plan.out.mkdir()
    before = set(psutil.Process().children(recursive=True))

    def interrupt(run: Run, outcome: Outcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(plan.runs, 2, plan.out, interrupt)
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [p for p in left if "resource_tracker" not in " ".join(p.cmdline())]
    assert [path.name for path in plan.out.iterdir()] == ["runs"]


def test_a_worker_goes_on_with_the_data_that_it_has(tmp_path: Path) -> None:
    plan = made_up.a_plan(tmp_path, ["fedavg", "fednano"], vary=["dataset.alpha=0.1,1"])
    pending = list(plan.runs)
    first = pool._next(pending, [], None)
    assert first == plan.runs[0]
    same = pool._next(pending, [], first.data)
    assert (same.experiment, same.data) == ("fednano", first.data)

    class Busy:
        run = pending[0]

    elsewhere = pool._next(list(pending), [Busy()], first.data)  # type: ignore[list-item]
    assert elsewhere == pending[2]


def test_an_unfinished_run_makes_room_and_a_foreign_folder_does_not(tmp_path: Path) -> None:
    plan: Plan = made_up.a_plan(tmp_path, ["fedavg"], seeds="0..1")
    ours, foreign = (run.folder for run in plan.runs)
    (ours / "adapters" / "last").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "state.partial", ".DS_Store"):
        (ours / name).write_text("{}")
    clear(plan.runs[0])
    assert not ours.exists()
    foreign.mkdir()
    (foreign / "thesis.pdf").write_text("")
    with pytest.raises(OutputError, match=r"holds thesis.pdf"):
        clear(plan.runs[1])
    assert (foreign / "thesis.pdf").exists()


def test_two_comparisons_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        with pytest.raises(OutputError, match="another `fednano compare`"):
            with locked(tmp_path / "out"):
                pass
    with locked(tmp_path / "out"):
        pass


def test_time_left_is_reckoned_from_the_same_experiments_runs(tmp_path: Path) -> None:
    plan = made_up.a_plan(tmp_path, ["fedavg", "fednano"], seeds="0..3")
    seconds = {plan.runs[0]: 10.0, plan.runs[1]: 30.0}
    assert seconds_left(plan.runs[2:], seconds, 2) == (3 * 10 + 3 * 30) / 2
    assert seconds_left(plan.runs[3:4], {plan.runs[0]: 10.0}, 2) == 10
    assert seconds_left(plan.runs, {}, 2) is None
    words = [duration(seconds) for seconds in (None, 80, 600, 7200)]
    assert words[1:] == ["about 80 s", "about 10 min", "about 2.0 h"]
    assert words[0].startswith("an unknown time")
