"""Runs a .tflite file in LiteRT, on the device: Python 3.8 or newer, numpy and one of ai_edge_litert,
tflite_runtime (needs numpy < 2) or tensorflow.lite, the first that is installed.

Options: ``threads``, ``xnnpack`` (default true; false runs the built-in kernels only), ``placement``
and ``profiling`` (no effect here: the plan can always be told, and profiling opens the model anew).

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

import ctypes
import importlib
import os
import time

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
            problems.append(error)
    absent = all(isinstance(error, ModuleNotFoundError) for error in problems)
    raise (ModuleNotFoundError if absent else ImportError)("; ".join(map(str, problems)))


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
        known = {"threads", "xnnpack", "placement", "profiling"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError("unknown option %s; known: %s" % (unknown[0], ", ".join(sorted(known))))
        self._package, self._module, self._distribution = _import()
        self._xnnpack = bool(options.get("xnnpack", True))
        self._path, self._threads = path, int(options["threads"])
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

    def profile(self, runs):
        """Run ``runs`` times; see ``agent/profiling.py``.

        The Python interpreter has no profiler; LiteRT's C library has one, which also tells the delegate's own
        operators. Where that library is absent (tflite_runtime, tensorflow) only the placement is told.
        """
        placed = self.placement()
        library = _library(self._package)
        why = "" if library else "%s has no profiler" % self._package
        inputs = [self._interpreter.get_tensor(s["index"]) for s in self.inputs]
        try:
            if library:
                model = Compiled(library, self._path, self._threads, self._xnnpack)
                for warm in (2, 0):
                    whole, events = model.run(inputs, warm or runs)
        except (RuntimeError, AttributeError) as error:  # another version's interface
            why = str(error)
        if why:
            notes = ["no times by operator, only where each runs: %s" % why]
            return {"operators": _untimed(placed), "whole_us": _whole(self.invoke, runs), "notes": notes}
        found = _matched(placed, _by_operator(events, runs))
        notes = ["LiteRT's profiler counts whole microseconds, rounded down"]
        return {"operators": found, "whole_us": whole, "notes": notes}


def _library(package):
    """LiteRT's C library, or None."""
    if package != "ai_edge_litert":
        return None
    folder = next(iter(importlib.import_module(package).__path__))
    try:
        library = ctypes.CDLL(os.path.join(folder, "libLiteRt.so"))
    except OSError:
        return None
    return library if hasattr(library, "LiteRtCompiledModelGetProfiler") else None


def _whole(invoke, runs):
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        invoke()
        found.append((time.perf_counter() - start) * 1e6)
    return found


_BUILTIN, _DELEGATED = 2, (4, 8)
"""Event types of TFLite's profiler: an operator of the interpreter's, one of a delegate's."""


