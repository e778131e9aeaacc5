"""Devices that lie: whatever they send ends in a typed error, soon, and no figure of theirs is kept."""

import contextlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.devices import bench, execute, plan, vendor, wire
from edgekit.devices.arrays import ArrayFile
from edgekit.devices.bench import BenchSettings, bench_artifact
from edgekit.devices.catalogue import kind_of
from edgekit.devices.execute import run_artifact
from edgekit.devices.job import TaskResult, report_device
from edgekit.devices.replicates import Replicate, checked
from edgekit.devices.runnable import Runnable
from edgekit.devices.transports import android
from edgekit.devices.transports import ssh as ssh_transport
from edgekit.devices.transports.local import LocalTransport
from edgekit.devices.transports.ssh import SshOptions, SshTransport
from edgekit.errors import BackendError, DeviceError, EdgekitError

FAKE = Path(__file__).with_name("fake_runner.py")
REPORT = {"event": "result", "facts": {"arch": "x"}, "state": {"time": 1}}
BENCH = {
    "event": "result",
    "first_ms": 1.0,
    "samples_ms": [1.0, 1.0, 1.0],
    "steady": [1.0, 2.0],
    "seconds": {"import": 0.1, "load": 0.1},
    "threads": 1,
    "warmup": {"stable": True, "windows_ms": [1.0]},
}
SETTINGS = BenchSettings(processes=1, seconds=0.01, iterations=3, max_iterations=5, timeout=1)


def numbered(*events):
    """The events' lines, in sequence; a string stays as it is."""
    lines = (e if isinstance(e, str) else json.dumps({"seq": i, **e}) for i, e in enumerate(events, 1))
    return "\n".join(lines) + "\n"


def task_of(*events):
    """What a supervisor says of a task that says ``events``."""
    inner = [{"event": "line", "id": "0-0-A", "line": line} for line in numbered(*events).splitlines()]
    return [{"event": "started", "id": "0-0-A"}, *inner, {"event": "ended", "id": "0-0-A", "returncode": 0}]


BYE = {"event": "bye", "why": "done"}


class Liar(LocalTransport):
    """A device that answers each of the agent's entry points with a text, or with what a script prints."""

    remote = True

    def __init__(self, **answers):
        super().__init__("liar")
        self.answers = answers

    def run(self, argv, *, stdin, on_line, patience):
        answer = self.answers[argv[2] if len(argv) > 2 else "worker"]
        script = f"print({answer!r}, end='')"
        if answer.startswith("import"):
            script = answer
        elif len(answer) > 10_000:  # more than an argument may have
            (Path(self.root) / "answer").write_text(answer)
            script = f"print(open({str(self.root)!r} + '/answer').read(), end='')"
        return super().run([sys.executable, "-c", script], stdin=stdin, on_line=on_line, patience=patience)


@pytest.fixture
def bench_on(monkeypatch, tmp_path):
    """A benchmark on a liar whose supervisor says ``text``; nothing that it says is kept."""
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: FAKE)
    (tmp_path / "m").write_text("good")
    keep, partial = tmp_path / "keep", []

    def go(text, report=REPORT):
        liar = Liar(state=numbered(report), supervisor=text)
        monkeypatch.setattr(bench, "connect", lambda device: contextlib.closing(liar))
        runnable = Runnable(backend="fake", main=tmp_path / "m", inputs={"x": np.ones(3, "f")})
        settings = replace(SETTINGS, keep=keep, on_partial=partial.append)
        try:
            return bench_artifact(runnable, settings=settings)
        finally:
            if keep.exists() and not partial:
                kept = [json.loads(line)["result"]["samples_ms"] for line in keep.read_text().splitlines()]
                assert kept == [[1.0, 1.0, 1.0]]

    return go


def test_one_that_does_not_lie(bench_on):
    measured = bench_on(numbered(*task_of(BENCH), BYE))
    assert measured.samples == ((1.0, 1.0, 1.0),)
    assert measured.facts["states"] == [{"time": 1.0}]


