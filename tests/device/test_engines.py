"""Engines built on devices over a real sshd. TensorRT, ``trtexec`` and the driver there are stand-ins (see
``tools/testbed/standins/README.md``): what is shown is what edgekit asks of each release, what it brings back, and what
it survives. What a GPU computes is not: for that there is ``tests/gpu``.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_models import artifact

from edgekit.backends import own_engines
from edgekit.backends.nvidia import engine as records
from edgekit.backends.nvidia import request
from edgekit.core.store import Store
from edgekit.devices import engines
from edgekit.devices.engines import engine_for, identify, ready
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.devices.transports.connect import connect
from edgekit.errors import (
    DeviceBusyError,
    DeviceError,
    DeviceTimeoutError,
    EngineBuildError,
    EngineMismatchError,
    NotRunnableError,
    RuntimeMissingError,
    UnsupportedError,
    UnsupportedOperatorsError,
    UntrustedEngineError,
)
from edgekit.types import Device

pytestmark = pytest.mark.device

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def make_jetson():
    from testbed.jetson import Jetson
    from testbed.sshd import MissingToolError

    running = []

    def start(generation="jetpack6", *, device=None, **settings):
        server = Jetson(generation=generation, device=device or {}, **settings)
        try:
            running.append(server.__enter__())
        except MissingToolError as error:
            pytest.skip(str(error))
        return server

    yield start
    for server in running:
        server.__exit__()


def device(server):
    options = {"config": str(server.config), "python": server.python}
    return Device(name="jetson", transport="ssh", address="device", options=options)


def built(server, main, **more):
    with connect(device(server)) as transport:
        return engine_for(transport, "tensorrt", main, **more)


def calls(server, name):
    return [entry for entry in server.asked() if entry["call"] == name]


def nothing_left(server):
    assert server.settled() == ([], [])


@pytest.mark.parametrize(
    ("generation", "strong", "flags"),
    [
        ("jetpack5", False, ["FP16", "INT8"]),
        ("jetpack5-8.6", False, ["FP16", "INT8"]),
        ("jetpack6", False, ["FP16", "INT8"]),
        ("jetpack7", False, ["FP16", "INT8"]),
        ("desktop10", False, ["FP16", "INT8"]),
        ("desktop11", True, []),
    ],
)
def test_each_generation_is_asked_in_its_own_dialect_by_python(
    make_jetson, tmp_path, generation, strong, flags
):
    server = make_jetson(generation)
    made = built(server, artifact(tmp_path / "a"))
    (asked,) = calls(server, "build")
    assert (asked["strong"], asked["flags"]) == (strong, flags)
    assert asked["workspace"] == 2 << 30  # half of what is free there
    key = records.read_key(made.engine)
    assert (key.gpu, key.version) == (server._generation()["gpu"], server._generation()["version"])
    assert json.loads((made.folder / "layers.json").read_text())["Layers"]
    assert "Engine generation completed" in (made.folder / "build.log").read_text()
    nothing_left(server)


@pytest.mark.parametrize(
    ("generation", "there", "absent"),
    [
        ("jetpack5", {"--int8", "--fp16", "--buildOnly"}, {"--stronglyTyped", "--skipInference"}),
        ("jetpack5-8.6", {"--int8", "--fp16", "--skipInference"}, {"--stronglyTyped", "--buildOnly"}),
        ("jetpack6", {"--int8", "--fp16", "--skipInference"}, {"--buildOnly"}),
        ("jetpack7", {"--int8", "--fp16", "--skipInference"}, {"--buildOnly"}),
        ("desktop11", {"--stronglyTyped", "--skipInference"}, {"--int8", "--fp16"}),
    ],
)
def test_each_generation_is_asked_in_its_own_dialect_by_trtexec(
    make_jetson, tmp_path, generation, there, absent
):
    server = make_jetson(generation, device={"no_python": True})
    made = built(server, artifact(tmp_path / "a"))
    (asked,) = calls(server, "trtexec")
    assert there <= set(asked["argv"])
    assert not absent & set(asked["argv"])
    assert made.facts["via"] == "trtexec"
    assert made.facts["layers"] > 0
    assert "&&&& PASSED" in (made.folder / "build.log").read_text()
    nothing_left(server)


def test_an_engine_is_kept_until_what_it_belongs_to_changes(make_jetson, tmp_path):
    server = make_jetson(device={"no_trtexec": True})
    main = artifact(tmp_path / "a")
    first = built(server, main)
    assert built(server, main).folder == first.folder
    assert len(calls(server, "build")) == 1
    server.behave(gpu="Another Orin")
    assert built(server, main).folder != first.folder
    server.behave()
    path = server.base / "root" / "proc" / "driver" / "nvidia" / "version"
    path.write_text(path.read_text().replace("540.4.0", "540.5.0"))
    assert built(server, main).folder != first.folder
    assert built(server, artifact(tmp_path / "b", seed=1)).folder != first.folder
    assert built(server, artifact(tmp_path / "c", workspace_mib=64)).folder != first.folder
    asked = calls(server, "build")
    assert len(asked) == 5
    assert asked[-1]["workspace"] == 64 << 20


def test_the_next_build_gets_the_timing_cache_of_the_last_on_such_a_device(make_jetson, tmp_path):
    server = make_jetson()
    for seed in range(2):
        built(server, artifact(tmp_path / str(seed), seed=seed))
    first, second = calls(server, "build")
    assert (first["cache"], second["cache"] > 0) == (0, True)


def test_open_axes_get_their_profile(make_jetson, tmp_path):
    server = make_jetson()
    shapes = [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]
    built(server, artifact(tmp_path / "a", batch="batch", profiles={"x": shapes}))
    assert calls(server, "build")[0]["profiles"] == {"x": shapes}


@pytest.mark.parametrize("no_python", [False, True])
def test_what_does_not_run_on_the_dla_is_listed(make_jetson, tmp_path, no_python):
    server = make_jetson(device={"no_python": no_python})
    main = artifact(tmp_path / "a", dla=0)
    if no_python:
        (server.base / "root" / "dev").mkdir()
        (server.base / "root" / "dev" / "nvhost-nvdla0").touch()
    made = built(server, main)
    assert made.facts["on_gpu"] == ["mean"]


def test_a_dla_that_is_not_there_is_refused_before_anything_is_sent(make_jetson, tmp_path):
    server = make_jetson("desktop10")
    with pytest.raises(UnsupportedError, match="no DLA core 0"):
        built(server, artifact(tmp_path / "a", dla=0))
    assert calls(server, "build") == []


@pytest.mark.parametrize(("precision", "generation"), [("bf16", "jetpack5"), ("fp8", "jetpack6")])
def test_a_precision_that_the_device_lacks_is_refused(make_jetson, tmp_path, precision, generation):
    server = make_jetson(generation)
    with pytest.raises(UnsupportedError, match=f"{precision} needs compute capability"):
        built(server, artifact(tmp_path / "a", precision=precision))


@pytest.mark.parametrize(
    ("generation", "no_python"),
    [("jetpack6", False), ("jetpack5", True), ("jetpack6", True), ("desktop11", True)],
)
def test_what_the_parser_there_refuses_names_node_and_module(make_jetson, tmp_path, generation, no_python):
    server = make_jetson(generation, device={"refuses": ["Conv"], "no_python": no_python})
    with pytest.raises(UnsupportedOperatorsError, match="Plugin not found") as caught:
        built(server, artifact(tmp_path / "a"), telling=engines.Telling(modules={"conv": "stem.conv"}))
    (node,) = caught.value.nodes
    assert (node.op, node.node, node.module_path) == ("Conv", "conv", "stem.conv")
    nothing_left(server)


def test_what_cannot_be_written_for_the_parser_there_names_node_and_module(make_jetson, tmp_path):
    main = artifact(tmp_path / "a")
    model = onnx.load(main)
    (node,) = [n for n in model.graph.node if n.op_type == "ReduceMean"]
    node.input[1] = "given"  # axes that come in: opset 17 takes constant ones
    model.graph.input.append(onnx.helper.make_tensor_value_info("given", onnx.TensorProto.INT64, [2]))
    onnx.save(model, main)
    server = make_jetson("jetpack5")
    with pytest.raises(UnsupportedOperatorsError, match="its axes are computed") as caught:
        built(server, main, telling=engines.Telling(modules={"mean": "head.pool"}))
    assert [(n.node, n.module_path) for n in caught.value.nodes] == [("mean", "head.pool")]
    assert "TensorRT 8.5.2" in caught.value.message
    assert calls(server, "build") == []


@pytest.mark.parametrize("no_python", [False, True])
def test_a_build_that_fails_says_why(make_jetson, tmp_path, no_python):
    why = "Error Code 10: Could not find any implementation for node {ForeignNode[conv...mean]}."
    server = make_jetson(device={"fails": why, "no_python": no_python})
    with pytest.raises(EngineBuildError, match="Could not find any implementation") as caught:
        built(server, artifact(tmp_path / "a"))
    assert why in caught.value.hint
    nothing_left(server)


def test_a_device_without_gpu_or_tensorrt_says_so(make_jetson, tmp_path):
    server = make_jetson(device={"no_gpu": True})
    with pytest.raises(NotRunnableError, match="cuInit gave 100"):
        built(server, artifact(tmp_path / "a"))
    server = make_jetson(device={"no_python": True, "no_trtexec": True})
    with pytest.raises(RuntimeMissingError, match="neither the Python module tensorrt nor trtexec"):
        built(server, artifact(tmp_path / "a"))


# --- which engines may be loaded --------------------------------------------------------------------


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


INJECTED = {
    "another GPU": lambda s, e: s.behave(gpu="Orin Nano"),
    "another compute capability": lambda s, e: s.behave(cc=[7, 2]),
    "another version": lambda s, e: s.behave(version="10.3.1"),
    "another driver": lambda s, e: (s.base / "root" / "etc" / "nv_tegra_release").write_text(
        "# R36 (release), REVISION: 5.0"
    ),
    "truncated": lambda s, e: e.write_bytes(e.read_bytes()[:-1]),
    "empty": lambda s, e: e.write_bytes(b""),
    "flipped byte": lambda s, e: flip(e),
    "another graph": lambda s, e: artifact(e.parent, seed=7),
    "no record": lambda s, e: e.with_name("engine.json").unlink(),
    "damaged record": lambda s, e: e.with_name("engine.json").write_bytes(b'{"schema": 1'),
    "another's record": lambda s, e: e.with_name("engine.json").write_bytes(
        e.with_name("engine.json").read_bytes().replace(b'"schema":1', b'"schema":2')
    ),
}


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """A device, and an engine that was built there, as an artifact has it; built once."""
    from testbed.jetson import Jetson
    from testbed.sshd import MissingToolError

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            with Jetson(device={"no_trtexec": True}) as server:
                main = artifact(tmp_path_factory.mktemp("shipped") / "a")
                engines.copy_into(built(server, main), main.parent)
                yield server, main.parent
        except MissingToolError as error:
            pytest.skip(str(error))


@pytest.fixture
def shipped(one_device, tmp_path):
    """A copy of that engine, known as ours; the device is as it was when the test ends."""
    server, folder = one_device
    shutil.copytree(folder, tmp_path / "shipped")
    engine = tmp_path / "shipped" / "model.engine"
    own_engines.remember(engine)
    release = server.base / "root" / "etc" / "nv_tegra_release"
    before = release.read_text()
    yield server, engine
    server.behave()
    release.write_text(before)


@pytest.mark.parametrize("case", INJECTED)
def test_what_does_not_fit_is_refused_before_it_is_loaded(shipped, case):
    server, engine = shipped
    INJECTED[case](server, engine)
    own_engines.remember(engine)  # that it is trusted does not make it fit
    loaded = len(calls(server, "deserialize"))
    with connect(device(server)) as transport, pytest.raises(EngineMismatchError) as caught:
        ready(transport, Runnable(backend="tensorrt", main=engine))
    assert caught.value.hint
    assert len(calls(server, "deserialize")) == loaded


ON_DEVICE = [c for c in INJECTED if c != "another graph"]
"""The device has no graph to compare with."""


@pytest.mark.parametrize("case", ON_DEVICE)
def test_the_device_refuses_it_too_should_the_host_not_look(shipped, case, monkeypatch):
    server, engine = shipped
    INJECTED[case](server, engine)
    monkeypatch.setattr(engines, "ready", lambda transport, runnable: runnable)
    record = engine.with_name("engine.json")
    runnable = Runnable(
        backend="tensorrt", main=engine, companions=(record,) if record.exists() else (), outputs=("y",)
    )
    loaded = len(calls(server, "deserialize"))
    with pytest.raises(EngineMismatchError, match="before it is loaded"):
        run_artifact(runnable, [{"x": np.zeros((1, 3, 8, 8), "f")}], device=device(server))
    assert len(calls(server, "deserialize")) == loaded


def test_the_engine_that_fits_runs(shipped):
    server, engine = shipped
    runnable = Runnable(backend="tensorrt", main=engine, outputs=("y",))
    inputs = {"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype("f")}
    with run_artifact(runnable, [inputs], device=device(server), placement=True) as run:
        assert next(iter(run.outputs))["y"].shape == (1, 4)
        assert run.placement["gpu"] == "Orin"
    nothing_left(server)


def test_an_engine_from_elsewhere_is_loaded_only_with_trust(shipped, tmp_path, monkeypatch):
    server, engine = shipped
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "somebody else's"))
    loaded = len(calls(server, "deserialize"))
    stranger = Runnable(backend="tensorrt", main=engine, outputs=("y",))
    inputs = [{"x": np.zeros((1, 3, 8, 8), "f")}]
    with pytest.raises(UntrustedEngineError, match="was not built here") as caught:
        run_artifact(stranger, inputs, device=device(server))
    assert (caught.value.exit_code, "--trust" in caught.value.hint) == (3, True)
    assert len(calls(server, "deserialize")) == loaded
    run_artifact(replace(stranger, trusted=True), inputs, device=device(server)).close()
    assert len(calls(server, "deserialize")) == loaded + 1


# --- what a build survives --------------------------------------------------------------------------


def under_way(server, count=1):
    """Until the builder there is at work."""
    end = time.monotonic() + 60
    while len(calls(server, "build")) < count and time.monotonic() < end:
        time.sleep(0.1)
    assert len(calls(server, "build")) == count


def test_a_link_that_is_cut_in_the_middle_costs_no_second_build(make_jetson, tmp_path):
    server = make_jetson(device={"seconds": 12, "no_trtexec": True})
    cut = threading.Thread(target=lambda: (under_way(server), server.drop_sessions()))
    cut.start()
    made = built(server, artifact(tmp_path / "a"))
    cut.join()
    assert made.engine.stat().st_size > 0
    assert len(calls(server, "build")) == 1
    nothing_left(server)


def test_a_host_that_is_killed_leaves_nothing(make_jetson, tmp_path):
    server = make_jetson(device={"seconds": 600, "no_trtexec": True})
    main = artifact(tmp_path / "a")
    script = f"""
