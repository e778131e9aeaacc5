"""Runs an IR (.xml) or ONNX file in OpenVINO, on the device: Python 3.8 or newer, numpy and openvino.

Options: ``threads`` (INFERENCE_NUM_THREADS), ``inference_precision`` (INFERENCE_PRECISION_HINT: "f32",
"bf16", "f16", or "default" to let the plug-in choose: on recent CPUs that is bf16 even for an fp32 model;
our default is "f32"), ``device`` (default "CPU"), ``placement`` and ``profiling`` (PERF_COUNT: gives
``Session.placement`` and ``Session.profile`` their times).

``Session.placement()`` gives the compiled model as the plug-in executes it (``get_runtime_model()``):

    {"runtime": "openvino", "version": "2026.4.1-…", "device": "CPU", "inference_precision": "f32",
     "nodes": [{"name": "conv1/WithoutBiases",
                "type": "Convolution",               # layerType, the plug-in's own operator
                "precision": "u8",                   # runtimePrecision: what it executes in
                "primitive": "brgconv_avx512_i8",    # primitiveType: the kernel
                "original": ["/conv1/Conv", "/relu"],# originalLayersNames: what was fused into it
                "output_precisions": ["u8"], "output_layouts": ["acdb"],
                "inputs": [[1, 3, 224, 224], …], "outputs": [[1, 32, 112, 112]],   # shapes, -1 unknown
                "us": 31}, …]}                       # execTimeMcs of the last invocation, null: not executed

Nodes are in order of execution and include constants (type "Const"), inputs, outputs and reorders.
"""

from __future__ import annotations

import sys
import time

sys.modules.setdefault("openvino_telemetry", None)  # else "import openvino" writes a client id into the home


def versions():
    """Versions of the runtime and of numpy; imports the runtime."""
    import numpy
    import openvino

    return {"openvino": openvino.get_version(), "numpy": numpy.__version__}


def probe():
    """Whether models can run here, and on what."""
    import openvino

    devices = openvino.Core().available_devices
    return {"usable": bool(devices), "devices": devices, "why_not": "" if devices else "no device plug-in"}


def load(path, options):
    """Compile the model; an unknown option is an error."""
    return Session(path, options)


class Session:
    """One compiled model with one inference request."""

    def __init__(self, path, options):
        import openvino

        known = {"threads", "inference_precision", "device", "placement", "profiling"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError("unknown option %s; known: %s" % (unknown[0], ", ".join(sorted(known))))
        self._device = options.get("device", "CPU")
        config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        if self._device == "CPU":
            config["INFERENCE_NUM_THREADS"] = int(options["threads"])
        precision = options.get("inference_precision", "f32")
        if precision != "default":
            config["INFERENCE_PRECISION_HINT"] = precision
        if options.get("placement") or options.get("profiling"):
            config["PERF_COUNT"] = True
        self._model = openvino.Core().compile_model(path, self._device, config)
        self._request = self._model.create_infer_request()
        self._tensor = openvino.Tensor
        self.inputs = [_spec(i, "input%d" % n) for n, i in enumerate(self._model.inputs)]
        self.outputs = [_spec(o, "output%d" % n) for n, o in enumerate(self._model.outputs)]
        self._order = {spec["name"]: n for n, spec in enumerate(self.inputs)}

    def prepare(self, arrays):
        """Copy the inputs into tensors of the runtime's own."""
        for name, array in arrays.items():
            tensor = self._tensor(_element_type(array.dtype), array.shape)
            tensor.data[...] = array
            self._request.set_input_tensor(self._order[name], tensor)

    def invoke(self):
        """Run once. In this thread, without copies: start_async and wait cost some 10 µs more."""
        self._request.infer(share_outputs=True)

    def results(self):
        """Copies of the outputs of the last invocation."""
        return {s["name"]: self._request.get_output_tensor(n).data.copy() for n, s in enumerate(self.outputs)}

    def placement(self):
        """See the module's description."""
        import openvino

        hint = self._model.get_property("INFERENCE_PRECISION_HINT")
        return {
            "runtime": "openvino",
            "version": openvino.get_version(),
            "device": self._device,
            "inference_precision": hint.to_string() if hasattr(hint, "to_string") else str(hint),
            "nodes": [_node(op) for op in self._model.get_runtime_model().get_ordered_ops()],
        }

    def profile(self, runs):
        """Run ``runs`` times; see ``agent/profiling.py``. Operators that were fused away are left out."""
        nodes = {op.get_friendly_name(): op for op in self._model.get_runtime_model().get_ordered_ops()}
        operators, whole = {}, []
        for _ in range(runs):
            start = time.perf_counter()
            self.invoke()
            whole.append((time.perf_counter() - start) * 1e6)
            for info in self._request.get_profiling_info():
                if info.status.name == "EXECUTED":
                    times = operators.setdefault(info.node_name, (info, []))[1]
                    times.append(info.real_time.total_seconds() * 1e6)
        found = [_operator(info, times, nodes.get(name)) for name, (info, times) in operators.items()]
        return {"operators": found, "whole_us": whole, "notes": []}


def _operator(info, times, node):
    about = _node(node) if node is not None else {}
    return {
        "name": info.node_name,
        "op": info.node_type,
        "us": times,
        "placed": info.exec_type,
        "precision": about.get("precision", ""),
        "from": about.get("original") or [info.node_name],
    }


def _element_type(dtype):
    import openvino

    return openvino.Type(dtype)


def _shape(partial):
    return [d.get_length() if d.is_static else -1 for d in partial] if partial.rank.is_static else None


def _spec(port, fallback):
    names = sorted(port.get_names())
    return {
        "name": names[0] if names else fallback,
        "aliases": names[1:],
        "dtype": port.get_element_type().to_dtype().name,
        "shape": _shape(port.get_partial_shape()),
        "scale": None,
        "zero_point": None,
    }


def _node(op):
    info = {key: _text(value) for key, value in op.get_rt_info().items()}
    time = info.get("execTimeMcs", "")
    return {
        "name": op.get_friendly_name(),
        "type": info.get("layerType", op.get_type_name()),
        "precision": info.get("runtimePrecision", ""),
        "primitive": info.get("primitiveType", ""),
        "original": [n for n in info.get("originalLayersNames", "").split(",") if n],
        "output_precisions": [p for p in info.get("outputPrecisions", "").split(",") if p],
        "output_layouts": [p for p in info.get("outputLayouts", "").split(",") if p],
        "inputs": [_shape(i.get_partial_shape()) for i in op.inputs()],
        "outputs": [_shape(o.get_partial_shape()) for o in op.outputs()],
        "us": int(time) if time.isdigit() else None,
    }


def _text(value):
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)
