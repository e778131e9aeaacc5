"""A runtime of its own for tests: doubles its input, and misbehaves as the model file says."""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path


def versions():
    if os.environ.get("FAKE_RUNTIME") == "missing":
        raise ModuleNotFoundError("No module named 'fake'")
    if os.environ.get("FAKE_RUNTIME") == "foreign":
        sys.path.insert(0, str(Path.home()))
        import foreign_extension  # noqa: F401 - the test has put one there
    if os.environ.get("FAKE_RUNTIME") == "prepared":
        import fake_extension  # the test has put one there

        return {"fake": fake_extension.VERSION}
    return {"fake": "1.0"}


def probe():
    if os.environ.get("FAKE_RUNTIME") == "unusable":
        return {"usable": False, "why_not": "no fake hardware"}
    return {"usable": True}


KEPT = []
"""What a runtime that leaks does not let go."""


def load(path, options):
    return Session(Path(path).read_text().strip(), options)


class Session:
    def __init__(self, behaviour, options):
        if behaviour == "unloadable":
            raise RuntimeError("bad magic")
        self.behaviour, self.options = behaviour, options
        if behaviour == "leaks-when-loaded":
            KEPT.append(b"x" * 400_000)
        if os.environ.get("TMPDIR"):  # a job with a scratch folder
            tempfile.mkdtemp(prefix="left-by-the-runtime-")
        dtype = "int8" if behaviour == "int8" else "float32"
        scale, zero = (0.5, -3) if behaviour == "int8" else (None, None)
        spec = {"dtype": dtype, "shape": [-1], "scale": scale, "zero_point": zero}
        self.inputs = [dict(spec, name="x", aliases=["serving_default_x"])]
        self.outputs = [dict(spec, name="y", aliases=[]), dict(spec, name="z", aliases=[])]
        self.count = 0

    def prepare(self, arrays):
        self.x = arrays["x"]

    def invoke(self):
        print("a runtime that writes to stdout")
        os.write(1, b"and another, below Python\n")
        self.count += 1
        if self.behaviour == "raise":
            raise ValueError("no kernel")
        if self.behaviour == "segfault" and self.count == 2:
            sys.stderr.write("Fatal: about to crash\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.behaviour == "exit":
            os._exit(9)
        if self.behaviour == "leaks":
            KEPT.append(b"x" * 50_000)
            time.sleep(0.002)
        if self.behaviour == "slow":
            time.sleep(0.02)
        if self.behaviour.startswith("sleep-"):
            time.sleep(float(self.behaviour[len("sleep-") :]))
        if self.behaviour == "hang":
            time.sleep(60)

    def results(self):
        y = self.x if self.behaviour == "int8" else self.x * 2
        return {"y": y, "z": -y}

    def placement(self):
        return {"nodes": [], "options": self.options, "nan": float("nan")}
