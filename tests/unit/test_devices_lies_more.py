"""More lies: figures that contradict each other, records that are no numbers, reports of what was executed, transfers
that never end, words that end on a terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from test_devices_lies import (
    BENCH,
    BYE,
    REPORT,
    RUN,
    Liar,
    bench_on,
    npy,
    numbered,
    ssh,
    task_of,
)

from edgekit.artifact.parity import compare
from edgekit.artifact.profile import read_operators
from edgekit.backends.nvidia import executed as on_nvidia
from edgekit.backends.onnxruntime import executed as on_onnxruntime
from edgekit.backends.openvino import executed as on_openvino
from edgekit.backends.tflite import executed as on_tflite
from edgekit.core import targets
from edgekit.devices import execute, protocol, vendor, wire
from edgekit.devices.arrays import ArrayFile
from edgekit.devices.job import TaskResult
from edgekit.devices.replicates import Replicate, checked
from edgekit.devices.runnable import Runnable
from edgekit.devices.session import short
from edgekit.devices.transports import ssh as ssh_transport
from edgekit.devices.transports.adb_client import last, parse_devices
from edgekit.devices.wheels import Interpreter, _contains
from edgekit.errors import BackendError, DeviceError
from edgekit.types import Lowered, OnnxModel

__all__ = ["bench_on", "ssh"]  # fixtures

MANY = {f"package{i}": "1" for i in range(5000)}


@pytest.mark.parametrize(
    "change",
    [
        {"samples_ms": [5e-324] * 3},  # an inference of less than a nanosecond
        {"samples_ms": [1e-7, 1e-7, 1e-7]},
        {"samples_ms": [300.0] * 3, "contention": {"wall_s": 0.01}},  # 0.9 s in 10 ms
        {"first_ms": 1e11},  # longer than the process lived
        {"seconds": {"import": 1e9, "load": 0.1}},
        {"warmup": {"stable": True, "windows_ms": [1e9]}},
        {"steady": [1.0, 1e11]},
        {"threads": 1 << 40},
        {"affinity": [1 << 40]},
        {"contention": {"steal": 7.0}},
        {"contention": {"pressure": -0.5}},
        {"contention": {"cpu_per_wall": -1e15}},
        {"contention": {"cpu_per_wall": 1e15}},
        {"memory": {"phases": {"load": {"peak": 1 << 59}}}},
        {"memory": {"phases": {f"phase{i}": {} for i in range(5000)}}},
        {"memory": {"device": {"gpu": 1 << 59}}},
    ],
    ids=lambda change: str(change)[:60],
)
def test_figures_that_contradict_each_other(change, bench_on):
    with pytest.raises(DeviceError):
        bench_on(numbered(*task_of({**BENCH, **change}), BYE))


@pytest.mark.parametrize(
    "report",
    [
        {"facts": {"processors": 1 << 40}},
        {"facts": {"memory": 1 << 59}},
        {"facts": {"isa": ["x"] * 5000}},
        {"facts": {"max_khz": [10**15]}},
        {"facts": {"trips_celsius": {"cpu": 1e15}}},
        {"facts": {"model": "x" * (1 << 18)}},
        {"state": {"celsius": {"cpu": 1e15}}},
        {"state": {"celsius": {"cpu": -1000}}},
        {"state": {"celsius": {f"zone{i}": 1 for i in range(5000)}}},
        {"state": {"battery": {"percent": -1}}},
        {"state": {"battery": {"percent": 10**9}}},
        {"state": {"load": -1}},
    ],
    ids=lambda report: str(report)[:60],
)
def test_devices_that_cannot_be(report, bench_on):
    with pytest.raises(DeviceError):
        bench_on(numbered(*task_of(BENCH), BYE), {"event": "result", **REPORT, **report})


def test_states_that_repeat_a_moment_divide_nothing_by_nothing(bench_on):
    """Clocks of zero hertz, the same instant twice, time that goes back."""
    state = {"time": 1, "khz": [0, 0], "cap_khz": [0], "rails_mw": {"cpu": 0}}
    states = [{"event": "state", "state": {**state, "time": t}} for t in (1.5, 1.5, 0, 1e12)]
    report = {**REPORT, "facts": {"max_khz": [0, 0]}, "state": state}
    measured = bench_on(numbered(*task_of(BENCH)[:-1], *states, task_of()[-1], BYE), report)
    assert measured.samples == ((1.0, 1.0, 1.0),)
    assert json.dumps(msgspec.to_builtins(measured.facts), allow_nan=False)


@pytest.mark.parametrize("text", ['"\\ud800"', '"a\\udfff"'])
def test_halves_of_characters_reach_no_terminal(text, bench_on):
    line = f'{{"seq":1,"event":"error","kind":"load","message":{text}}}'
    with pytest.raises((DeviceError, BackendError)) as caught:
        bench_on(numbered(*task_of(line), BYE))
    caught.value.message.encode()


@pytest.mark.parametrize(
    "text", ["a\u2028b", "a\u2029b", "a\u061cb", "a\u200bb", "a\U000e0041b", "a\ufff9b", "a\x85b", "a\x9bb"]
)
def test_what_nobody_sees_is_not_written(text):
    assert protocol.plain(text) == "ab"


# --- outputs -------------------------------------------------------------------------------------------------


def header(text):
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)


@pytest.mark.parametrize(
    "outputs",
    [
        npy("(3,)") * 2 + b"more",  # more than the samples that were asked for
        npy("(3,)", "<U1") * 2,
        npy("(1000000000000,)", "|V0", b"") * 2,  # any number of nothing
        npy("(3,)", "<M8[s]", bytes(24)) * 2,
        npy("(3,)", "[('a', '<f4')]") * 2,
        npy("(" + "1," * 80 + ")", data=b"\0" * 4) * 2,  # eighty axes
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 5000 + "1,)}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 3000 + ")" * 3000 + "}"),
        header("{'descr': [], 'fortran_order': False, 'shape': (3,)}"),
        header("{'descr': '<f4', 'fortran_order': 'no', 'shape': (3,)}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2**70)}"),
        header("{1: 2, None: 3}"),
        header("__import__('os').system('true')"),
    ],
    ids=lambda v: str(v[10:70]),
)
def test_records_that_are_none(outputs, tmp_path):
    (tmp_path / "a").write_bytes(outputs)
    with pytest.raises(DeviceError):
        list(ArrayFile(path=tmp_path / "a", names=("y",), count=2))


def test_no_more_is_fetched_than_the_outputs_can_have(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "edgekit.devices.pack.runner", lambda backend: Path(__file__).with_name("fake_runner.py")
    )
    (tmp_path / "m").write_text("good")
    liar, asked = Liar(supervisor=numbered(*task_of(RUN), BYE).replace("0-0-A", "run")), []

    def get(name, target, most):
        asked.append(most)
        raise DeviceError("no", hint="no")

    monkeypatch.setattr(liar, "get", get)
    monkeypatch.setattr(execute, "connect", lambda device: liar)
    monkeypatch.setattr(Liar, "__enter__", lambda self: self, raising=False)
    monkeypatch.setattr(Liar, "__exit__", lambda self, *_: self.close(), raising=False)
    for sizes, most in (({"y": 10}, 2 * (16_384 + 160)), ({}, 2 << 30)):
        runnable = Runnable(backend="fake", main=tmp_path / "m", outputs=("y",), sizes=sizes)
        with (
            pytest.raises(DeviceError),
            execute.run_artifact(runnable, [{"x": np.ones(3, "f")}] * 2, timeout=1),
        ):
            pass
        assert asked.pop() == most
        liar = Liar(supervisor=liar.answers["supervisor"])
        monkeypatch.setattr(liar, "get", get)
        monkeypatch.setattr(execute, "connect", lambda device, liar=liar: liar)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_that_cannot_be_squared_give_no_figures_that_are_none():
    good = [{"y": np.array([[1.0, 2.0, 3.0]])}]
    for value in (1e300, -1e300, np.inf, np.nan):
        parity = compare(good, [{"y": np.array([[1.0, value, 3.0]])}])
        assert parity.snr_db < 0
        figures = [v for v in vars(parity).values() if isinstance(v, float)]
        assert np.isfinite(figures).all()


# --- what was executed ---------------------------------------------------------------------------------------

NODE = {"name": "n", "op": "Conv", "provider": "p", "inputs": [], "outputs": []}
LAYER = {"name": "n", "type": "t", "precision": "f32", "primitive": "", "original": [], "outputs": []}
LIES = [
    5,
    "nodes",
    {},
    [5],
    [[]],
    [None],
    [{}],
    [{**NODE, "inputs": 5}],
    [{**NODE, "outputs": [{"dtype": 5, "shape": []}]}],
    [{**NODE, "outputs": [{"dtype": "f", "shape": ["n"]}]}],
    [{**NODE, "name": None}],
    [{**LAYER, "original": "n"}],
    [{**LAYER, "outputs": [5]}],
    [{**LAYER, "precision": ["f32"]}],
    [{"index": "0", "op": "CONV_2D", "delegate": None}],
    [{"index": {}, "op": 5}],
]


@pytest.mark.parametrize("lie", LIES, ids=str)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite", "nvidia"])
def test_reports_of_what_was_executed_are_read_by_type(backend, lie, tmp_path):
    """A typed error, or a placement of what can be read: never another exception."""
    model = OnnxModel(path=tmp_path / "none.onnx", sha256="", opset=18, inputs=(), outputs=())
    lowered = Lowered(files=("m",), inputs=(), outputs=())
    row = {
        "onnxruntime": "ort-fp32",
        "openvino": "openvino-fp32",
        "tflite": "tflite-fp32",
        "nvidia": "tensorrt-fp16",
    }
    target = targets.known()[row[backend]]
    if backend == "nvidia":
        inner = {"LayerType": lie, "Inputs": lie, "Name": lie, "Metadata": lie}
        assert isinstance(on_nvidia._precision(inner), str)
        assert on_nvidia._onnx_names(inner)
        if isinstance(lie, list) and all(isinstance(item, str | dict) for item in lie):
            return
        with pytest.raises(DeviceError):
            on_nvidia.executed(model, target, {"layers": lie})
        return
    read = {
        "onnxruntime": lambda raw: on_onnxruntime.placement(model, target, lowered, raw),
        "openvino": lambda raw: on_openvino.placement(model, target, raw),
        "tflite": lambda raw: on_tflite.read_placement(target, lowered, raw),
    }[backend]
    with pytest.raises(DeviceError):
        read({"nodes": lie, "delegates": "many"})


def test_a_profile_without_times():
    operator = {"name": "n", "op": "o", "placed": "p", "precision": "f", "us": []}
    report = {
        "seq": 1,
        "event": "result",
        "profile": {"operators": [operator], "whole_us": [1.0]},
        "threads": 1,
    }
    with pytest.raises(DeviceError):
        protocol.decode(json.dumps(report), wire.ProfileResult, device="liar")
    operator["us"] = [0.0]
    report["profile"]["operators"] = [operator, {**operator, "us": None}]
    profile = protocol.decode(json.dumps(report), wire.ProfileResult, device="liar").profile
    assert [o.share for o in read_operators(profile.operators, {})] == [None, None]


# --- tools, installers, transfers, terminals -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        ("tflite", "Inference timings in us: " + "a" * (1 << 23)),
        ("tflite", "Memory footprint delta" * (1 << 18) + "\nInference timings in us: Inference (avg): -1"),
        ("onnxruntime", "Average inference time cost" * (1 << 18)),
        ("tensorrt", "GPU Compute Time: " + "median " * (1 << 20)),
        ("tensorrt", "GPU Compute Time: median" + " " * (1 << 20)),
    ],
    ids=lambda v: v[:30],
)
def test_tools_whose_output_takes_forever_to_read(backend, text):
    started = time.monotonic()
    with pytest.raises((DeviceError, BackendError)) as caught:
        checked(
            "phone", vendor.replicate("phone", backend, 1, TaskResult(result=wire.ProgramResult(text=text)))
        )
    assert time.monotonic() - started < 60
    assert len(caught.value.message) < 10_000


def test_percentiles_in_the_wrong_order():
    with pytest.raises(DeviceError):
        checked("phone", Replicate(samples_ms=(1.0,), threads=1, p90_ms=2.0, p99_ms=1.0))


@pytest.mark.parametrize(
    "change",
    [
        {"libc_version": [2, 1 << 50]},  # as many tags of platforms
        {"version": [3, 1 << 50, 0]},
        {"machine": "x86_64 --index-url=http://liar"},
        {"machine": "../../x"},
        {"packages": MANY},
        {"prepared": {"ort": [{"sha256": "a"}] * 5000}},
    ],
    ids=lambda v: str(v)[:40],
)
def test_pythons_that_cannot_be(change):
    good = {
        "version": [3, 11, 2],
        "implementation": "CPython",
        "machine": "aarch64",
        "libc": "glibc",
        "libc_version": [2, 36],
        "root": "/home/u",
    }
    protocol.decode(json.dumps(good), wire.Description, device="liar")
    with pytest.raises(DeviceError):
        protocol.decode(json.dumps({**good, **change}), wire.Description, device="liar")


def test_versions_that_are_none():
    from packaging.requirements import Requirement

    assert not _contains(Requirement("numpy>=1"), "the newest")
    assert _contains(Requirement("numpy>=1"), "2.0")
    assert Interpreter(
        version=(3, 11, 2), machine="aarch64", libc="glibc", libc_version=(2, 999), packages={}
    ).platforms()


@pytest.mark.parametrize("lie", [{"send": json.dumps({"edgekit": 1, "size": 400}), "then": 60}])
def test_a_download_that_never_ends(lie, ssh, tmp_path, monkeypatch):
    """It says how much will come, and sends nothing: the time for a file of a gigabyte is hours."""
    monkeypatch.setattr(ssh_transport, "TRANSFER_SILENCE_S", 1.0)
    transport = ssh(**lie)
    with pytest.raises(DeviceError, match="stopped sending"):
        transport.get("file", tmp_path / "copy", 1 << 30)
    transport.close()
    assert list(tmp_path.glob("copy*")) == []


def test_what_a_shell_says_cannot_move_a_cursor():
    class Shell:
        name = "phone"

        def run(self, argv, *, stdin, on_line, patience):
            on_line("held \x1b[2Jby\u202e me")
            return SimpleNamespace(returncode=0, timed_out=False, stderr="")

    assert short(Shell(), ["sh"]) == "held [2Jby me"
    assert last("fine\n\x1b[2J\x07gone") == "[2Jgone"
    assert parse_devices("abc\tdevice model:\x1b[2Jx")[0].model == "[2Jx"
