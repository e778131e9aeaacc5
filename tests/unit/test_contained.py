"""A command in a process of its own: what ends that process is an error of one step, and nothing outlives its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

_PROGRAM = """
import os, signal, subprocess, sys, time
from edgekit.core import contained
from edgekit.core.contained import Ended, Job, Limits, step
from edgekit.errors import EdgekitError

{before}
try:
    with contained.program():
        contained.contain(Job(what="evil.onnx", limits=Limits({limits})))
    {body}
except Ended as end:
    sys.exit(end.code)
except EdgekitError as error:
    print(type(error).__name__, error.message, flush=True)
    sys.exit(error.exit_code)
"""


def start(limits, body, *, before="", **more):
    program = _PROGRAM.format(
        limits=limits, before=before, body=textwrap.indent(textwrap.dedent(body), "    ").strip()
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def run(limits, body):
    with start(limits, body) as process:
        out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, out


def gone(pid):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with suppress(OSError):
            status = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            if status[0] == b"Z":  # nobody has waited for it
                return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("code", [0, 3, 130])
def test_the_childs_exit_code_is_the_commands(code):
    assert run("", f"print('done', flush=True); sys.exit({code})") == (code, "done\n")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_an_error_of_its_step_and_the_others_are_done(number):
    code, out = run(
        "",
        f"""
        with step("first", "1"):
            print("first is done", flush=True)
        try:
            with step("optimize", "2"):
                os.kill(os.getpid(), {int(number)})
        except EdgekitError as error:
            print(error.message, flush=True)
        print("the rest is done", flush=True)
        sys.exit(6)
        """,
    )
    name = signal.Signals(number).name
    # The first child ends silently; the second tells.
    assert out == (
        "first is done\n" * 2 + f"optimize of evil.onnx: {name} ended the process\nthe rest is done\n"
    )
    assert code == 6


def test_a_step_that_ends_the_process_with_an_exit_code_is_told_as_well():
    code, out = run("", "with step('lower', 'x'): os._exit(0)")
    assert (code, out) == (
        6,
        "RuntimeCrashError lower of evil.onnx: something ended the process with status 0\n",
    )


def test_a_crash_outside_of_every_step_is_an_error_of_the_file():
    code, out = run("", "os.abort()")
    assert (code, out) == (6, "RuntimeCrashError reading of evil.onnx: SIGABRT ended the process\n")


def test_of_two_steps_side_by_side_the_one_that_crashes_is_found():
    code, out = run(
        "",
        """
        import threading
        def crash():
            try:
                with step("lower for b", "b"):
                    time.sleep(0.3)
                    os.abort()
            except EdgekitError as error:
                print(error.message, flush=True)
        def fine():
            with step("lower for a", "a"):
                time.sleep(0.6)
            print("a is done", flush=True)
        if contained.one_at_a_time():
            fine(), crash()
        else:
            threads = [threading.Thread(target=t) for t in (fine, crash)]
            [t.start() for t in threads], [t.join() for t in threads]
        sys.exit(6)
        """,
    )
    assert code == 6
    assert out.endswith("a is done\nlower for b of evil.onnx: SIGABRT ended the process\n")


def test_the_time_ends_everything_that_was_started():
    code, out = run(
        "whole=1.5",
        """
        sleeper = subprocess.Popen(["sleep", "300"], start_new_session=True)
        with step("verify", "1"):
            print(sleeper.pid, flush=True)
            time.sleep(300)
        """,
    )
    pid, error = out.splitlines()
    assert code == 8
    assert error.startswith("TimeLimitError evil.onnx: the time is over (1.5 s)")
    assert gone(int(pid))


@pytest.mark.parametrize("work", ["while True: pass", "time.sleep(300)"])
def test_a_quick_step_that_is_silent_is_ended(work):
    code, out = run("quick=1.0", f"with step('optimize', '1', quick=True):\n    {work}")
    assert (code, out) == (
        6,
        "RuntimeCrashError optimize of evil.onnx: it gave no answer for 1 s and was ended\n",
    )


def test_a_step_that_is_not_quick_and_one_that_says_how_far_it_is_are_not():
    body = """
        with step("quantize", "1"):
            time.sleep(2)
        contained._BEAT_S = 0.1
        with step("optimize", "2", quick=True):
            for _ in range(12):
                time.sleep(0.2)
                contained.beat()
        print("done", flush=True)
        """
    assert run("quick=1.0", body) == (0, "done\n")


def test_more_memory_than_allowed_is_an_error():
    code, out = run("memory=300 << 20", "with step('optimize'): x = bytearray(1 << 30)")
    assert code == 3
    assert out == "MemoryLimitError evil.onnx (optimize) asks for more memory than 300 MiB\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_reaches_the_child(number):
    with start(
        "",
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            print(os.getpid(), flush=True)
            for _ in range(600):  # a signal between a check for signals and a long sleep would wait for its end
                time.sleep(0.1)
        except KeyboardInterrupt:
            sys.exit(130)
        """,
    ) as process:
        child = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert gone(child)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how large a mutex is differs")
def test_a_child_in_native_code_that_hears_of_no_stop_is_ended():
    body = """
        import ctypes
        lock, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
        lock(mutex)
        print(os.getpid(), flush=True)
        lock(mutex)
        """
    with start("", body, before="contained._DEAF_S = 1.0") as process:
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert gone(child)


def test_one_that_has_heard_of_it_is_waited_for():
    body = """
        def handle(*_):
            contained.stopping()
            time.sleep(2)
            print("done", flush=True)
            sys.exit(143)

        signal.signal(signal.SIGTERM, handle)
        print(os.getpid(), flush=True)
        for _ in range(600):
            time.sleep(0.1)
        """
    with start("", body, before="contained._DEAF_S = 0.5") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stdout.read() == "done\n"


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells a child of its parent's end"
)
def test_a_child_does_not_outlive_a_parent_that_is_killed():
    with start("", "print(os.getpid(), flush=True); time.sleep(60)") as process:
        child = int(process.stdout.readline())
        process.kill()
        process.wait(20)
        assert gone(child)


def test_a_library_is_never_forked():
    from edgekit.core import contained

    before = os.getpid()
    contained.contain(contained.Job(what="x", limits=contained.Limits(whole=1)))
    assert os.getpid() == before
