"""``edgekit sweep`` as a user runs it: odd sources, stops, kill -9, two at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from cli_process import edgekit
from onnx import TensorProto, helper, numpy_helper

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("interruption")]

ODD = """
import os, subprocess, sys
def raises(): raise ValueError("boom at " + "home")
def leaves(): os._exit(0)
def deep(): return deep()
def starts():
    held = subprocess.Popen(["sleep", "1234"], start_new_session=True)
    with open("started.pid", "w") as file: file.write(str(held.pid))
    raise ValueError("started")
def exits(): sys.exit(3)
def aborts(): os.abort()
def eats():
    held = []
    while True:
        held.append(bytearray(64 << 20))
"""
SWEEP = """
sources = [{sources}]
targets = [{targets}]
[options]
speed_gate = false
[limits]
memory = "2GB"
"""


def model(path: Path, seed: int, op: str = "Relu") -> None:
    weights = np.random.default_rng(seed).standard_normal((8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(op, ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def project(folder: Path, sources: list[str], targets: str = '"ort-fp32"') -> Path:
    folder.mkdir(exist_ok=True)
    for number, source in enumerate(sources):
        if source.endswith(".onnx") and source != "missing.onnx":
            model(folder / source, number)
    (folder / "odd.py").write_text(ODD)
    names = ", ".join(f'"{s}"' for s in sources)
    (folder / "sweep.toml").write_text(SWEEP.format(sources=names, targets=targets))
    return folder / "sweep.toml"


def results(out: Path) -> dict[str, dict[str, object]]:
    return {p.parent.name: json.loads(p.read_text()) for p in (out / "cells").glob("*/result.json")}


def test_a_cell_that_fails_costs_only_itself(tmp_path):
    file = project(tmp_path / "p", ["m0.onnx", "missing.onnx"])
    done = edgekit(
        *(
            "sweep",
            file,
            "--workers",
            2,
            "--json",
            "--markdown",
            tmp_path / "t.md",
            "--junit",
            tmp_path / "j.xml",
        )
    )
    assert done.code == 3, done.err
    rows = {r["source"]: r for r in done.json["results"]}
    assert rows["m0.onnx"]["verdict"] == "passed"
    assert rows["missing.onnx"]["failure"]["type"] == "SourceError"
    out = file.parent / "sweep"
    assert json.loads((out / "results.json").read_text())["finished"] == 2
    page = (out / "report.html").read_text()
    assert "missing.onnx" in page
    assert "SourceError (3)" in page
    assert (tmp_path / "t.md").read_text().count("\n") == 4
    assert ElementTree.parse(tmp_path / "j.xml").getroot().get("errors") == "1"

    stamps = {p: p.stat().st_mtime_ns for p in (out / "cells").glob("*/result.json")}
    model(file.parent / "missing.onnx", 7)  # what it lacked is there now: it is tried again, the other is not
    assert edgekit("sweep", file, cwd=tmp_path).code == 0
    changed = {p.parent.name for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp}
    assert len(changed) == 1
    assert next(iter(changed)).startswith("missing")


def test_a_finished_cell_that_was_changed_is_built_again_and_said(tmp_path):
    file = project(tmp_path / "p", ["m0.onnx"])
    out = file.parent / "sweep"
    first = edgekit("sweep", file, "--json").json["results"]
    artifact = next((out / "cells").glob("*/ort-fp32"))
    unchanged = edgekit("sweep", file, "--json")
    assert unchanged.json["results"] == first
    assert "again" not in unchanged.err

    next(artifact.glob("*.onnx")).write_bytes(b"garbage")
    plan = edgekit("sweep", file, "--dry-run", "--json")
    assert [c["to do"] for c in plan.json["cells"]] == ["build"]
    again = edgekit("sweep", file, "--json")
    assert again.code == 0
    assert "it is built again" in again.err
    assert [r["digest"] for r in again.json["results"]] == [r["digest"] for r in first]


def test_a_source_that_no_file_can_be_called_like_is_a_row(tmp_path):
    file = project(tmp_path / "p", ["x" * 5000])
    done = edgekit("sweep", file, "--json")
    assert [r["failure"]["type"] for r in done.json["results"]] == ["SourceError"]
    assert done.code == 3


@pytest.mark.slow
def test_odd_sources_are_rows_with_their_reason(tmp_path):
    sources = ["m0.onnx", "odd.py:exits", "odd.py:aborts", "odd.py:eats", "odd.py:none", "bad.onnx"]
    file = project(tmp_path / "p", sources, '"tflite-fp32"')
    model(file.parent / "bad.onnx", 1, "Det")
    (file.parent / "bad.onnx").write_bytes((file.parent / "m0.onnx").read_bytes()[:60])
    done = edgekit("sweep", file, "--workers", 2, "--json")
    rows = {r["source"]: r for r in done.json["results"]}
    assert {r["source"]: (r["failure"] or {}).get("exit_code", 0) for r in rows.values()} == {
        "m0.onnx": 0,
        "odd.py:exits": 3,
        "odd.py:aborts": 6,
        "odd.py:eats": 3,
        "odd.py:none": 3,
        "bad.onnx": 3,
    }
    assert rows["odd.py:aborts"]["attempts"] == 2
    assert "SIGABRT" in rows["odd.py:aborts"]["failure"]["message"]
    assert rows["odd.py:eats"]["failure"]["type"] == "MemoryLimitError"
    assert rows["odd.py:exits"]["attempts"] == 1


def test_a_cells_log_has_its_error_as_a_build_prints_it(tmp_path):
    names = ("raises", "leaves", "deep", "exits", "starts")
    file = project(tmp_path / "p", [f"odd.py:{name}" for name in names])
    done = edgekit("sweep", file, "--workers", 2, "--json")
    assert done.code == 3
    logs = {}
    for row in done.json["results"]:
        text = (file.parent / "sweep" / "logs" / f"{row['cell']}.log").read_text()
        assert f"error: {row['failure']['message']}" in text
        assert f"hint: {row['failure']['hint']}" in text
        assert "Traceback" in text
        logs[row["source"]] = text
    assert "ValueError: boom at home" in logs["odd.py:raises"]
    assert "called os._exit(0)" in logs["odd.py:leaves"]
    pid = int((file.parent / "started.pid").read_text())
    assert not Path(f"/proc/{pid}").exists()  # what a cell starts ends with it


def started(file: Path, workers: int = 2) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", "sweep", str(file), "--workers", str(workers)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def cell_processes(out: Path) -> list[int]:
    """Processes at work on a cell of this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{out}/cells".encode() in place.read_bytes():
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_kill_9_at_random_loses_and_repeats_nothing(tmp_path):
    chance = random.Random(5)
    file = project(tmp_path / "p", [f"m{n}.onnx" for n in range(4)], '"ort-fp32", "ort-fp16"')
    out = file.parent / "sweep"
    first: dict[str, int] = {}
    for _ in range(5):
        run = started(file)
        end = time.monotonic() + chance.uniform(3, 20)
        while time.monotonic() < end and run.poll() is None:
            time.sleep(0.05)
        run.kill()
        run.wait()
        end = time.monotonic() + 20
        while cell_processes(out) and time.monotonic() < end:
            time.sleep(0.1)
        assert cell_processes(out) == []  # they end with the sweep
        now = {p.parent.name: p.stat().st_mtime_ns for p in (out / "cells").glob("*/result.json")}
        assert {name: now.get(name) for name in first} == first  # finished, and never touched again
        first = now
    assert edgekit("sweep", file, "--workers", 2).code == 0
    now = {p.parent.name: p.stat().st_mtime_ns for p in (out / "cells").glob("*/result.json")}
    assert {name: now[name] for name in first} == first
    assert len(now) == 8
    whole = edgekit("sweep", file, "--workers", 1, "--out", tmp_path / "whole", "--json")
    assert {r["cell"]: r["digest"] for r in whole.json["results"]} == {
        name: r["digest"] for name, r in results(out).items()
    }
    assert [p.name for p in out.rglob(".part-*")] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_keeps_what_is_done_and_leaves_nothing_at_work(tmp_path, number):
    file = project(tmp_path / "p", [f"m{n}.onnx" for n in range(4)])
    out = file.parent / "sweep"
    run = started(file, workers=1)
    while not results(out) and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(number)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 128 + number, err
    assert cell_processes(out) == []
    document = json.loads((out / "results.json").read_text())
    assert 1 <= document["finished"] < 4
    assert "were not reached" in (out / "report.html").read_text()


