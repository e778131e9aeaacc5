"""Runs a serialized engine in TensorRT or TensorRT-RTX, on the device: Python 3.8 or newer, numpy and that module.

The two differ in the module that is imported, which is called as the backend that was packed with this file.

It needs an NVIDIA GPU and its driver (``libcuda``, called through ctypes: no other package); without one
``probe`` says so (engines may be built without a GPU; they do not even deserialize without one).

Options: ``gpu`` (index, default 0), ``profile`` (optimization profile, default 0), ``cuda_graph`` (record the
launches of an inference once for each shape, then launch the record), ``threads`` (recorded; the work is the
GPU's), ``placement`` and ``profiling`` (no effect: the engine can always be inspected).

An engine is code: before it is loaded, ``engine.json`` beside it must say that it is for this device
(``runner_key.py``).

``invoke`` enqueues and waits: what is timed is the launch and the GPU's work. Inputs are copied to the GPU by
``prepare``, outputs from it by ``results``, outside the timer.

``Session.placement()`` gives what the engine inspector knows:

    {"runtime": "tensorrt", "version": "…", "gpu": "NVIDIA Jetson Orin", "compute_capability": [8, 7],
     "device_memory": 4194304,                          # bytes of activations, as the engine states them
     "layers": [{"Name": "conv1 + relu1", "LayerType": "CaskConvolution", "Inputs": [{"Name": …,
                 "Dimensions": […], "Format/Datatype": "Int8 NC/32HW32"}], "Outputs": […],
                 "TacticName": …, "Metadata": "[ONNX Layer: conv1]…"}, …]}

The layers are the inspector's own JSON. An engine built without detailed profiling verbosity gives plain
strings (names) in place of the dictionaries.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import time
from contextlib import contextmanager

from .backend import NAME  # "tensorrt" or "tensorrt_rtx"


def versions():
    """Versions of the runtime and of numpy; imports the runtime."""
    import numpy

    return {NAME: importlib.import_module(NAME).__version__, "numpy": numpy.__version__}


def probe():
    """Whether there is a GPU with a driver that works."""
    try:
        return {"usable": True, "gpus": Cuda.names()}
    except (OSError, CudaError) as error:
        return {"usable": False, "why_not": "there is no usable NVIDIA GPU (%s)" % error}


def load(path, options):
    """Deserialize the engine; an unknown option is an error."""
    return Session(path, options)


def _refuse_mismatch(path, data, trt, cuda):
    """Raise for an engine that is damaged or for another device, before a byte of it is loaded."""
    from . import runner_key
    from .failure import JobError

    here = runner_key.here(NAME, trt.__version__, cuda, runner_key.driver())
    found = runner_key.differences(path, data, here)
    if found:
        raise JobError("engine", "; ".join(found))


class Session:
    """One engine with one execution context, one stream, and buffers for its tensors."""

    def __init__(self, path, options):
        trt = importlib.import_module(NAME)
        known = {"threads", "gpu", "profile", "placement", "profiling", "cuda_graph"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError("unknown option %s; known: %s" % (unknown[0], ", ".join(sorted(known))))
        self._trt = trt
        self._cuda = Cuda(int(options.get("gpu", 0)))
        before = self._cuda.memory()[0]
        with open(path, "rb") as file:
            data = file.read()
        _refuse_mismatch(path, data, trt, self._cuda)
        logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise ValueError("the engine does not fit this version of %s or this GPU" % NAME)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise ValueError("there is not enough GPU memory for an execution context")
        self._stream = self._cuda.stream()
        if options.get("profile"):
            self._context.set_optimization_profile_async(int(options["profile"]), self._stream.value)
            self._cuda.wait(self._stream)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = [self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names]
        self.inputs = [self._spec(n) for n, i in zip(names, is_input) if i]  # noqa: B905 - Python 3.8
        self.outputs = [self._spec(n) for n, i in zip(names, is_input) if not i]  # noqa: B905
        self._buffers = {}
        self._host = {}
        self._recorded = None
        self._records = bool(options.get("cuda_graph", False))
        self._memory = before - self._cuda.memory()[0]

    def _spec(self, name):
        import numpy

        dtype = self._engine.get_tensor_dtype(name)
        try:
            dtype = numpy.dtype(self._trt.nptype(dtype)).name
        except TypeError:
            raise ValueError("tensor %r has the type %s, which numpy lacks" % (name, dtype)) from None
        shape = [int(d) for d in self._engine.get_tensor_shape(name)]
        return {"name": name, "dtype": dtype, "shape": shape, "scale": None, "zero_point": None}

    def prepare(self, arrays):
        """Set the shapes, copy the inputs to the GPU, make room for the outputs."""
        self._forget()
        for name, array in arrays.items():
            if self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST:
                self._host[name] = array  # a shape: read by the CPU, kept alive here
                self._context.set_tensor_address(name, array.ctypes.data)
                continue
            if not self._context.set_input_shape(name, tuple(array.shape)):
                raise ValueError(
                    "input %r: the engine's profile lacks the shape %s" % (name, list(array.shape))
                )
            self._cuda.upload(self._room(name, array.nbytes), array)
        missing = self._context.infer_shapes()
        if missing:
            raise ValueError("the engine still needs the shapes of: %s" % ", ".join(missing))
        for spec in self.outputs:
            shape = tuple(self._context.get_tensor_shape(spec["name"]))
            if -1 in shape:  # known only when the values are
                self._room(spec["name"], self._context.get_max_output_size(spec["name"]))
            else:
                self._room(spec["name"], _bytes(shape, spec["dtype"]))

    def _room(self, name, size):
        """A buffer of at least ``size`` bytes for a tensor, bound to the context."""
        pointer, have = self._buffers.get(name, (None, -1))
        if have < size:
            if pointer is not None:
                self._cuda.free(pointer)
            pointer = self._cuda.allocate(size)
            self._buffers[name] = (pointer, size)
        self._context.set_tensor_address(name, pointer.value)
        return pointer

    def invoke(self):
        """Enqueue once and wait for the end."""
        self._enqueue()
        self._cuda.wait(self._stream)

    def _enqueue(self):
        """The launches of one inference; with ``cuda_graph`` their record, made after one that was not recorded: the
        first enqueue of a shape does what may not be recorded."""
        if self._recorded is not None:
            self._cuda.launch(self._recorded, self._stream)
            return
        self._launch()
        if self._records:
            self._cuda.wait(self._stream)
            self._recorded = self._cuda.record(self._stream, self._launch)

    def _launch(self):
        if not self._context.execute_async_v3(self._stream.value):
            raise RuntimeError("the engine could not be enqueued")

    def _forget(self):
        """A record holds shapes and addresses."""
        if self._recorded is not None:
            self._cuda.drop(self._recorded)
            self._recorded = None

    def gpu_times(self, runs):
        """Milliseconds of GPU time of each of ``runs`` inferences, by CUDA events around the launches."""
        with self._cuda.events() as (before, after):
            times = []
            for _ in range(runs):
                self._cuda.mark(before, self._stream)
                self._enqueue()
                self._cuda.mark(after, self._stream)
                self._cuda.wait(self._stream)
                times.append(self._cuda.between(before, after))
            return times

    def results(self):
        """The outputs of the last invocation."""
        import numpy

        found = {}
        for spec in self.outputs:
            shape = tuple(self._context.get_tensor_shape(spec["name"]))
            array = numpy.empty(shape, spec["dtype"])
            self._cuda.download(array, self._buffers[spec["name"]][0])
            found[spec["name"]] = array
        return found

    def device_memory(self):
        """Bytes of GPU memory that loading took, and that the engine states for its activations."""
        return {"load": max(0, self._memory), "activations": self._activations()}

    def _activations(self):
        """Bytes; the first name is TensorRT 10's and later ones'."""
        size = getattr(self._engine, "device_memory_size_v2", None)
        return int(self._engine.device_memory_size if size is None else size)

    def placement(self):
        """See the module's description."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return {
            "runtime": NAME,
            "version": self._trt.__version__,
            "gpu": self._cuda.name,
            "compute_capability": self._cuda.capability,
            "device_memory": self._activations(),
            "layers": json.loads(text).get("Layers", []),
        }

    def profile(self, runs):
        """Run ``runs`` times; see ``agent/profiling.py``. Times are those that IProfiler is told."""
        times = {}

        class Times(self._trt.IProfiler):
            def __init__(self):
                super().__init__()

            def report_layer_time(self, layer_name, ms):
                times.setdefault(layer_name, []).append(ms * 1e3)

        recorder, whole = Times(), []
        self._context.profiler = recorder
        for _ in range(runs):
            start = time.perf_counter()
            self.invoke()
            whole.append((time.perf_counter() - start) * 1e6)
        layers = {e["Name"]: e for e in self.placement()["layers"] if isinstance(e, dict)}
        found = [_operator(name, us, layers.get(name, {})) for name, us in times.items()]
        return {"operators": found, "whole_us": whole, "notes": []}


