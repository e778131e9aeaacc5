"""Stands in for NVIDIA's module of this name, of the release that EDGEKIT_STANDIN names. See README.md.

What a release does not have is not here: a call of a later one ends with AttributeError, as on the device.
"""

import ctypes
import enum
import json
import os
import time

import fake_parser
import generations
import numpy as np

_DEVICE = generations.here()
if _DEVICE.get("no_python"):
    raise ModuleNotFoundError("No module named 'tensorrt'")
__version__ = _DEVICE["version"]
_RELEASE = generations.release(__version__)
_STRONG_ONLY, _TYPED, _MONITORS = _RELEASE >= (11, 0), _RELEASE >= (9, 0), _RELEASE >= (8, 6)


def _names(name, members):
    return enum.IntEnum(name, [(m, i) for i, m in enumerate(members)])


NetworkDefinitionCreationFlag = _names(
    "NetworkDefinitionCreationFlag",
    [*([] if _STRONG_ONLY else ["EXPLICIT_BATCH"]), *(["STRONGLY_TYPED"] if _TYPED else [])],
)
_FLAGS = ["TF32", "GPU_FALLBACK"] + ([] if _STRONG_ONLY else ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"])
_FLAGS += ["FP8"] if _MONITORS and not _STRONG_ONLY else []
_FLAGS += ["BF16"] if _TYPED and not _STRONG_ONLY else []
BuilderFlag = _names("BuilderFlag", _FLAGS)
MemoryPoolType = _names("MemoryPoolType", ["WORKSPACE", "DLA_MANAGED_SRAM"])
ProfilingVerbosity = _names("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"])
DeviceType = _names("DeviceType", ["GPU", "DLA"])
TensorIOMode = _names("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
TensorLocation = _names("TensorLocation", ["DEVICE", "HOST"])
LayerInformationFormat = _names("LayerInformationFormat", ["ONELINE", "JSON"])
float32, float16, int8 = "float32", "float16", "int8"


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self):
        pass


class Logger(ILogger):
    def __init__(self, level=ILogger.WARNING):
        self.level = level

    def log(self, severity, message):
        pass


if _MONITORS:

    class IProgressMonitor:
        def __init__(self):
            pass


class IProfiler:
    def __init__(self):
        pass


def nptype(dtype):
    return dtype


class _Layer:
    def __init__(self, node):
        self.name, self.op, self.metadata = node.name, node.op_type, "[ONNX Layer: %s]" % node.name
        self.precision = None


class _Network:
    def __init__(self, flags):
        self.flags, self.model, self.path, self.layers = flags, None, "", []

    @property
    def num_layers(self):
        return len(self.layers)

    def get_layer(self, index):
        return self.layers[index]


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        if _RELEASE < (10, 0) and not flags & 1 << int(NetworkDefinitionCreationFlag.EXPLICIT_BATCH):
            raise RuntimeError("the ONNX parser wants explicit batches")
        return _Network(flags)

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        generations.note(
            call="build",
            flags=sorted(config.flags),
            workspace=config.workspace,
            profiles=config.profiles,
            strong=network.strong,
            cache=len(config.cache or b""),
            dla=config.core,
            pid=os.getpid(),
        )
        problem = _wrong(network, config) or _DEVICE.get("fails", "")
        steps = int(_DEVICE.get("steps", 4))
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building engine", None, steps)
        for step in range(steps):
            self.logger.log(ILogger.INFO, "Timing Runner: {ForeignNode[...]} (Myelin[0x80000023])")
            time.sleep(float(_DEVICE.get("seconds", 0)) / steps)
            if monitor is not None and not monitor.step_complete("Building engine", step):
                return None
        if problem:
            self.logger.log(ILogger.ERROR, problem)
            return None
        self.logger.log(ILogger.INFO, "Engine generation completed in 0.240356 seconds.")
        flags = {"weak": sorted(f.lower() for f in config.flags), "strong": network.strong}
        data = fake_parser.engine_of(network.path, flags, _DEVICE)
        return memoryview(data + b"\0" * int(_DEVICE.get("pad", 0)))


def _wrong(network, config):
    quantized = any(layer.op == "QuantizeLinear" for layer in network.layers)
    if network.strong and config.flags & {"FP16", "INT8", "BF16"}:
        return "a strongly typed network takes no precision flags"
    if quantized and not network.strong and "INT8" not in config.flags:
        return "Network has Q/DQ layers, and the INT8 flag is not set"
    if network.open and not config.profiles:
        return "Network has dynamic or shape inputs, but no optimization profile has been defined."
    if config.core >= int(_DEVICE["dla"]):
        return "there is no DLA core %d" % config.core
    return ""


