"""Which cell goes next, which is tried again, and what is known of one that is finished."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.core import dependency
from edgekit.core.alone import alone
from edgekit.core.config import Options
from edgekit.core.progress import Silent
from edgekit.core.store import Key, Store
from edgekit.core.targets import find
from edgekit.errors import UsageError
from edgekit.sweep import history, journal
from edgekit.sweep import run as sweeping
from edgekit.sweep.attempt import Attempt
from edgekit.sweep.cells import Cell
from edgekit.sweep.journal import CellResult, Failure, Verdict
from edgekit.sweep.plan import BenchRow
from edgekit.sweep.tasks import Kind, Room, Task, to_do, tried_again
from edgekit.sweep.written import why


def cell(name: str, **changes: object) -> Cell:
    plain = Cell(
        name=name,
        source="m.onnx",
        recipe="",
        variant="",
        target=find("ort-fp32"),
        device="",
        options=Options(target=("ort-fp32",)),
    )
    return replace(plain, **changes)


def result(of: Cell, **changes: object) -> CellResult:
    plain = CellResult(
        cell=of.name,
        key=of.key,
        source=of.source,
        recipe="",
        variant="",
        target="ort-fp32",
        device="",
        verdict=Verdict.PASSED,
    )
    return replace(plain, **changes)


def room(workers: int = 2, memory: int = 100) -> Room:
    return Room(workers=workers, memory=memory, running=[], ready=set())


def begin(at: Room, waiting: list[Task], need: int = 1) -> Task | None:
    index = at.next(waiting, [need] * len(waiting))
    if index is None:
        return None
    at.running.append(waiting.pop(index))
    at.taken += need
    return at.running[-1]


def test_the_table_says_what_a_verdict_is_qualified_by():
    unproven = result(cell("a"), verdict=Verdict.UNPROVEN, said="unproven: speed on 64 calibration samples")
    assert why(unproven) == "speed on 64 calibration samples"
    assert why(result(cell("a"), said="passed; no metric measured")) == "no metric measured"
    assert why(result(cell("a"), said="passed")) == ""
    failed = result(cell("a"), failure=Failure(type="GateError", message="too far", exit_code=5, hint=""))
    assert why(failed) == "GateError (5): too far"


def test_a_source_is_prepared_by_one_cell_while_others_do_something_else():
    at = room()
    waiting = [Task(cell=cell("a1")), Task(cell=cell("a2")), Task(cell=cell("b1", source="n.onnx"))]
    assert [begin(at, waiting).cell.name for _ in range(2)] == ["a1", "b1"]
    at.running.pop()
    assert begin(at, waiting).cell.name == "a2"  # better to wait for the lock than to do nothing


def test_what_is_prepared_keeps_the_order():
    at = room(workers=3)
    at.ready |= set(cell("a").shared)
    waiting = [Task(cell=cell("a1")), Task(cell=cell("a2")), Task(cell=cell("b1", source="n.onnx"))]
    assert [begin(at, waiting).cell.name for _ in range(3)] == ["a1", "a2", "b1"]


def test_no_more_run_than_there_is_memory_for_and_one_always_does():
    at = room(workers=4, memory=10)
    waiting = [Task(cell=cell(str(n), source=f"{n}.onnx")) for n in range(3)]
    assert begin(at, waiting, need=50) is not None
    assert begin(at, waiting, need=50) is None
    at.running.clear()
    at.taken = 0
    assert begin(at, waiting, need=5) is not None
    assert begin(at, waiting, need=5) is not None
    assert begin(at, waiting, need=5) is None


def test_a_cell_that_trains_in_two_processes_takes_two_workers():
    two = cell("two", source="t.onnx", recipe="prune(sparsity=0.5)", options=Options(processes=2))
    at = room(workers=3)
    waiting = [Task(cell=two), Task(cell=replace(two, name="again", source="u.onnx")), Task(cell=cell("one"))]
    assert [begin(at, waiting).cell.name for _ in range(2)] == ["two", "one"]
    assert begin(at, waiting) is None
    alone = room(workers=1)
    assert (
        begin(alone, waiting).cell.name == "again"
    )  # more than there are workers, and nothing else is at work
    assert Task(cell=two, kind=Kind.TIME).processes == 1


def test_a_device_has_one_task_and_this_machine_is_silent_while_it_is_timed():
    at = room(workers=4)
    waiting = [Task(cell=cell(f"pi{n}", device="pi5", source=f"{n}.onnx")) for n in range(2)]
    assert begin(at, waiting) is not None
    assert begin(at, waiting) is None
    timed = Task(cell=cell("here"), kind=Kind.TIME)
    assert at.next([timed], [1]) is None
    at.running.clear()
    assert at.next([timed, Task(cell=cell("last"))], [1, 1]) == 1
    assert at.next([timed], [1]) == 0
    at.running.append(timed)
    assert at.next([Task(cell=cell("last"))], [1]) is None


@pytest.mark.parametrize(
    ("code", "kind", "again"),
    [
        (1, "DefectError", False),
        (2, "DataError", False),
        (3, "FactoryError", False),
        (3, "MemoryLimitError", False),
        (4, "UnsupportedOperatorsError", False),
        (5, "GateFailedError", False),
        (6, "RuntimeCrashError", True),
        (6, "LostError", True),
        (6, "MissingExtraError", False),
        (6, "NotRunnableError", False),
        (7, "UnreachableError", True),
        (7, "DeviceBusyError", True),
        (7, "RuntimeMissingError", False),
        (8, "TimeLimitError", False),
    ],
)
def test_only_what_may_go_well_another_time_is_tried_again(code, kind, again):
    failure = Failure(type=kind, message="", hint="", exit_code=code)
    assert tried_again(Task(cell=cell("a")), failure, 1) is again
    assert tried_again(Task(cell=cell("a"), attempt=2), failure, 1) is False


def test_what_is_left_of_a_cell():
    plain, timed = cell("a"), cell("b", bench=BenchRow())
    assert to_do(plain, None) == Task(cell=plain)
    assert to_do(plain, result(plain, digest="1")) is None
    assert to_do(timed, result(timed, digest="1")) == Task(cell=timed, kind=Kind.TIME)
    assert to_do(timed, result(timed, digest="1", timed=True)) is None
    assert to_do(timed, result(timed, verdict=Verdict.FAILED, digest="1")) is None


def test_a_result_holds_for_the_same_content_alone(tmp_path):
    of, read = cell("a"), tmp_path / "read.py"
    read.write_text("1")
    failed = replace(
        result(of), verdict=Verdict.ERROR, failure=Failure(type="X", message="", hint="", exit_code=3)
    )
    journal.write(tmp_path, of, replace(failed, reads=(dependency.of_path(str(read)),)))
    assert journal.finished(tmp_path, of) is not None
    assert journal.finished(tmp_path, replace(of, threads=2)) is None
    read.write_text("other")
    assert journal.finished(tmp_path, of) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"cell": 3}', b"\xff"])
def test_a_damaged_result_is_none(tmp_path, content):
    of = cell("a")
    journal.folder(tmp_path, of).mkdir(parents=True)
    (journal.folder(tmp_path, of) / journal.RESULT).write_bytes(content)
    assert journal.finished(tmp_path, of) is None


HOLD = """
import sys, time
from pathlib import Path
from edgekit.sweep import journal
with journal.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_one_sweeps_and_free_after_kill_9(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ}
    )
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="another sweep"), journal.held(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with journal.held(tmp_path):
        pass


def test_a_folder_that_leads_elsewhere_is_refused(tmp_path):
    (tmp_path / "home").mkdir()
    for name in ("out", "out/cells", "out/logs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / "home")
        with pytest.raises(UsageError, match="is a link"), journal.held(tmp_path / "out"):
            pass
        (tmp_path / name).unlink()
    out = tmp_path / "out"
    (out / ".sweep").symlink_to(tmp_path / "home" / "of-somebody")
    with pytest.raises(UsageError, match="is a link"), journal.held(out):
        pass
    (out / "cells").mkdir()
    (out / "cells" / "a").symlink_to(tmp_path / "home")
    with pytest.raises(UsageError, match="is a link"):
        Attempt(Task(cell=cell("a")), out, tmp_path)
    (out / "cells" / "a").unlink()
    (out / "cells" / "a").mkdir()
    for name in ("ort-fp32", "ort-fp32.failed"):
        (out / "cells" / "a" / name).symlink_to(tmp_path / "home")
        with pytest.raises(UsageError, match="is a link"):
            Attempt(Task(cell=cell("a")), out, tmp_path)
        (out / "cells" / "a" / name).unlink()
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("name", ["cells", "logs"])
def test_a_file_where_a_folder_is_to_be_is_said(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=f"{name} is no folder"), journal.held(tmp_path):
        pass
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["cells/a/result.json", "cells/a/cell.json", "logs/a.log"])
def test_a_folder_where_a_cells_file_is_written_is_said(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UsageError, match=f"{name} is a folder"):
        Attempt(Task(cell=cell("a")), tmp_path, tmp_path)


def test_nothing_is_begun_where_the_results_cannot_be_written(tmp_path):
    how = sweeping.Sweeping(
        out=tmp_path, folder=tmp_path, workers=1, retries=0, progress=Silent(), engine=lambda *_, **__: 1 / 0
    )
    for name in ("results.json", "report.html"):
        (tmp_path / name).mkdir()
        with pytest.raises(UsageError, match=f"{name} is a folder"):
            sweeping.run([cell("a")], how)
        (tmp_path / name).rmdir()


def test_a_log_that_is_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "logs").mkdir()
    os.mkfifo(tmp_path / "logs" / "a.log")
    with pytest.raises(UsageError, match=r"logs/a\.log"):
        Attempt(Task(cell=cell("a")), tmp_path, tmp_path)
    reader = os.open(tmp_path / "logs" / "a.log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(UsageError, match="it is no file"):
            Attempt(Task(cell=cell("a")), tmp_path, tmp_path)
    finally:
        os.close(reader)


def test_a_history_of_cells_that_is_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / history.FILE).parent.mkdir()
    os.mkfifo(tmp_path / history.FILE)
    history.add(cell("a"), result(cell("a")), tmp_path)
    assert history.read(tmp_path) == ()


