"""The TensorRT runners' logic against stand-ins of the runtime and the driver: no GPU is needed, none is used.

What only a GPU can show (that an engine really runs) is not claimed here.
"""

import ctypes
import hashlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from edgekit.core import plugins
from edgekit.devices.agent import failure


class FakeDriver:
    """libcuda with host memory behind its device pointers."""

    def __init__(self, gpus=1):
        self.gpus, self.blocks, self.waits = gpus, {}, 0
        self.captured = self.launched = self.dropped = self.events = 0

    def cuInit(self, flags):
        return 0 if self.gpus else 100

    def cuDeviceGetCount(self, out):
        out._obj.value = self.gpus
        return 0

    def cuDeviceGet(self, out, index):
        return 0 if index < self.gpus else 101

    def cuDeviceGetName(self, out, size, device):
        out.value = b"Fake GPU"
        return 0

    def cuDevicePrimaryCtxRetain(self, out, device):
        return 0

    def cuCtxSetCurrent(self, context):
        return 0

    def cuDeviceGetAttribute(self, out, number, device):
        out._obj.value = {75: 8, 76: 7}[number]
        return 0

    def cuGetErrorString(self, status, out):
        out._obj.value = b"invalid device ordinal"
        return 0

    def cuMemGetInfo_v2(self, free, total):
        free._obj.value = 1 << 30
        total._obj.value = 2 << 30
        return 0

    def cuStreamBeginCapture_v2(self, stream, mode):
        self.captured += 1
        return 0

    def cuStreamEndCapture(self, stream, graph):
        graph._obj.value = 21
        return 0

    def cuGraphInstantiateWithFlags(self, executable, graph, flags):
        executable._obj.value = 22
        return 0

    def cuGraphDestroy(self, graph):
        return 0

    def cuGraphLaunch(self, executable, stream):
        self.launched += 1
        return 0

    def cuGraphExecDestroy(self, executable):
        self.dropped += 1
        return 0

    def cuEventCreate(self, out, flags):
        self.events += 1
        return 0

    def cuEventDestroy_v2(self, event):
        self.events -= 1
        return 0

    def cuEventRecord(self, event, stream):
        return 0

    def cuEventElapsedTime(self, out, before, after):
        out._obj.value = 1.5
        return 0

    def cuStreamCreate(self, out, flags):
        out._obj.value = 7
        return 0

    def cuStreamSynchronize(self, stream):
        self.waits += 1
        return 0

    def cuMemAlloc_v2(self, out, size):
        block = ctypes.create_string_buffer(size.value)
        address = ctypes.addressof(block)
        self.blocks[address] = block
        out._obj.value = address
        return 0

    def cuMemFree_v2(self, pointer):
        del self.blocks[pointer.value]
        return 0

    def cuMemcpyHtoD_v2(self, pointer, host, size):
        ctypes.memmove(pointer.value, host, size.value)
        return 0

    def cuMemcpyDtoH_v2(self, host, pointer, size):
        ctypes.memmove(host, pointer.value, size.value)
        return 0


class FakeEngine:
    """y = 2 x for a batch of 1 to 4 rows of 3."""

    num_io_tensors = 2
    device_memory_size_v2 = 64

    def get_tensor_name(self, index):
        return "xy"[index]

    def get_tensor_mode(self, name):
        return "in" if name == "x" else "out"

    def get_tensor_dtype(self, name):
        return np.float32

    def get_tensor_shape(self, name):
        return (-1, 3)

    def get_tensor_location(self, name):
        return "device"

    def create_execution_context(self):
        return FakeContext()

    def create_engine_inspector(self):
        return types.SimpleNamespace(get_engine_information=lambda format: '{"Layers": [{"Name": "double"}]}')