class _Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, low, usual, high):
        self.shapes[name] = [list(low), list(usual), list(high)]


class _Cache:
    def __init__(self, blob):
        self.blob = bytes(blob)

    def serialize(self):
        return memoryview(self.blob or b"times of kernels on " + _DEVICE["gpu"].encode())


class _Config:
    def __init__(self):
        self.flags, self.workspace, self.profiles, self.cache, self.core = set(), 0, {}, None, -1
        self.default_device_type = None

    @property
    def DLA_core(self):
        return self.core

    @DLA_core.setter
    def DLA_core(self, core):
        self.core = core

    def set_memory_pool_limit(self, pool, size):
        self.workspace = size

    def set_flag(self, flag):
        self.flags.add(flag.name)

    def clear_flag(self, flag):
        self.flags.discard(flag.name)

    def add_optimization_profile(self, profile):
        self.profiles = profile.shapes

    def create_timing_cache(self, blob):
        return _Cache(blob)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache, self._timing = cache.blob, cache
        return not cache.blob or _DEVICE["gpu"].encode() in cache.blob

    def get_timing_cache(self):
        return self._timing

    def can_run_on_DLA(self, layer):
        return layer.op in ("Conv", "Relu", "QuantizeLinear", "DequantizeLinear")


class _ParserError:
    def __init__(self, refused):
        self._refused = refused

    def desc(self):
        return self._refused.message

    if _RELEASE >= (8, 6):

        def node_name(self):
            return self._refused.node

        def node_operator(self):
            return self._refused.op


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.errors = network, []

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]

    def parse_from_file(self, path):
        network = self.network
        try:
            model = fake_parser.parse(path, _DEVICE)
        except fake_parser.Refused as refused:
            self.errors.append(_ParserError(refused))
            return False
        strong = getattr(NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network.strong = strong is not None and bool(network.flags & 1 << int(strong))
        network.path, network.layers = path, [_Layer(n) for n in model.graph.node]
        network.open = any(d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim)
        return True


class Runtime:
    num_DLA_cores = int(_DEVICE["dla"])

    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, data):
        generations.note(call="deserialize", size=len(data))
        graph = fake_parser.opened(bytes(data), _DEVICE)
        return None if graph is None else _Engine(graph, bytes(data))


class _Engine:
    device_memory_size = 4096
    if _RELEASE >= (10, 0):
        device_memory_size_v2 = 4096

    def __init__(self, graph, data):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        graph = graph[: len(graph) - int(_DEVICE.get("pad", 0))]
        self.graph = graph
        self.weak = json.loads(data[8:].partition(b"\0")[0])["flags"]["weak"]
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.ports = {i.name: (i, TensorIOMode.INPUT) for i in self.session.get_inputs()}
        self.ports.update({o.name: (o, TensorIOMode.OUTPUT) for o in self.session.get_outputs()})

    @property
    def num_io_tensors(self):
        return len(self.ports)

    def get_tensor_name(self, index):
        return list(self.ports)[index]

    def get_tensor_mode(self, name):
        return self.ports[name][1]

    def get_tensor_dtype(self, name):
        kind = self.ports[name][0].type[len("tensor(") : -1]
        return np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))

    def get_tensor_shape(self, name):
        return [d if isinstance(d, int) else -1 for d in self.ports[name][0].shape]

    def get_tensor_location(self, name):
        return TensorLocation.DEVICE

    def create_execution_context(self):
        return _Context(self)

    def create_engine_inspector(self):
        return _Inspector(self)


class _Inspector:
    def __init__(self, engine):
        self.engine, self.execution_context = engine, None

    def get_engine_information(self, kind):
        return json.dumps({"Layers": fake_parser.layers_of(self.engine.graph, self.engine.weak)})


class _Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.profiler = engine, {}, {}, None
        self.outputs = {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self):
        return []

    def get_tensor_shape(self, name):
        if name not in self.shapes:
            if not self.outputs:
                self._run()
            return self.outputs[name].shape
        return self.shapes[name]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def _array(self, name, shape):
        dtype = self.engine.get_tensor_dtype(name)
        count = int(np.prod(shape)) * dtype.itemsize
        raw = (ctypes.c_char * count).from_address(self.addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)

    def _run(self):
        fed = {n: self._array(n, s) for n, s in self.shapes.items()}
        names = [o.name for o in self.engine.session.get_outputs()]
        self.outputs = dict(zip(names, self.engine.session.run(names, fed)))

    def execute_async_v3(self, stream):
        self._run()
        for name, array in self.outputs.items():
            if name in self.addresses:
                self._array(name, array.shape)[...] = array
        return True
