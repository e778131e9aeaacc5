"""The aarch64 board: real aarch64 runtimes, over SSH, give the numbers that they give here."""

import numpy as np
import pytest
from device_models import reference, write_onnx, write_tflite

from edgekit.bench import BenchSettings, Variant, bench_artifact
from edgekit.devices.checkup import check
from edgekit.devices.execute import RunSettings, run_artifact
from edgekit.types import Device
from edgekit.verify import compare

pytestmark = [pytest.mark.device, pytest.mark.slow]


@pytest.fixture(scope="module")
def board():
    from testbed.arm64 import Arm64
    from testbed.sshd import MissingToolError

    try:
        with Arm64() as server:
            yield server
    except MissingToolError as error:
        pytest.skip(str(error))


def device(board):
    options = {"config": str(board.config), "python": board.python, "connect_s": 60}
    return Device(name="arm", transport="ssh", address="device", options=options)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_every_runtime_runs_there(backend, board, tmp_path):
    x = np.random.default_rng(1).normal(size=(1, 3, 6, 6)).astype("f")
    if backend == "tflite":
        model, inputs = write_tflite(tmp_path / "m.tflite"), {"x": x.transpose(0, 2, 3, 1)}
    else:
        model, inputs = write_onnx(tmp_path / "m.onnx"), {"x": x}
    settings = RunSettings(placement=True, timeout=300)
    options = {"threads": 1}
    with run_artifact(
        backend, model, inputs=[inputs], options=options, device=device(board), settings=settings
    ) as result:
        assert compare([{"y": reference(x)}], result.outputs).relative_error < 1e-5
        assert result.placement["nodes"]
    assert board.settled() == ([], [])


def test_it_is_known_for_what_it_is(board):
    seen = check(device(board), ("onnxruntime",))
    assert seen.facts["arch"] == "aarch64"
    assert seen.facts["emulated"] is True
    assert seen.usable


def test_its_latency_is_never_valid(board, tmp_path):
    variant = Variant(
        backend="tflite",
        model=write_tflite(tmp_path / "m.tflite"),
        inputs={"x": np.ones((1, 6, 6, 3), "f")},
        options={"threads": 1},
    )
    settings = BenchSettings(processes=2, seconds=0.05, iterations=3, warmup_s=0.1)
    measured = bench_artifact(variant, device=device(board), settings=settings)
    assert measured.validity == "INVALID"
    assert any("emulated" in reason for reason in measured.reasons)
    assert board.settled() == ([], [])
