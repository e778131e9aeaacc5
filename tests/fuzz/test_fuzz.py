"""A few hostile inputs for each surface, and all that were ever found to do harm: ``make fuzz`` is the long run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INPUTS = {"agent": 10}
sys.path.insert(0, str(ROOT / "tools"))

from fuzzing.surfaces import NAMES  # noqa: E402


@pytest.mark.parametrize("name", NAMES)
def test_hostile_inputs_do_no_harm(name, tmp_path):
    count = INPUTS.get(name, 25)
    argv = [name, f"--inputs={count}", "--every=0", "--jobs=1", "--seed=tests", f"--keep={tmp_path}"]
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "fuzz.py", *argv], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith(name))
    assert int(row[1]) == count + len(list((ROOT / "tests/fuzz/corpus" / name).glob("*")))


def test_every_surface_of_the_corpus_is_fed():
    assert {p.name for p in (ROOT / "tests/fuzz/corpus").iterdir()} <= set(NAMES)


DEEDS = {
    "nothing": "",
    "a given folder": "open('out/x', 'w').write('1')",
    "write": "open('../outside/x', 'w')",
    "write beside the input": "open('x', 'w')",
    "through a link": "open('link', 'w')",
    "make a folder": "import os; os.mkdir('../outside/x')",
    "remove": "import os; os.unlink('../canary')",
    "read": "open('../canary').read()",
    "program": "import subprocess; subprocess.run(['true'])",
    "shell": "import os; os.system('true')",
    "code of the input": "import sys; sys.path.insert(0, '.'); import evil",
    "native code": "import ctypes; ctypes.CDLL(None).mkdir(b'../outside/x', 511)",
}
SCRIPT = """
import sys
from pathlib import Path
from fuzzing.sandbox import EscapedError, Sandbox
import ctypes, subprocess
sandbox = Sandbox(Path(sys.argv[1]))
sandbox.empty()
sandbox.remember()
try:
    with sandbox.watched():
        exec(sys.argv[2])
except EscapedError:
    sys.exit(7)
"""


@pytest.mark.parametrize("deed", DEEDS)
def test_the_sandbox_sees_what_an_input_must_not_do(deed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "sandbox", DEEDS[deed]],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == (0 if deed in ("nothing", "a given folder") else 7), done.stderr


def outcome(function, tmp_path):
    """What the worker makes of an input whose reader is ``function``."""
    from fuzzing import worker

    class Kind:
        def place(self, name, data, box):
            pass

        def consume(self, name, data, box):
            function()

    class Box:
        def empty(self):
            return tmp_path

        def remember(self):
            pass

        def watched(self):
            import contextlib

            return contextlib.nullcontext()

    result = {}
    worker._consume(Kind(), "x", b"", Box(), result)
    return result["verdict"]


def test_what_counts_as_wrong(tmp_path):
    from edgekit.errors import DataError, DefectError, EdgekitError

    def chained():
        try:
            raise MemoryError
        except MemoryError as error:
            raise DataError("too large", hint="") from error

    def raising(error):
        def function():
            raise error

        return function

    assert outcome(lambda: None, tmp_path) == "accepted"
    assert outcome(raising(DataError("no", hint="")), tmp_path) == "refused"
    assert outcome(raising(ValueError("no")), tmp_path) == "traceback"
    assert outcome(raising(DefectError("no", hint="")), tmp_path) == "traceback"
    assert outcome(raising(EdgekitError("no", hint="")), tmp_path) == "untyped"
    assert outcome(raising(SystemExit(0)), tmp_path) == "traceback"
    assert outcome(chained, tmp_path) == "memory"