STEP = """
import sys, time
from pathlib import Path
from edgekit.core.store import Key, Store
def produce(out):
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    time.sleep(1.0)
    (out / "x").write_text("x")
Store(Path(sys.argv[1])).step(Key(name="s", inputs=(), options={}, versions={}), produce)
"""


def test_two_processes_make_a_step_once(tmp_path):
    argv = [sys.executable, "-c", STEP, str(tmp_path / "cache"), str(tmp_path / "log")]
    processes = [subprocess.Popen(argv) for _ in range(3)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_a_killed_process_holds_no_step(tmp_path):
    argv = [sys.executable, "-c", STEP, str(tmp_path / "cache"), str(tmp_path / "log")]
    first = subprocess.Popen(argv)
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    first.kill()
    first.wait()
    made = []
    Store(tmp_path / "cache").step(
        Key(name="s", inputs=(), options={}, versions={}), lambda out: made.append(out)
    )
    assert len(made) == 1


def test_a_file_system_without_locks_does_not_end_the_work(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(38, "not implemented")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with alone(tmp_path / "locks", "ab" * 32):
        pass


def test_the_history_tells_needs_of_what_is_most_alike(tmp_path):
    of = cell("a")
    for seconds, memory in ((10.0, 100), (30.0, 200), (20.0, 100)):
        history.add(of, result(of, seconds=seconds, memory=memory), tmp_path)
    (tmp_path / history.FILE).open("ab").write(b"half a li")
    estimate = history.Estimate(history.read(tmp_path))
    assert estimate.seconds(of) == 20.0
    assert estimate.memory(of) == 250
    other = cell("b", source="n.onnx")
    assert estimate.seconds(other) == 20.0
    assert history.Estimate(()).seconds(of) is None


def test_results_are_written_for_people_and_programs(tmp_path):
    from edgekit.sweep import written

    good = cell("good")
    bad = result(
        cell("bad|<x>"),
        verdict=Verdict.ERROR,
        failure=Failure(type="FactoryError", message="raised `x` | \x1b[31m", hint="", exit_code=3),
    )
    table = written.markdown([result(good, size=10), bad])
    assert table.splitlines()[2].startswith("| ❌ | bad\\|&lt;x>")
    assert "\x1b" not in table
    junit = written.junit([result(good), bad]).decode()
    assert 'tests="2"' in junit
    assert 'errors="1"' in junit
    assert "FactoryError" in junit
    document = written.document([result(good, reads=(dependency.of_path(str(Path(__file__))),))], 2)
    assert (document["cells"], document["finished"]) == (2, 1)
    assert "reads" not in document["results"][0]


def test_whoever_only_starts_cells_imports_nothing_heavy():
    """A cluster's workers each wait for it before their first cell."""
    heavy = "numpy", "onnx", "torch", "edgekit.pipeline.build", "edgekit.artifact.measure"
    code = f"import sys, edgekit.sweep.cluster; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_end_of_a_cell_is_seen_when_it_comes(tmp_path):
    attempt = Attempt(Task(cell=cell("a")), tmp_path, tmp_path)
    result = attempt.wait()
    assert attempt.process.returncode is not None
    assert result.key == cell("a").key
