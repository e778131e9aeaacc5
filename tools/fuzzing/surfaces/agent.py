"""What the agent takes from a host: jobs, plans and requests to install wheels, each in a process of its own."""

from __future__ import annotations

import faulthandler
import importlib
import io
import json
import os
import random
import resource
import select
import signal
import sys
import time
import traceback
import zipfile
from pathlib import Path

import numpy as np

from edgekit.devices.pack import pack
from edgekit.errors import DeviceError
from edgekit.types import sha256_bytes
from fuzzing import sandbox, seeds
from fuzzing.mutators import archives, raw, texts
from fuzzing.sandbox import EscapedError
from fuzzing.surfaces import Plain

_PATIENCE_S, _END_S = 1.5, 30.0
_ENTRIES = {
    "run": "worker",
    "bench": "worker",
    "probe": "worker",
    "plan": "supervisor",
    "describe": "installer",
    "wheel": "installer",
}


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        sys.path.insert(0, str(pack("onnxruntime").write(Path(os.environ["FUZZ_ROOT"]) / "cache")))
        for name in ("runner", *set(_ENTRIES.values())):
            importlib.import_module(f"edgekit_agent.{name}")
        importlib.import_module("edgekit_agent.runner").versions()  # the runtime, once for all children
        del folder
        box = Path(os.environ["FUZZ_ROOT"]) / "box"
        job = {
            "action": "run", "scratch": str(box / "out"), "model": str(box / "dense.onnx"),
            "options": {"threads": 1}, "cpus": [],
            "inputs": {"path": str(box / "inputs"), "names": ["x"], "count": 1},
            "outputs": {"path": str(box / "out" / "o"), "names": ["y"]},
            "quantize": True, "placement": False,
        }  # fmt: skip
        timing = {"seconds": 0.01, "iterations": 2, "max_iterations": 5, "warmup_s": 0.0}
        plan = {
            "tasks": [],
            "journal": str(box / "out" / "journal"),
            "heartbeat": 2,
            "lock": None,
            "state_s": 0.5,
            "governor": "",
        }
        found = {
            "run": job, "bench": job | {"action": "bench", "bench": timing}, "probe": {"action": "probe"}, "plan": plan,
            "describe": {"action": "describe"},
        }  # fmt: skip
        return {f"{name}.json": json.dumps(document).encode() + b"\n" for name, document in found.items()} | {
            "wheel.whl": _wheel()
        }

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        if name.endswith(".whl"):
            return archives.mutate(rng, data, lambda chance, _name, inner: raw.mutate(chance, inner))
        return texts.lines(rng, data, numbered=False)

    def place(self, name: str, data: bytes, box: Path) -> None:
        super().place(name, data, box)
        (box / "dense.onnx").write_bytes(seeds.dense())
        with (box / "inputs").open("wb") as file:
            np.lib.format.write_array(file, np.ones((1, 8), np.float32))

    def consume(self, name: str, data: bytes, box: Path) -> None:
        kind = name.partition(".")[0]
        if kind == "wheel":
            wheel = {"path": str(box / name), "name": "w", "version": "1", "sha256": sha256_bytes(data)}
            data = (
                json.dumps(
                    {"action": "install", "backend": "tflite", "wheels": [wheel], "unpacked": 9}
                ).encode()
                + b"\n"
            )
        _check(*_called(_ENTRIES[kind], data, box))

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        del name, data, box
        return []


def _wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in (
            "w/__init__.py",
            "w-1.dist-info/METADATA",
            "w-1.data/purelib/x.py",
            "w-1.data/scripts/x",
        ):
            archive.writestr(name, b"x = 1\n")
    return buffer.getvalue()


def _called(entry: str, line: bytes, box: Path) -> tuple[int, bytes, str]:
    """The agent's entry point in a child that hears ``line``; its exit status, its stdout, and its last words.

    After a while its stdin ends, as when the host is gone: then it has to go, too.
    """
    stdin, host = os.pipe()
    ours, stdout = os.pipe()
    words = box / "out" / "stderr"
    faulthandler.cancel_dump_traceback_later()  # its thread would be missed in the child
    child = os.fork()
    if child == 0:
        os.close(host)
        os.close(ours)
        _be_agent(entry, stdin, stdout, words)
    os.close(stdin)
    os.close(stdout)
    said = _talk(child, line, host, ours)
    status = os.waitpid(child, 0)[1]
    return (
        os.waitstatus_to_exitcode(status),
        said,
        words.read_text(errors="replace") if words.exists() else "",
    )


def _be_agent(entry: str, stdin: int, stdout: int, words: Path) -> None:
    os.setpgid(0, 0)
    sandbox.lenient = entry != "installer"
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT), 2)
    os.environ["EDGEKIT_RUNTIMES"] = str(words.parent / "runtimes")
    os.environ["EDGEKIT_LOCK"] = f"-fuzz-{os.getpid()}"
    resource.setrlimit(resource.RLIMIT_NPROC, (4000, 4000))
    sys.stdin, sys.stdout, sys.stderr = (open(n, m, closefd=False) for n, m in ((0, "r"), (1, "w"), (2, "w")))  # noqa: SIM115
    code = 1
    try:
        code = sys.modules[f"edgekit_agent.{entry}"].main()
    except BaseException:  # noqa: BLE001 - as Python itself would
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _talk(child: int, line: bytes, host: int, ours: int) -> bytes:
    """Send, listen, hang up."""
    said, begun, open_ = b"", time.monotonic(), True
    try:
        os.write(host, line[: 1 << 16])
        while True:
            waited = time.monotonic() - begun
            if open_ and waited > _PATIENCE_S:
                os.close(host)
                open_ = False
            if waited > _PATIENCE_S + _END_S:
                os.kill(child, signal.SIGKILL)
                raise AssertionError("the agent outlives its host")
            if select.select([ours], [], [], 0.2)[0]:
                part = os.read(ours, 1 << 16)
                if not part:
                    return said
                said += part
    except BrokenPipeError:
        return said
    finally:
        if open_:
            os.close(host)
        os.close(ours)


def _check(code: int, said: bytes, words: str) -> None:
    """Every line is of the protocol; what went wrong is told in it, or in one sentence."""
    if code < 0:
        raise AssertionError(f"the agent ended with signal {-code}: {words[-500:]}")
    for number, line in enumerate(said.splitlines(), 1):
        event = json.loads(line)
        assert event["seq"] == number, "a line of another number"
        if event["event"] == "error" and "EscapedError" in f"{event.get('message')}":
            raise EscapedError(event["message"])
    if "EscapedError" in words:
        raise EscapedError(words[-500:])
    if "Traceback (most recent call last)" in words:
        raise AssertionError(words[-3000:])
    if code:
        raise DeviceError("the agent refused", hint="")
