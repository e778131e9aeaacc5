"""Runs on the device: see targets/onnxruntime/runner.py for the contract."""

import os
import sys
import time


def versions():
    return {"acme": "1.0"}


def probe():
    return {"usable": True}


def load(path, options):
    return Session(path, options)


class Session:
    def __init__(self, path, options):
        import onnxruntime

        self._crash = options.get("crash", "no")
        self._slow = options.get("int8", False)
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = [_spec(i) for i in self._session.get_inputs()]
        self.outputs = [_spec(o) for o in self._session.get_outputs()]

    def prepare(self, arrays):
        self._feed = arrays

    def invoke(self):
        if self._crash == "segfault":
            import ctypes

            ctypes.string_at(0)
        elif self._crash == "abort":
            sys.stderr.write("acme: assertion failed in kernel 7\n")
            sys.stderr.flush()
            os.abort()
        if self._slow:
            time.sleep(0.02)
        self._values = self._session.run(None, self._feed)

    def results(self):
        return {o["name"]: v for o, v in zip(self.outputs, self._values)}  # noqa: B905 - Python 3.8

    def placement(self):
        return {}


def _spec(value):
    return {
        "name": value.name,
        "dtype": "float32",
        "shape": list(value.shape),
        "scale": None,
        "zero_point": None,
    }
