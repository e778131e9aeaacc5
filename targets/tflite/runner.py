"""Runs a .tflite file in LiteRT, on the device: Python 3.8 or newer, numpy and one of ai_edge_litert,
tflite_runtime (needs numpy < 2) or tensorflow.lite, the first that is installed.

Options: ``threads``, ``xnnpack`` (default true; false runs the built-in kernels only), ``placement``
(no effect here: the plan can always be told).

Inputs and outputs are known by their name in the model's only signature (``aliases`` has the tensor's own
name), or by the tensor's name where there is no signature or more than one.

``Session.placement()`` gives the execution plan after delegation:

    {"runtime": "litert", "package": "ai_edge_litert", "version": "2.3.0", "xnnpack": true,
     "delegates": 5,                                  # how many partitions a delegate took
     "nodes": [{"index": 0, "op": "CONV_2D",
                "inputs": [0, 6, 4], "outputs": [7],  # tensor indices; -1 is an absent optional input
                "delegate": 0}, …],                   # which partition runs it; null: a built-in kernel
     "tensors": {"0": {"name": "x", "dtype": "int8", "shape": [1, 224, 224, 3]}, …}}

Nodes are the model's own, without the delegates' stand-ins. ``nodes`` is null where this runtime does not
tell.
"""

from __future__ import annotations

import importlib
import os

RUNTIME = "LiteRT"
EXTRA = "tflite"

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_PACKAGES = (
    ("ai_edge_litert", "ai_edge_litert.interpreter", "ai-edge-litert"),
    ("tflite_runtime", "tflite_runtime.interpreter", "tflite-runtime"),
    ("tensorflow", "tensorflow.lite", "tensorflow"),
)


def _import():
    problems = []
    for package, module, distribution in _PACKAGES:
        try:
            return package, importlib.import_module(module), distribution
        except ImportError as error:
            problems.append(str(error))
    raise ImportError("; ".join(problems))


def versions():
    """Versions of the runtime and of numpy; imports the runtime."""
    import numpy

    package, _, distribution = _import()
    if package == "tflite_runtime" and int(numpy.__version__.split(".")[0]) >= 2:
        raise ImportError("tflite_runtime needs numpy < 2, found %s" % numpy.__version__)
    return {package: _version(distribution), "numpy": numpy.__version__}


def _version(distribution):
    from importlib import metadata

    for name in (distribution, distribution + "-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def probe():
    """LiteRT on the CPU runs wherever it imports."""
    return {"usable": True}


def load(path, options):
    """Open the model; an unknown option is an error."""
    return Session(path, options)


class Session:
    """One interpreter."""

    def __init__(self, path, options):
        known = {"threads", "xnnpack", "placement"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError("unknown option %s; known: %s" % (unknown[0], ", ".join(sorted(known))))
        self._package, self._module, self._distribution = _import()
        self._xnnpack = bool(options.get("xnnpack", True))
        resolver = self._module.experimental if hasattr(self._module, "experimental") else self._module
        kinds = resolver.OpResolverType
        kind = kinds.AUTO if self._xnnpack else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._interpreter = self._module.Interpreter(
            model_path=path,
            num_threads=int(options["threads"]),
            experimental_op_resolver_type=kind,
        )
        self._interpreter.allocate_tensors()
        self._index()

    def _index(self):
        signatures = self._interpreter._get_full_signature_list()
        only = next(iter(signatures.values())) if len(signatures) == 1 else {}
        self.inputs = [_spec(d, only.get("inputs", {})) for d in self._interpreter.get_input_details()]
        self.outputs = [_spec(d, only.get("outputs", {})) for d in self._interpreter.get_output_details()]
        self._shapes = {s["name"]: tuple(s["current"]) for s in self.inputs}

    def prepare(self, arrays):
        """Resize where a shape is new, then copy the inputs into the interpreter's tensors."""
        indices = {s["name"]: s["index"] for s in self.inputs}
        resized = False
        for name, array in arrays.items():
            if tuple(array.shape) != self._shapes[name]:
                self._interpreter.resize_tensor_input(indices[name], list(array.shape), strict=True)
                self._shapes[name] = tuple(array.shape)
                resized = True
        if resized:
            self._interpreter.allocate_tensors()
        for name, array in arrays.items():
            self._interpreter.set_tensor(indices[name], array)
        self.invoke = self._interpreter.invoke

    def invoke(self):
        """Run once (``prepare`` puts the interpreter's own method in this place: no frame of ours)."""
        self._interpreter.invoke()

    def results(self):
        """Copies of the outputs of the last invocation."""
        return {s["name"]: self._interpreter.get_tensor(s["index"]) for s in self.outputs}

    def placement(self):
        """See the module's description."""
        raw = {
            "runtime": "litert",
            "package": self._package,
            "version": _version(self._distribution),
            "xnnpack": self._xnnpack,
            "delegates": None,
            "nodes": None,
            "tensors": {},
        }
        if not hasattr(self._interpreter, "_get_ops_details"):
            return raw
        ops = self._interpreter._get_ops_details()
        partitions = [o for o in ops if o["op_name"] == "DELEGATE"]
        nodes = [o for o in ops if o["op_name"] != "DELEGATE"]
        owner = _owners(nodes, partitions)
        raw["delegates"] = len(partitions)
        raw["nodes"] = [
            {
                "index": int(o["index"]),
                "op": o["op_name"],
                "inputs": [int(i) for i in o["inputs"]],
                "outputs": [int(i) for i in o["outputs"]],
                "delegate": owner.get(int(o["index"])),
            }
            for o in nodes
        ]
        raw["tensors"] = {str(d["index"]): _tensor(d) for d in self._interpreter.get_tensor_details()}
        return raw


def _owners(nodes, partitions):
    """Node index → partition: what is reached backwards from a partition's outputs up to its inputs."""
    producer = {int(t): n for n in nodes for t in n["outputs"]}
    owner = {}
    for number, partition in enumerate(partitions):
        stop = {int(t) for t in partition["inputs"]}
        stack = [int(t) for t in partition["outputs"]]
        while stack:
            node = producer.get(stack.pop())
            if node is None or int(node["index"]) in owner:
                continue
            owner[int(node["index"])] = number
            stack.extend(int(t) for t in node["inputs"] if int(t) not in stop)
    return owner


def _tensor(detail):
    import numpy

    return {
        "name": detail["name"],
        "dtype": numpy.dtype(detail["dtype"]).name,
        "shape": [int(d) for d in detail["shape"]],
    }


def _spec(detail, signature):
    spec = _tensor(detail)
    index = int(detail["index"])
    own = [name for name, i in signature.items() if int(i) == index]
    quantization = detail["quantization_parameters"]
    scales, zeros = quantization["scales"], quantization["zero_points"]
    spec.update(
        name=own[0] if own else spec["name"],
        aliases=own[1:] + ([spec["name"]] if own else []),
        index=index,
        current=spec["shape"],
        shape=[int(d) for d in detail.get("shape_signature", detail["shape"])],
        scale=float(scales[0]) if len(scales) else None,
        zero_point=int(zeros[0]) if len(zeros) else None,
    )
    return spec