class Compiled:
    """A model in LiteRT's C API (litert/c/litert_compiled_model.h), with its profiler switched on."""

    def __init__(self, library, path, threads, xnnpack):
        self._lib, self._kept = library, []
        self._env, options, model = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("LiteRtCreateEnvironment", 0, None, ctypes.byref(self._env))
        self._call("LiteRtCreateModelFromFile", self._env, path.encode(), ctypes.byref(model))
        self._call("LiteRtCreateOptions", ctypes.byref(options))
        self._call("LiteRtSetOptionsHardwareAccelerators", options, 1)  # the CPU
        mode = "xnnpack" if xnnpack else "builtin"
        self._option(options, "runtime_options_string", "enable_profiling = true\n")
        self._option(options, "xnnpack", 'kernel_mode = "%s"\nnum_threads = %d\n' % (mode, threads))
        self._model, self._profiler = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("LiteRtCreateCompiledModel", self._env, model, options, ctypes.byref(self._model))
        self._call("LiteRtCompiledModelGetProfiler", self._model, ctypes.byref(self._profiler))
        if not self._profiler:
            raise RuntimeError("this LiteRT has no profiler")
        signature = ctypes.c_void_p()
        self._call("LiteRtGetModelSignature", model, ctypes.c_size_t(0), ctypes.byref(signature))
        self._inputs = self._buffers("Input", signature)
        self._outputs = self._buffers("Output", signature)

    def _call(self, function, *arguments):
        status = getattr(self._lib, function)(*arguments)
        if status:
            raise RuntimeError("%s gave %d" % (function, status))

    def _option(self, options, identifier, text):
        """Options travel as TOML texts (litert/c/options/)."""
        destroy = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
        payload, opaque = ctypes.create_string_buffer(text.encode()), ctypes.c_void_p()
        self._kept += [destroy, payload]
        data = ctypes.cast(payload, ctypes.c_void_p)
        self._call("LiteRtCreateOpaqueOptions", identifier.encode(), data, destroy, ctypes.byref(opaque))
        self._call("LiteRtAddOpaqueOptions", options, opaque)

    def _buffers(self, kind, signature):
        count, found = ctypes.c_size_t(), []
        self._call("LiteRtGetNumSignature%ss" % kind, signature, ctypes.byref(count))
        for index in map(ctypes.c_size_t, range(count.value)):
            tensor, wanted, buffer = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
            self._call("LiteRtGetSignature%sTensorByIndex" % kind, signature, index, ctypes.byref(tensor))
            kept = ctypes.create_string_buffer(1024)  # a LiteRtRankedTensorType, which is smaller
            self._call("LiteRtGetRankedTensorType", tensor, kept)
            requirements = "LiteRtGetCompiledModel%sBufferRequirements" % kind
            self._call(requirements, self._model, ctypes.c_size_t(0), index, ctypes.byref(wanted))
            create = "LiteRtCreateManagedTensorBufferFromRequirements"
            self._call(create, self._env, kept, wanted, ctypes.byref(buffer))
            found.append(buffer)
        return found

    def run(self, inputs, runs):
        """Microseconds of each run, and the profiler's events."""
        for buffer, array in zip(self._inputs, inputs):  # noqa: B905 - Python 3.8
            self._fill(buffer, array)
        ins = (ctypes.c_void_p * len(self._inputs))(*[b.value for b in self._inputs])
        outs = (ctypes.c_void_p * len(self._outputs))(*[b.value for b in self._outputs])
        sizes = ctypes.c_size_t(len(ins)), ctypes.c_size_t(len(outs))
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        first = ctypes.c_size_t(0)
        whole = _whole(
            lambda: self._call("LiteRtRunCompiledModel", self._model, first, sizes[0], ins, sizes[1], outs),
            runs,
        )
        self._call("LiteRtStopProfiler", self._profiler)
        return whole, self._events()

    def _fill(self, buffer, array):
        size, address = ctypes.c_size_t(), ctypes.c_void_p()
        self._call("LiteRtGetTensorBufferPackedSize", buffer, ctypes.byref(size))
        if size.value != array.nbytes:
            raise ValueError("profiling needs inputs of the file's own shapes")
        self._call("LiteRtLockTensorBuffer", buffer, ctypes.byref(address), 1)  # to write
        ctypes.memmove(address, array.tobytes(), array.nbytes)
        self._call("LiteRtUnlockTensorBuffer", buffer)

    def _events(self):
        """Tag, type, microseconds, number of each event (ProfiledEventData in litert_profiler_event.h).

        The structure's size differs between versions by the memory figures in it: it is read off what the
        library writes.
        """
        count = ctypes.c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, ctypes.byref(count))
        if not count.value:
            return []
        room = ctypes.create_string_buffer(b"\xa5" * (256 * count.value), 256 * count.value)
        self._call("LiteRtGetProfilerEvents", self._profiler, count, room)
        stride = -(-len(room.raw.rstrip(b"\xa5")) // count.value)
        stride += -stride % 8
        memory = (stride - 56) // 2
        if (stride - 56) % 16 or not 0 <= memory <= 64:
            raise RuntimeError("this LiteRT's profiler events have a form that is not known")

        class Event(ctypes.Structure):
            _fields_ = (
                ("tag", ctypes.c_char_p),
                ("type", ctypes.c_int),
                ("start", ctypes.c_uint64),
                ("us", ctypes.c_uint64),
                ("memory", ctypes.c_char * (2 * memory)),
                ("number", ctypes.c_uint64),
                ("more", ctypes.c_uint64),
                ("source", ctypes.c_int),
            )

        events = (Event * count.value).from_buffer(room)
        return [((e.tag or b"").decode("utf-8", "replace"), e.type, e.us, e.number) for e in events]


def _by_operator(events, runs):
    """Operators in order of execution: ``partition`` is None for the interpreter's own, whose ``number`` is the
    node's index in the file."""
    found, order, partition, last = {}, [], -1, None
    for tag, kind, us, number in events:
        if tag == "Invoke":
            partition, last = -1, None
            continue
        if kind == _BUILTIN and "delegate" not in tag.lower():
            last = None
            key = (None, number, tag)
        elif kind in _DELEGATED:
            partition += last is None or number <= last
            last = number
            key = (partition, number, tag)
        else:
            continue
        if key not in found:
            found[key] = []
            order.append(key)
        found[key].append(us)
    return [
        {"partition": p, "number": n, "tag": t, "us": found[p, n, t]}
        for p, n, t in order
        if len(found[p, n, t]) == runs
    ]


def _untimed(placed):
    tensors = placed["tensors"]
    return [
        {
            "name": tensors[str(n["outputs"][0])]["name"],
            "op": n["op"],
            "us": None,
            "placed": "built-in kernel" if n["delegate"] is None else "XNNPACK",
            "precision": tensors[str(n["outputs"][0])]["dtype"],
            "from": [tensors[str(t)]["name"] for t in n["outputs"]],
        }
        for n in placed["nodes"] or []
    ]


def _matched(placed, timed):
    """The timed operators with the file's nodes: by index, or for a delegate's by order and kind."""
    nodes = placed["nodes"] or []
    about = dict(zip([n["index"] for n in nodes], _untimed(placed)))  # noqa: B905 - Python 3.8
    found = []
    for partition in range(-1, placed["delegates"] or 0):
        mine = [n for n in nodes if n["delegate"] == (None if partition < 0 else partition)]
        theirs = [t for t in timed if (-1 if t["partition"] is None else t["partition"]) == partition]
        if partition < 0:
            pairs = {i: about.get(t["number"]) for i, t in enumerate(theirs)}
        else:
            aligned = align([t["tag"] for t in theirs], [n["op"] for n in mine])
            pairs = {i: about[mine[j]["index"]] for i, j in aligned}
        for i, t in enumerate(theirs):
            node = pairs.get(i) or {"name": t["tag"], "op": "", "precision": "", "from": []}
            where = "built-in kernel" if partition < 0 else "XNNPACK: " + t["tag"]
            found.append(dict(node, us=t["us"], placed=where, op=node["op"] or t["tag"]))
    return found


_KINDS = {
    "fully connected": ("FULLY_CONNECTED", "CONV_2D", "BATCH_MATMUL"),
    "convolution": ("CONV_2D", "DEPTHWISE_CONV_2D"),
    "deconvolution": ("TRANSPOSE_CONV",),
    "batch matrix multiply": ("BATCH_MATMUL",),
    "convert": ("QUANTIZE", "DEQUANTIZE", "CAST"),
    "mean": ("MEAN", "AVERAGE_POOL_2D"),
    "global": ("MEAN", "SUM", "AVERAGE_POOL_2D"),
    "subtract": ("SUB",),
    "multiply": ("MUL",),
    "divide": ("DIV",),
    "sigmoid": ("LOGISTIC",),
    "clamp": ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"),
    "constant pad": ("PAD", "PADV2"),
    "average pooling": ("AVERAGE_POOL_2D",),
    "max pooling": ("MAX_POOL_2D",),
    "reshape": ("RESHAPE", "SQUEEZE", "EXPAND_DIMS"),
    "copy": ("RESHAPE", "SQUEEZE", "EXPAND_DIMS"),
    "slice": ("SLICE", "STRIDED_SLICE", "SPLIT"),
    "negate": ("NEG",),
    "square root": ("SQRT",),
    "reciprocal square root": ("RSQRT",),
    "hardswish": ("HARD_SWISH",),
}
"""XNNPACK's words for TFLite's operators, where they are not the same."""


def alike(tag, op):
    """Whether the delegate's operator may have come from the file's."""
    words = tag.lower()
    if op.lower().replace("_", " ") in words or op.lower().replace("_", "") in words:
        return True
    return any(op in ops for kind, ops in _KINDS.items() if kind in words)


def align(tags, ops):
    """Pairs of indices, in order on both sides: as many as possible (longest common subsequence)."""
    best = [[0] * (len(ops) + 1) for _ in range(len(tags) + 1)]
    for i in reversed(range(len(tags))):
        for j in reversed(range(len(ops))):
            skip = max(best[i + 1][j], best[i][j + 1])
            best[i][j] = max(skip, 1 + best[i + 1][j + 1]) if alike(tags[i], ops[j]) else skip
    pairs, i, j = [], 0, 0
    while i < len(tags) and j < len(ops):
        if alike(tags[i], ops[j]) and best[i][j] == 1 + best[i + 1][j + 1]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


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