class FakeContext:
    def __init__(self):
        self.shape, self.addresses = None, {}

    def set_input_shape(self, name, shape):
        self.shape = shape
        return 1 <= shape[0] <= 4

    def infer_shapes(self):
        return []

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        count = int(np.prod(self.shape))
        kind = ctypes.c_float * count
        x, y = (np.frombuffer(kind.from_address(self.addresses[n]), np.float32) for n in "xy")
        y[:] = 2 * x
        return True


class FakeLogger:
    WARNING = 1

    def __init__(self, level):
        pass


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def runner(request, monkeypatch, tmp_path):
    fake = types.ModuleType(request.param)
    fake.__version__ = "99"
    fake.Logger = FakeLogger
    fake.TensorIOMode = types.SimpleNamespace(INPUT="in")
    fake.TensorLocation = types.SimpleNamespace(HOST="host")
    fake.LayerInformationFormat = types.SimpleNamespace(JSON="json")
    fake.nptype = lambda dtype: dtype
    fake.Runtime = lambda logger: types.SimpleNamespace(
        deserialize_cuda_engine=lambda data: FakeEngine() if data == b"engine" else None
    )
    monkeypatch.setitem(sys.modules, request.param, fake)
    agent, backend = types.ModuleType("agent"), types.ModuleType("agent.backend")
    place = Path(plugins.runner(request.param)).parent
    agent.__path__, backend.NAME = [str(place)], request.param
    monkeypatch.setenv("EDGEKIT_ROOT", str(tmp_path / "root"))
    version = tmp_path / "root" / "proc" / "driver" / "nvidia" / "version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n")
    monkeypatch.delitem(sys.modules, "agent.runner_key", raising=False)
    monkeypatch.setitem(sys.modules, "agent", agent)
    monkeypatch.setitem(sys.modules, "agent.backend", backend)
    monkeypatch.setitem(sys.modules, "agent.failure", failure)
    spec = importlib.util.spec_from_file_location("agent.runner", plugins.runner(request.param))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def driver(monkeypatch):
    fake = FakeDriver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake)
    return fake


def test_no_driver_is_unusable_with_a_reason(runner, monkeypatch):
    def absent(name):
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    probe = runner.probe()
    assert probe["usable"] is False
    assert "NVIDIA" in probe["why_not"]


def test_a_driver_without_a_gpu_is_unusable(runner, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(gpus=0))
    assert runner.probe()["usable"] is False


def test_a_gpu_is_named(runner, driver):
    assert runner.probe() == {"usable": True, "gpus": ["Fake GPU"]}