from pathlib import Path
from edgekit.devices.engines import engine_for
from edgekit.devices.transports.connect import connect
from edgekit.types import Device

options = {dict(device(server).options)!r}
with connect(Device(name="jetson", transport="ssh", address="device", options=options)) as transport:
    engine_for(transport, "tensorrt", Path({str(main)!r}))
"""
    host = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        under_way(server)
    finally:
        host.send_signal(signal.SIGKILL)
        host.wait()
    assert server.settled(60) == ([], [])


def test_the_end_of_the_whole_time_ends_the_build_there(make_jetson, tmp_path):
    """``--timeout``: the device is free at once, as after Ctrl-C, and not after the wait for a link that broke."""
    server = make_jetson(device={"seconds": 600, "no_trtexec": True})
    main = artifact(tmp_path / "a")
    script = f"""
import sys
from pathlib import Path
from edgekit.core import contained
from edgekit.core.contained import Job, Limits
from edgekit.devices.engines import engine_for
from edgekit.devices.transports.connect import connect
from edgekit.errors import TimeLimitError
from edgekit.types import Device

options = {dict(device(server).options)!r}
try:
    with contained.program():
        contained.contain(Job(what="net.onnx", limits=Limits(whole=15)))
except TimeLimitError as error:
    print(error.message)
    sys.exit(error.exit_code)