@pytest.mark.parametrize(
    "change",
    [
        {"samples_ms": [1.0, -1.0, 1.0]},
        {"samples_ms": []},
        {"samples_ms": [1.0]},  # fewer than were asked for
        {"samples_ms": [1.0] * 6},  # more
        {"samples_ms": [0.0, 0.0, 0.0]},
        {"samples_ms": [9e5, 9e5, 9e5]},  # longer than the process may have lived
        {"samples_ms": [1e300, 1.0, 1.0]},
        {"samples_ms": ["1", "1", "1"]},
        {"samples_ms": "fast"},
        {"samples_ms": {"0": 1.0}},
        {"first_ms": -1},
        {"first_ms": None},
        {"steady": [2.0, 1.0]},
        {"steady": [1.0]},
        {"seconds": {"import": -1}},
        {"threads": -1},
        {"threads": 10**400},
        {"affinity": [-1]},
        {"memory": {"phases": {"load": {"peak": -5}}}},
        {"memory": []},
        {"warmup": {"stable": "yes"}},
        {"contention": {"steal": "none"}},
    ],
    ids=str,
)
def test_figures_that_cannot_be(change, bench_on):
    with pytest.raises(DeviceError):
        bench_on(numbered(*task_of({**BENCH, **change}), BYE))


@pytest.mark.parametrize(
    "line",
    [
        '{"seq":1,"event":"result","samples_ms":[NaN]}',
        '{"seq":1,"event":"result","samples_ms":[Infinity]}',
        json.dumps({"seq": 1, **BENCH}).replace("1.0, 1.0", "1e999, 1.0"),
        "[" * 50_000,
        '{"seq":1,"event":' * 2000,
        "",
        "null",
        '"result"',
        "\x1b[2Jhello",
        '{"seq":1,"event":"result"}',
        '{"seq":1,"event":"sudo"}',
        '{"seq":-1,"event":"phase","name":"x"}',
        '{"seq":1,"event":"error","kind":"yours"}',
        '{"seq":1,"event":"error","kind":"load","message":[]}',
        json.dumps({"seq": 1, "event": "phase", "name": "x" * (1 << 21)}),
    ],
    ids=lambda line: line[:40],
)
def test_lines_that_are_no_messages(line, bench_on):
    with pytest.raises(DeviceError):
        bench_on(numbered(*task_of(line), BYE))


STARTED, ENDED = {"event": "started", "id": "0-0-A"}, {"event": "ended", "id": "0-0-A", "returncode": 0}


@pytest.mark.parametrize(
    "events",
    [
        [BYE],  # done, and nothing was
        [{"event": "started", "id": "none"}],
        [{"event": "line", "id": "0-0-A", "line": "{}"}],
        [ENDED],
        [STARTED, ENDED, BYE],  # without a result
        [*task_of(BENCH), ENDED],
        [STARTED, {**ENDED, "returncode": 10**6}],
        [{"event": "bye", "why": "tired"}],
        [{"event": "state", "state": {"celsius": {"cpu": "hot"}}}],
        [{"event": "state", "state": {"time": -1}}],
        [{"event": "refused", "kind": "shy", "problem": "no"}],
        [{"event": "busy", "holder": "me"}],
        [{"event": "beat", "seq": 5}],
    ],
    ids=str,
)
def test_plans_that_cannot_be(events, bench_on):
    with pytest.raises(EdgekitError) as caught:
        bench_on(numbered(*events))
    assert isinstance(caught.value, DeviceError | BackendError)


@pytest.mark.parametrize(
    "script",
    [
        "import json\ni = 0\nwhile True:\n i += 1\n print(json.dumps({'seq': i, 'event': 'beat'}))",
        "import sys\nwhile True: sys.stdout.write('x' * 65536)",
        "import sys\nwhile True: sys.stdout.write('\\n' * 65536)",
        "import json\nprint(json.dumps({'seq': 1, 'event': 'phase', 'name': 'x' * (1 << 23)}))",
    ],
    ids=["beats", "one line", "empty lines", "a long name"],
)
def test_floods_end(script, bench_on, monkeypatch):
    monkeypatch.setattr(plan, "OUTPUT_BYTES", 1 << 20)
    with pytest.raises(DeviceError):
        bench_on(script)


@pytest.mark.parametrize(
    "report",
    [
        {},
        {**REPORT, "facts": []},
        {**REPORT, "facts": {"processors": -1}},
        {**REPORT, "facts": {"isa": [1]}},
        {**REPORT, "facts": {"emulated": "no"}},
        {**REPORT, "state": {"khz": [-5]}},
        {**REPORT, "state": {"battery": 5}},
    ],
    ids=str,
)
def test_devices_that_are_none(report, bench_on):
    with pytest.raises(DeviceError):
        bench_on(numbered(*task_of(BENCH), BYE), {"event": "result", **report})


def test_what_it_says_cannot_move_a_cursor(bench_on):
    text = "\x1b]0;owned\x07\x1b[31mno\u202e kernel\nof mine"
    failure = {"event": "error", "kind": "load", "message": text, "traceback": text}
    with pytest.raises(BackendError) as caught:
        bench_on(numbered(*task_of(failure), BYE))
    assert "]0;owned[31mno kernel\nof mine" in caught.value.message
    liar = Liar(state=numbered({**REPORT, "facts": {"model": "\x9b2Jpi", "arch": "x\x7f"}}))
    facts = report_device(liar, Path("agent")).facts
    liar.close()
    assert (facts.model, facts.arch) == ("2Jpi", "x")
    assert kind_of("adb", facts) == "linux-adb"