def _operator(name, us, layer):
    outputs = [o.get("Format/Datatype", "") for o in layer.get("Outputs", [])]
    return {
        "name": name,
        "op": layer.get("LayerType", ""),
        "us": us,
        "placed": layer.get("TacticName", ""),
        "precision": outputs[0].split()[0] if outputs and outputs[0] else "",
        "from": re.findall(r"\[ONNX Layer: ([^\]]*)\]", layer.get("Metadata", "")) or name.split(" + "),
    }


def _bytes(shape, dtype):
    import numpy

    size = numpy.dtype(dtype).itemsize
    for d in shape:
        size *= d
    return size


class CudaError(Exception):
    """The driver said no."""


class Cuda:
    """The part of the CUDA driver API (libcuda) that is needed here, on one device's primary context."""

    def __init__(self, index):
        self._lib = self._open()
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), index)
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self.name = self._name(self._lib, device)
        self.capability = [self._attribute(75, device), self._attribute(76, device)]

    @staticmethod
    def _open():
        try:
            lib = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise OSError("no driver: %s" % error) from error
        status = lib.cuInit(0)
        if status:
            raise CudaError("cuInit gave %d" % status)
        return lib

    @staticmethod
    def _name(lib, device):
        text = ctypes.create_string_buffer(128)
        status = lib.cuDeviceGetName(text, 128, device)
        if status:
            raise CudaError("cuDeviceGetName gave %d" % status)
        return text.value.decode("utf-8", "replace")

    @classmethod
    def names(cls):
        """The GPUs' names; raises CudaError where there is none."""
        lib = cls._open()
        count = ctypes.c_int()
        status = lib.cuDeviceGetCount(ctypes.byref(count))
        if status or not count.value:
            raise CudaError("the driver knows no GPU")
        return [cls._name(lib, i) for i in range(count.value)]

    def _call(self, function, *arguments):
        status = getattr(self._lib, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._lib.cuGetErrorString(status, ctypes.byref(text))
            raise CudaError("%s: %s" % (function, (text.value or b"?").decode()))

    def _attribute(self, number, device):
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def memory(self):
        """Bytes of GPU memory: what nobody uses, and all."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def record(self, stream, work):
        """What ``work`` enqueues on the stream, as a graph that can be launched again and again."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", stream, 1)  # this thread's calls only
        try:
            work()
        finally:
            self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        self._call("cuGraphDestroy", graph)
        return executable

    def launch(self, executable, stream):
        """A recorded graph."""
        self._call("cuGraphLaunch", executable, stream)

    def drop(self, executable):
        """Forget a recorded graph."""
        self._call("cuGraphExecDestroy", executable)

    @contextmanager
    def events(self):
        """Two events that keep the time."""
        pair = (ctypes.c_void_p(), ctypes.c_void_p())
        for event in pair:
            self._call("cuEventCreate", ctypes.byref(event), 0)
        try:
            yield pair
        finally:
            for event in pair:
                self._call("cuEventDestroy_v2", event)

    def mark(self, event, stream):
        """The event happens when the stream comes to it."""
        self._call("cuEventRecord", event, stream)

    def between(self, before, after):
        """Milliseconds."""
        value = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(value), before, after)
        return value.value

    def stream(self):
        """A stream that does not wait for the default one."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), 1)
        return stream

    def wait(self, stream):
        """Until the stream's work is done."""
        self._call("cuStreamSynchronize", stream)

    def allocate(self, size):
        """A device pointer."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(1, size)))
        return pointer

    def free(self, pointer):
        """Give memory back."""
        self._call("cuMemFree_v2", pointer)

    def upload(self, pointer, array):
        """From the host to the GPU."""
        if array.nbytes:
            self._call(
                "cuMemcpyHtoD_v2",
                pointer,
                array.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_size_t(array.nbytes),
            )

    def download(self, array, pointer):
        """From the GPU to the host."""
        if array.nbytes:
            self._call(
                "cuMemcpyDtoH_v2",
                array.ctypes.data_as(ctypes.c_void_p),
                pointer,
                ctypes.c_size_t(array.nbytes),
            )