def engine_file(tmp_path, runner, content=b"engine", **changes):
    """An engine with its record, as it lies on a device."""
    path = tmp_path / "m.engine"
    path.write_bytes(content)
    record = {
        "schema": 1,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "graph_sha256": "0",
        "runtime": runner.NAME,
        "version": "99",
        "gpu": "Fake GPU",
        "compute_capabilities": ["8.7"],
        "driver": "540.4.0",
        "flags": {},
    }
    (tmp_path / "engine.json").write_text(json.dumps({**record, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"gpu": "Another GPU"}, "GPU Another GPU"),
        ({"compute_capabilities": ["8.6"]}, "compute capability 8.6"),
        ({"version": "98"}, "version 98"),
        ({"driver": "535.1"}, "driver 535.1"),
        ({"runtime": "other"}, "runtime other"),
        ({"size": 7}, "7"),
        ({"sha256": "0" * 64}, "not what was built"),
        ({"schema": 9}, "another edgekit"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_before_it_is_loaded(runner, driver, tmp_path, changes, word):
    path = engine_file(tmp_path, runner, **changes)
    loaded = []
    runner.importlib.import_module(runner.NAME).Runtime = lambda logger: loaded.append(logger)
    with pytest.raises(failure.JobError, match=word) as caught:
        runner.load(str(path), {"threads": 1})
    assert caught.value.kind == "engine"
    assert loaded == []


def test_an_engine_without_a_record_is_refused(runner, driver, tmp_path):
    path = tmp_path / "m.engine"
    path.write_bytes(b"engine")
    with pytest.raises(failure.JobError, match="missing or damaged"):
        runner.load(str(path), {"threads": 1})


def test_a_recorded_graph_is_launched_and_made_anew_for_other_inputs(runner, driver, tmp_path):
    session = runner.load(str(engine_file(tmp_path, runner)), {"threads": 1, "cuda_graph": True})
    for rows in (1, 2):
        x = np.full((rows, 3), rows, "f")
        session.prepare({"x": x})
        for _ in range(3):
            session.invoke()
        np.testing.assert_array_equal(session.results()["y"], 2 * x)
    assert (driver.captured, driver.launched, driver.dropped) == (2, 4, 1)


def test_gpu_time_is_between_two_events(runner, driver, tmp_path):
    session = runner.load(str(engine_file(tmp_path, runner)), {"threads": 1})
    session.prepare({"x": np.ones((1, 3), "f")})
    assert session.gpu_times(3) == [1.5, 1.5, 1.5]
    assert driver.events == 0


def test_run_with_growing_and_shrinking_batches(runner, driver, tmp_path):
    session = runner.load(str(engine_file(tmp_path, runner)), {"threads": 1})
    assert session.inputs == [
        {"name": "x", "dtype": "float32", "shape": [-1, 3], "scale": None, "zero_point": None}
    ]
    for rows in (1, 4, 2):
        x = np.random.default_rng(rows).normal(size=(rows, 3)).astype("f")
        session.prepare({"x": x})
        session.invoke()
        np.testing.assert_array_equal(session.results()["y"], 2 * x)
    assert len(driver.blocks) == 2  # outgrown buffers were freed
    assert driver.waits == 3


def test_a_shape_outside_the_profile(runner, driver, tmp_path):
    session = runner.load(str(engine_file(tmp_path, runner)), {"threads": 1})
    with pytest.raises(ValueError, match="profile lacks the shape"):
        session.prepare({"x": np.zeros((5, 3), "f")})


def test_an_engine_of_another_version(runner, driver, tmp_path):
    path = engine_file(tmp_path, runner, b"old")
    with pytest.raises(ValueError, match="does not fit this version"):
        runner.load(str(path), {"threads": 1})


def test_an_absent_gpu_is_the_drivers_error(runner, driver, tmp_path):
    with pytest.raises(runner.CudaError, match="invalid device ordinal"):
        runner.load(str(tmp_path / "m.engine"), {"threads": 1, "gpu": 3})


def test_placement_is_the_inspectors(runner, driver, tmp_path):
    path = engine_file(tmp_path, runner)
    raw = runner.load(str(path), {"threads": 1}).placement()
    assert raw["layers"] == [{"Name": "double"}]
    assert raw["compute_capability"] == [8, 7]


def test_a_profile_is_what_the_profiler_is_told(runner, driver, tmp_path):
    session = runner.load(str(engine_file(tmp_path, runner)), {"threads": 1, "profiling": True})
    session._trt.IProfiler = type("IProfiler", (), {"__init__": lambda self: None})
    session.prepare({"x": np.zeros((2, 3), "f")})
    plain = session._context.execute_async_v3

    def enqueue(stream):
        session._context.profiler.report_layer_time("double + relu", 0.25)
        return plain(stream)

    session._context.execute_async_v3 = enqueue
    layer = {
        "Name": "double + relu",
        "LayerType": "CaskConvolution",
        "TacticName": "sm87_int8",
        "Outputs": [{"Format/Datatype": "Int8 NC/32HW32"}],
        "Metadata": "[ONNX Layer: node_conv]\u001e[ONNX Layer: node_relu]",
    }
    session.placement = lambda: {"layers": [layer]}
    found = session.profile(3)
    assert len(found["whole_us"]) == 3
    assert found["operators"] == [
        {
            "name": "double + relu",
            "op": "CaskConvolution",
            "us": [250.0] * 3,
            "placed": "sm87_int8",
            "precision": "Int8",
            "from": ["node_conv", "node_relu"],
        }
    ]