# --- outputs ---------------------------------------------------------------------------------------------

RUN = {"event": "result", "done": 2, "names": ["y"], "placement": None, "seconds": {}}


def npy(shape, dtype="<f4", data=b"\0" * 12):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    ("change", "outputs"),
    [
        ({"done": 1}, npy("(3,)") * 2),
        ({"done": 3}, npy("(3,)") * 3),
        ({"names": ["z"]}, npy("(3,)") * 2),
        ({"names": []}, b""),
        ({"names": ["y", "y"]}, npy("(3,)") * 4),
        ({"placement": [1]}, npy("(3,)") * 2),
        ({}, npy("(3,)")),  # one of two
        ({}, npy("(-1,)") * 2),  # all that is left
        ({}, npy("(1000000000000,)") * 2),
        ({}, npy("(3,)", "|O") * 2),
        ({}, b"no arrays at all" * 9),
        ({}, b""),
        ({}, npy("'x'") * 2),
    ],
    ids=lambda v: str(v)[:60],
)
def test_outputs_that_were_not_asked_for(change, outputs, monkeypatch, tmp_path):
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: FAKE)
    (tmp_path / "m").write_text("good")
    liar = Liar(supervisor=numbered(*task_of({**RUN, **change}), BYE).replace("0-0-A", "run"))
    (Path(liar.root) / "outputs").write_bytes(outputs)
    monkeypatch.setattr(execute, "connect", lambda device: contextlib.closing(liar))
    runnable = Runnable(backend="fake", main=tmp_path / "m", outputs=("y",))
    with pytest.raises(DeviceError), run_artifact(runnable, [{"x": np.ones(3, "f")}] * 2, timeout=1) as run:
        list(run.outputs)


def test_arrays_are_read_as_they_were_written(tmp_path):
    (tmp_path / "a").write_bytes(npy("(3,)") * 2)
    assert [row["y"].shape for row in ArrayFile(path=tmp_path / "a", names=("y",), count=2)] == [(3,)] * 2


# --- vendors' tools and phones ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "text", "file"),
    [
        ("tflite", "Inference timings in us: Init: 1, First inference: 1, Inference (avg): 1e999", ""),
        ("tflite", "Inference timings in us: Init: 1, Inference (avg): -5", ""),
        ("tflite", "Inference timings in us: Inference (avg): 1.2.3", ""),
        ("tflite", "Inference timings in us: Inference (avg): 0", ""),
        ("tflite", "Inference timings in us: Inference (avg): 5\nMemory footprint delta: overall=1e999", ""),
        ("onnxruntime", "Average inference time cost: -1 ms", ""),
        ("onnxruntime", "Average inference time cost: 1 ms\nPeak working set size: -9 bytes", ""),
        ("onnxruntime", "Average inference time cost: 1 ms", "m,nan,1\nm,inf,1\n"),
        ("tensorrt", "GPU Compute Time: median = 1 ms", '[{"computeMs": 1e999}]'),
        ("tensorrt", "GPU Compute Time: median = -- ms", ""),
        ("tensorrt", "GPU Compute Time: median = 1 ms", "[" * 100_000),
    ],
    ids=lambda v: v[-30:],
)
def test_tools_that_print_what_cannot_be(backend, text, file):
    done = TaskResult(result=wire.ProgramResult(text=text, file=file))
    with pytest.raises((DeviceError, BackendError)):
        checked("phone", vendor.replicate("phone", backend, 1, done))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_no_figure_slips_through(value):
    good = Replicate(samples_ms=(1.0, 1.0), threads=1)
    assert checked("phone", good) is good
    for bad in ({"samples_ms": (1.0, value)}, {"load_ms": value}, {"p99_ms": value}, {"peak_memory": value}):
        with pytest.raises(DeviceError):
            checked("phone", Replicate(**{"samples_ms": (1.0,), "threads": 1, **bad}))


@pytest.mark.parametrize(
    "text",
    [
        "@processors " + "9" * 5000 + "\n@max " + "9" * 5000 + "\nMemTotal: " + "9" * 5000 + " kB",
        "@processors -1\n@arch\n@uname",
        "@now " + "9" * 5000 + "\n@cap -1",
        "@section thermal\nThermal Status: 99999\nmValue=1.2.3, mType=0, mName=a}\n@section battery\nlevel: "
        + "9" * 5000,
        "\0" * 100,
    ],
    ids=lambda v: v[:20],
)
def test_phones_that_say_nonsense(text):
    assert android.facts(text).processors >= 1
    state = android.state(text)
    assert all(np.isfinite(v) for v in state.celsius.values())