print("under way", flush=True)
with connect(Device(name="jetson", transport="ssh", address="device", options=options)) as transport:
    engine_for(transport, "tensorrt", Path({str(main)!r}))
"""
    host = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    under_way(server)
    out, err = host.communicate(timeout=120)
    assert (host.returncode, err) == (8, "")
    assert out.splitlines() == [
        "under way",
        "net.onnx: the time is over (15 s), and what was at work has been ended",
    ]
    assert server.settled(5) == ([], [])


def test_a_build_that_takes_too_long_is_ended(make_jetson, tmp_path, monkeypatch):
    server = make_jetson(device={"seconds": 600, "no_trtexec": True})
    whole = request.order
    monkeypatch.setattr(request, "order", lambda *a: replace(whole(*a), seconds=6.0))
    with pytest.raises(DeviceTimeoutError, match="no answer within 6 s"):
        built(server, artifact(tmp_path / "a"))
    nothing_left(server)
    assert not list(Store().results("engine"))


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of its own needs root")
@pytest.mark.parametrize("no_python", [False, True])
def test_a_full_disk_is_said_and_leaves_nothing(make_jetson, tmp_path, no_python):
    server = make_jetson(device={"pad": 8 << 20, "no_python": no_python}, tmp_size="3m")
    with pytest.raises(DeviceError, match="No space left") as caught:
        built(server, artifact(tmp_path / "a"))
    assert "space" in caught.value.hint
    nothing_left(server)


def test_a_busy_device_is_named_and_the_other_build_goes_on(make_jetson, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "BUSY_S", 0.0)
    server = make_jetson(device={"seconds": 15, "no_trtexec": True})
    done = []
    first = threading.Thread(target=lambda: done.append(built(server, artifact(tmp_path / "a"))))
    first.start()
    under_way(server)
    with pytest.raises(DeviceBusyError, match="jetson is busy"):
        built(server, artifact(tmp_path / "b", seed=1))
    first.join()
    assert len(done) == 1
    nothing_left(server)


def test_a_device_is_asked_once_a_connection(make_jetson):
    server = make_jetson()
    with connect(device(server)) as transport:
        first = identify(transport, "tensorrt")
        server.behave(gpu="Another")
        assert identify(transport, "tensorrt") is first
        assert first.via == ("python", "trtexec")
        assert first.driver == "R36.4.0 540.4.0"
