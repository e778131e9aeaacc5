"""What a device sends: events of plans and jobs, reports, outputs, a phone's texts, vendors' tools, ssh's greeting."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from unittest import mock

import numpy as np

from edgekit.artifact.profile import read_operators
from edgekit.devices import bench, execute, plan, vendor, wire
from edgekit.devices.bench import BenchSettings, bench_artifact
from edgekit.devices.execute import run_artifact
from edgekit.devices.job import Task, TaskResult, report_device
from edgekit.devices.prepare import Preparation
from edgekit.devices.replicates import checked
from edgekit.devices.runnable import Runnable
from edgekit.devices.transports import android, ssh
from edgekit.devices.transports.process import Completed, Patience
from edgekit.types import Device
from fuzzing import values
from fuzzing.mutators import arrays, raw, texts
from fuzzing.surfaces import Plain

_BENCH = {
    "event": "result", "first_ms": 1.0, "samples_ms": [1.0, 1.1, 1.0], "steady": [1.0, 2.0],
    "seconds": {"import": 0.1, "load": 0.1},
    "threads": 1, "warmup": {"stable": True, "windows_ms": [1.0]}, "contention": {"wall_s": 1.0,
    "cpu_s": 1.0, "steal": 0.0},
    "memory": {"phases": {"load": {"rss": 5, "peak": 9}}, "resettable": True}, "affinity": [0, 1],
}  # fmt: skip
_RUN = {"event": "result", "done": 1, "names": ["y"], "placement": {"nodes": []}, "seconds": {"run": 0.1}}
_OPERATOR = {
    "name": "first",
    "op": "Gemm",
    "placed": "CPU",
    "precision": "fp32",
    "from": ["first"],
    "us": [1.0, 2.0],
}
_PROFILE = {
    "event": "result",
    "profile": {"operators": [_OPERATOR], "whole_us": [3.0], "notes": ["n"]},
    "threads": 1,
}
_REPORT = {
    "seq": 1, "event": "result",
    "facts": {"arch": "aarch64", "os": "Linux", "model": "Pi", "processors": 4, "isa": ["neon"],
    "python": "3.11", "boot_id": "b"},
    "state": {"time": 1.0, "khz": [1000], "celsius": {"cpu": 50.0}, "battery": {"percent": 5}, "load": 0.1},
}  # fmt: skip
_DESCRIPTION = {
    "seq": 1, "event": "result", "version": [3, 11, 2], "implementation": "cpython", "machine": "x86_64",
    "libc": "glibc",
    "libc_version": [2, 36], "root": "/r", "packages": {"numpy": "2.0"},
    "prepared": {"tflite": [{"sha256": "0", "name": "w"}]},
}  # fmt: skip
_PHONE = """@arch aarch64
@uname Linux
@processors 8
@ro.product.model Pixel
@now 1000
@cap 2000
@max 2000
MemTotal: 8000 kB
@section thermal
Thermal Status: 1
\tTemperature{mValue=31.0, mType=0, mName=CPU0, mStatus=0}
@section battery
level: 80
status: 2
temperature: 250
"""
_TOOLS = {
    "tflite": "Inference timings in us: Init: 1, First inference: 9, Warmup (avg): 5, Inference (avg): 5\noverall=1.5",
    "onnxruntime": "Average inference time cost: 1.5 ms\nPeak working set size: 99 bytes\x1em,session_run,1\nm,r,2\n",
    "tensorrt": 'GPU Compute Time: min = 1 ms, median = 1 ms\n\x1e[{"computeMs": 1.5, "startComputeMs": 0}]',
}
_GREETING = {"edgekit": 1, "python": [3, 11, 2], "boot_id": "b", "root": "/tmp/edgekit-x", "exists": True}


def _task(name: str, result: dict) -> bytes:
    """What a supervisor says of one task that goes well."""
    inner = [
        {"event": "phase", "name": "load"},
        {"event": "versions", "versions": {"r": "1"}},
        {"event": "progress", "done": 1},
        result,
    ]
    lines = [
        {"event": "line", "id": name, "line": json.dumps({"seq": i, **e})} for i, e in enumerate(inner, 1)
    ]
    outer = [
        {"event": "started", "id": name}, {"event": "state", "state": _REPORT["state"]}, *lines, {"event": "beat"},
        {"event": "ended", "id": name, "returncode": 0}, {"event": "bye", "why": "done"},
    ]  # fmt: skip
    return b"".join(json.dumps({"seq": i, **e}).encode() + b"\n" for i, e in enumerate(outer, 1))


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        (folder / "x").write_bytes(b"")
        with (folder / "x").open("wb") as file:
            np.lib.format.write_array(file, np.ones((1, 4), np.float32))
        outputs = (folder / "x").read_bytes()
        found = {
            "bench.jsonl": _task("0-0-A", _BENCH),
            "run.jsonl": _task("run", _RUN),
            "profile.jsonl": _task("profile", _PROFILE),
            "report.jsonl": json.dumps(_REPORT).encode() + b"\n",
            "description.jsonl": json.dumps(_DESCRIPTION).encode() + b"\n",
            "greeting.jsonl": json.dumps(_GREETING).encode() + b"\n",
            "outputs.npy": outputs,
            "phone.txt": _PHONE.encode(),
        }
        return found | {f"{backend}.tool": text.encode() for backend, text in _TOOLS.items()}

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        if name.endswith(".npy"):
            return arrays.record(rng, data)
        if not name.endswith(".jsonl"):
            return _text(rng, data)
        return texts.lines(rng, data, numbered=True)

    def consume(self, name: str, data: bytes, box: Path) -> None:
        kind, _, form = name.partition(".")
        if form == "tool":
            _vendor(kind, data)
        else:
            _READERS[kind](data, box)

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        del name, data, box
        return []


def _text(rng: random.Random, data: bytes) -> bytes:
    """A number that is none in place of one."""
    if rng.random() < 0.4:
        return raw.mutate(rng, data)
    words = data.decode("utf-8", "replace").split(" ")
    at = rng.randrange(len(words))
    words[at] = rng.choice(
        ("9" * 5000, "-1", "1e999", "nan", "1.2.3", "", "inf", "0", values.text(rng), "-" + words[at])
    )
    return " ".join(words).encode("utf-8", "replace")


@dataclass
class Liar:
    """A device across a link that answers whatever is asked with the input."""

    answer: bytes
    root: PurePosixPath
    outputs: bytes = b""
    name: str = "liar"
    python: str = "python3"
    remote: bool = True

    def run(
        self, argv: Sequence[str], *, stdin: bytes, on_line: Callable[[str], None], patience: Patience
    ) -> Completed:
        """Its lines, and an end that is well."""
        del argv, stdin, patience
        for line in self.answer.split(b"\n")[:-1]:
            on_line(line.decode("utf-8", "replace"))
        return Completed(returncode=0, stderr="")

    def put(self, source: Path, name: str) -> PurePosixPath:
        """Nothing is sent."""
        del source
        return self.root / name

    def get(self, name: str, target: Path, most: int) -> None:
        """The outputs, as a transport lets them through: no more than was asked for."""
        del name
        target.write_bytes(self.outputs[:most])

    def reopen(self) -> None:
        """There is no link."""

    def close(self) -> None:
        """Nor a folder."""


def _runnable(box: Path) -> Runnable:
    (box / "out" / "m").write_text("m")
    return Runnable(
        backend="onnxruntime",
        main=box / "out" / "m",
        outputs=("y",),
        inputs={"x": np.ones((1, 8), np.float32)},
    )


def _liar(data: bytes, box: Path, outputs: bytes = b"") -> Liar:
    return Liar(answer=data, root=PurePosixPath(box / "out"), outputs=outputs)


def _bench(data: bytes, box: Path) -> None:
    report = json.dumps(_REPORT).encode() + b"\n"

    class Timed(Liar):
        def run(self, argv: Sequence[str], **how: object) -> Completed:
            answer = report if "state" in argv else data
            return Liar(answer=answer, root=self.root).run(argv, **how)  # type: ignore[arg-type]

    device = Timed(answer=data, root=PurePosixPath(box / "out"))
    keep = box / "out" / "keep"
    settings = BenchSettings(processes=1, seconds=0.01, iterations=3, max_iterations=5, timeout=1, keep=keep)
    with mock.patch.object(bench, "connect", return_value=contextlib.closing(device)):
        measured = bench_artifact(_runnable(box), device=Device(name="liar"), settings=settings)
    for times in measured.samples:
        assert all(0 < t < 1e12 for t in times), "a figure that cannot be was kept"


def _run(data: bytes, box: Path, outputs: bytes | None = None) -> None:
    good = outputs if outputs is not None else _GOOD
    device = _liar(data, box, good)
    with (
        mock.patch.object(execute, "connect", return_value=contextlib.closing(device)),
        run_artifact(
            _runnable(box), [{"x": np.ones((1, 8), np.float32)}], device=Device(name="liar"), timeout=5
        ) as run,
    ):
        assert len(list(run.outputs)) == 1


def _outputs(data: bytes, box: Path) -> None:
    _run(_task("run", _RUN), box, data)


def _profile(data: bytes, box: Path) -> None:
    task = Task(
        id="profile",
        backend="onnxruntime",
        agent=PurePosixPath("a"),
        job=wire.Job(action="profile"),
        result=wire.ProfileResult,
        timeout=5,
    )
    done = plan.run_plan(_liar(data, box), [task], plan.Watch[wire.ProfileResult](state_s=0))
    read_operators(done["profile"].result.profile.operators, {})


def _report(data: bytes, box: Path) -> None:
    report_device(_liar(data, box), PurePosixPath("agent"))


def _description(data: bytes, box: Path) -> None:
    folder = box / "out" / "wheels"
    folder.mkdir()
    Preparation(device=Device(name="liar"), transport=_liar(data, box), folder=folder).remove([])


def _greeting(data: bytes, box: Path) -> None:
    for line in data.split(b"\n"):
        ssh._answer(line.decode("utf-8", "replace"), ssh._Greeting)
    with (box / "out" / "download").open("wb") as file:
        ssh._Download("liar", file, 1000)(data)


def _phone(data: bytes, box: Path) -> None:
    del box
    text = data.decode("utf-8", "replace")
    android.facts(text)
    state = android.state(text)
    assert all(np.isfinite(v) for v in state.celsius.values()), "a temperature that cannot be was kept"


def _vendor(backend: str, data: bytes) -> None:
    text, _, file = data.decode("utf-8", "replace").partition("\x1e")
    done = TaskResult(result=wire.ProgramResult(text=text, file=file))
    checked("phone", vendor.replicate("phone", backend, 1, done))


_GOOD = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4), }".ljust(117)
    + b"\n"
    + bytes(16)
)
_READERS: dict[str, Callable[[bytes, Path], None]] = {
    "bench": _bench,
    "run": _run,
    "profile": _profile,
    "report": _report,
    "description": _description,
    "greeting": _greeting,
    "outputs": _outputs,
    "phone": _phone,
}