# --- over ssh --------------------------------------------------------------------------------------------

SSH = f"""#!{sys.executable}
import json, os, sys, time
lie = json.loads(os.environ["LIE"])
command = sys.argv[-1]
if "-oControlMaster=yes" in sys.argv and lie.get("greeting") is not None:
    while True:
        sys.stdout.write(lie["greeting"] + "\\n")
        sys.stdout.flush()
        if not lie.get("endless"):
            sys.exit(0)
if "Sends one file" in command and lie.get("send") is not None:
    while True:
        sys.stdout.write(lie["send"] + "\\n")
        sys.stdout.flush()
        time.sleep(lie.get("then", 0))
        if not lie.get("endless"):
            sys.exit(0)
if "Receives one file" in command and lie.get("receive") is not None:
    sys.stdout.write(lie["receive"] + "\\n")
    sys.exit(0)
os.execvp("sh", ["sh", "-c", command])
"""


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """An ssh whose device is this machine, but for what it lies."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(SSH)
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    monkeypatch.setattr(ssh_transport, "_NOTICE_S", 0.2)

    def connect(**lie):
        monkeypatch.setenv("LIE", json.dumps(lie))
        return SshTransport("liar", SshOptions(host="liar", python=sys.executable, connect_s=1))

    return connect


GREETING = {"edgekit": 1, "python": [3, 11, 2], "boot_id": "b", "root": "/tmp/edgekit-x", "exists": True}


@pytest.mark.parametrize(
    "greeting",
    [
        "",
        json.dumps({**GREETING, "root": "relative"}),
        json.dumps({**GREETING, "root": 5}),
        json.dumps({**GREETING, "root": ""}),
        json.dumps({**GREETING, "python": ["3", "11"]}),
        json.dumps({**GREETING, "python": [3]}),
        json.dumps({**GREETING, "python": [2, 7, 18]}),
        json.dumps({"edgekit": 2}),
        "{" * 10_000,
        "\n".join(["Welcome"] * 2000),
    ],
    ids=lambda v: v[:60],
)
def test_greetings_that_are_none(greeting, ssh):
    with pytest.raises(DeviceError):
        ssh(greeting=greeting)


def test_a_log_in_that_prints_without_end_is_told_as_such(ssh):
    with pytest.raises(DeviceError, match="printed too much") as raised:
        ssh(greeting="Welcome", endless=True)
    assert "log-in script" in raised.value.hint


@pytest.mark.parametrize(
    "lie",
    [
        {"send": json.dumps({"edgekit": 1, "size": 10**13})},  # would fill the disk
        {"send": json.dumps({"edgekit": 1, "size": -1})},
        {"send": json.dumps({"edgekit": 1, "size": "4"})},
        {"send": json.dumps({"edgekit": 1, "size": 4}) + "\nabcd0000"},
        {"send": json.dumps({"edgekit": 1, "size": 400}) + "\nabcd"},
        {"send": json.dumps({"edgekit": 1, "error": "\x1b[2Jno"})},
        {"send": "Welcome", "endless": True},
        {"send": "x" * 100_000, "endless": True},
    ],
    ids=str,
)
def test_downloads_that_were_not_asked_for(lie, ssh, tmp_path):
    transport = ssh(**lie)
    (Path(transport.root) / "file").write_text("data")
    with pytest.raises(DeviceError) as caught:
        transport.get("file", tmp_path / "copy", 1000)
    transport.close()
    assert "\x1b" not in caught.value.message
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "copy.part").exists()


@pytest.mark.parametrize(
    "answer", ["", "{}", json.dumps({"edgekit": 1, "ok": "yes"}), json.dumps({"edgekit": 1, "error": "no"})]
)
def test_uploads_that_did_not_arrive(answer, ssh, tmp_path):
    transport = ssh(receive=answer)
    (tmp_path / "file").write_text("data")
    with pytest.raises(DeviceError):
        transport.put(tmp_path / "file", "file")
    transport.close()


def test_an_ssh_that_does_not_lie(ssh, tmp_path):
    transport = ssh()
    (tmp_path / "file").write_text("data")
    there = transport.put(tmp_path / "file", "file")
    assert Path(there).read_text() == "data"
    transport.get("file", tmp_path / "copy", 4)
    assert (tmp_path / "copy").read_text() == "data"
    transport.close()
    assert not Path(there).exists()