@pytest.mark.slow
def test_the_second_sweep_in_a_folder_is_refused(tmp_path):
    file = project(tmp_path / "p", ["m0.onnx", "m1.onnx"])
    run = started(file)
    while not cell_processes(file.parent / "sweep") and run.poll() is None:
        time.sleep(0.05)
    second = edgekit("sweep", file)
    assert (second.code, "another sweep is at work" in second.err) == (2, True)
    assert run.wait(300) == 0


LOOK = b"edgekit-bench-"


@pytest.mark.slow
def test_two_sweeps_never_time_at_once_on_one_device(tmp_path):
    """Seen from outside: the lock's holder names the process that times, and the processes that it times are its."""
    env = {**os.environ, "EDGEKIT_LOCK": f"-sweeps-{os.getpid()}"}
    files = []
    for name in ("a", "b"):
        file = project(tmp_path / name, ["m0.onnx", "m1.onnx"])
        file.write_text(file.read_text() + "[bench]\nprocesses = 4\nseconds = 0.5\n")
        files.append(file)
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "edgekit", "sweep", str(f), "--workers", "1"],
            env=env,
            stderr=subprocess.DEVNULL,
        )
        for f in files
    ]
    seen: set[frozenset[str]] = set()
    while any(run.poll() is None for run in runs):
        seen.add(timing())
        time.sleep(0.01)
    assert [run.returncode for run in runs] == [0, 0]
    assert {len(at_once) for at_once in seen} == {0, 1}
    assert len(set().union(*seen)) >= 4  # four artifacts were timed, each in a folder of its own
    for file in files:
        assert all(r["p50_ms"] > 0 for r in results(file.parent / "sweep").values())


def timing() -> frozenset[str]:
    """The benchmarks whose processes under measure exist now, by the folder of their run: workers of a supervisor.

    A supervisor that is told that the device is busy has none; a look at the device's state has no supervisor. Going
    through all processes takes time: what is there before and after it was there at one moment.
    """
    agents: dict[str, tuple[str, list[bytes]]] = {}
    parents: dict[str, str] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            if len(words) > 1 and LOOK in words[1]:
                folder = words[1].split(LOOK)[1].split(b"/")[0].decode()
                agents[place.name] = (folder, words[2:])
                parents[place.name] = (place / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
    workers = {
        pid: folder
        for pid, (folder, role) in agents.items()
        if role == [] and agents.get(parents.get(pid, "")) == (folder, [b"supervisor"])
    }
    return frozenset(folder for pid, folder in workers.items() if LOOK in words_of(pid))


def words_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
