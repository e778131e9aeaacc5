"""Runs an ONNX file in ONNX Runtime, on the device: Python 3.8 or newer, numpy and onnxruntime, nothing else.

Options: ``threads`` (intra-op), ``graph_optimization`` ("all", "extended", "basic", "disabled"),
``provider`` (default "CPUExecutionProvider"), ``spinning`` (let idle threads spin: the runtime's default),
``placement`` (profile the first invocation, so that ``Session.placement`` can tell), ``profiling`` (the same for
``Session.profile``).

``Session.placement()`` gives what the profiler saw in the first invocation, after all graph optimizations:

    {"runtime": "onnxruntime", "version": "1.31.1", "graph_optimization": "all",
     "providers": ["CPUExecutionProvider"],
     "nodes": [{"name": "/conv1/Conv_quant",          # the executed node; fused nodes keep a root's name
                "op": "QLinearConv",                  # op type as executed, after fusion
                "provider": "CPUExecutionProvider",
                "inputs": [{"dtype": "uint8", "shape": [1, 3, 224, 224]}, …],   # weights included, where
                "outputs": [{"dtype": "uint8", "shape": [1, 32, 112, 112]}],    # the kernel reads them
                "us": 31}, …]}                        # microseconds of that one invocation

Nodes are in order of execution; nodes folded away are absent; a node inside a loop appears each time it
runs. Empty optional inputs are ``null``. ONNX Runtime may pad channels for its blocked layout (NCHWc): a
``Conv`` then shows the padded weights.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: on by default since 1.29

import json
import shutil
import tempfile

_SUFFIX = "_kernel_time"
_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    "string": "str",
}


def versions():
    """Versions of the runtime and of numpy; imports the runtime."""
    import numpy
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__, "numpy": numpy.__version__}


def probe():
    """Whether models can run here."""
    import onnxruntime

    return {"usable": True, "providers": onnxruntime.get_available_providers()}


def load(path, options):
    """Open the model with one provider; an unknown option is an error."""
    return Session(path, options)


class Session:
    """One loaded model."""

    def __init__(self, path, options):
        import onnxruntime

        known = {"threads", "graph_optimization", "provider", "spinning", "placement", "profiling"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError("unknown option %s; known: %s" % (unknown[0], ", ".join(sorted(known))))
        self._level = options.get("graph_optimization", "all")
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = int(options["threads"])
        settings.inter_op_num_threads = 1
        settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[self._level])
        if "spinning" in options:
            settings.add_session_config_entry(
                "session.intra_op.allow_spinning", "1" if options["spinning"] else "0"
            )
        profiled = options.get("placement") or options.get("profiling")
        self._profile = tempfile.mkdtemp(prefix="ort-profile-") if profiled else None
        if self._profile:
            settings.enable_profiling = True
            settings.profile_file_prefix = os.path.join(self._profile, "p")
        provider = options.get("provider", "CPUExecutionProvider")
        if provider not in onnxruntime.get_available_providers():
            raise ValueError("this ONNX Runtime has no %s" % provider)
        self._session = onnxruntime.InferenceSession(path, settings, providers=[provider])
        self.inputs = [_spec(i) for i in self._session.get_inputs()]
        self.outputs = [_spec(o) for o in self._session.get_outputs()]
        self._names = [o["name"] for o in self.outputs]
        self._feed = {}
        self._values = []

    def prepare(self, arrays):
        """Put the inputs where the runtime reads them."""
        from onnxruntime import OrtValue

        self._feed = {name: OrtValue.ortvalue_from_numpy(a) for name, a in arrays.items()}

    def invoke(self):
        """Run once."""
        self._values = self._session.run_with_ort_values(self._names, self._feed)

    def results(self):
        """The outputs of the last invocation."""
        return {name: self._values[i].numpy() for i, name in enumerate(self._names)}

    def placement(self):
        """See the module's description."""
        import onnxruntime

        raw = {
            "runtime": "onnxruntime",
            "version": onnxruntime.__version__,
            "graph_optimization": self._level,
            "providers": self._session.get_providers(),
            "nodes": None,
        }
        if self._profile:
            raw["nodes"] = [_node(e) for e in self._events() if _is_node(e)]
        return raw

    def profile(self, runs):
        """Run ``runs`` times; see ``agent/profiling.py``. The profiler's events are of every run since loading."""
        for _ in range(runs):
            self.invoke()
        events = self._events()
        ends = [e for e in events if e.get("name") == "model_run"][-runs:]
        operators = {}
        for event in events:
            if _is_node(event) and event["ts"] >= ends[0]["ts"]:
                node = _node(event)
                times = operators.setdefault((node["name"], node["op"]), (node, []))[1]
                times.append(node["us"])
        return {
            "operators": [_operator(node, times, runs) for node, times in operators.values()],
            "whole_us": [e["dur"] for e in ends],
            "notes": [],
        }

    def _events(self):
        with open(self._session.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
        shutil.rmtree(self._profile, ignore_errors=True)
        self._profile = None
        return events


def _operator(node, times, runs):
    dtypes = [t["dtype"] for t in node["outputs"] if t] or [""]
    each = len(times) // runs or 1  # in a loop's body a node runs more than once
    return {
        "name": node["name"],
        "op": node["op"],
        "us": [sum(times[i : i + each]) for i in range(0, len(times), each)],
        "placed": node["provider"],
        "precision": dtypes[0],
        "from": [node["name"]],
    }


def _spec(value):
    dtype = value.type[len("tensor(") : -1] if value.type.startswith("tensor(") else value.type
    return {
        "name": value.name,
        "dtype": _DTYPES.get(dtype, dtype),
        "shape": list(value.shape),
        "scale": None,
        "zero_point": None,
    }


def _is_node(event):
    return event.get("cat") == "Node" and event["name"].endswith(_SUFFIX)


def _node(event):
    args = event["args"]
    return {
        "name": event["name"][: -len(_SUFFIX)],
        "op": args["op_name"],
        "provider": args.get("provider", ""),
        "inputs": [_tensor(t) for t in args.get("input_type_shape", [])],
        "outputs": [_tensor(t) for t in args.get("output_type_shape", [])],
        "us": event["dur"],
    }


def _tensor(entry):
    for dtype, shape in entry.items():
        return {"dtype": _DTYPES.get(dtype, dtype), "shape": shape}
    return None
