"""Arm boards: real Arm runtimes, over SSH, give the numbers that they give here."""

import numpy as np
import pytest
from device_models import reference, write_onnx, write_tflite

from edgekit.artifact.parity import compare
from edgekit.devices.bench import BenchSettings, bench_artifact
from edgekit.devices.checkup import check
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.types import Device

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def make_board():
    """A board of this kind, started once."""
    from testbed.boards import KINDS, Board
    from testbed.sshd import MissingToolError

    running = {}

    def start(name):
        if name not in running:
            board = Board(kind=KINDS[name])
            try:
                running[name] = board.__enter__()
            except MissingToolError as error:
                pytest.skip(str(error))
        return running[name]

    yield start
    for board in running.values():
        board.__exit__()


def device(board):
    options = {"config": str(board.config), "python": board.python, "connect_s": 60}
    return Device(name="arm", transport="ssh", address="device", options=options)


@pytest.mark.parametrize(
    ("kind", "backend"),
    [("arm64", "onnxruntime"), ("arm64", "openvino"), ("arm64", "tflite"), ("armhf", "tflite")],
)
def test_every_runtime_runs_there(kind, backend, make_board, tmp_path):
    board = make_board(kind)
    x = np.random.default_rng(1).normal(size=(1, 3, 6, 6)).astype("f")
    if backend == "tflite":
        model, inputs = write_tflite(tmp_path / "m.tflite"), {"x": x.transpose(0, 2, 3, 1)}
    else:
        model, inputs = write_onnx(tmp_path / "m.onnx"), {"x": x}
    runnable = Runnable(backend=backend, main=model, options={"threads": 1})
    with run_artifact(runnable, [inputs], device=device(board), placement=True, timeout=300) as result:
        assert compare([{"y": reference(x)}], result.outputs).relative_error < 1e-5
        assert result.placement["nodes"]
        if kind == "armhf":
            assert result.versions["tflite_runtime"] == "2.14.0"
            assert result.versions["numpy"].startswith("1.")
    assert board.settled() == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "machine"), [("arm64", "aarch64"), ("armhf", "armv7l")])
def test_it_is_known_for_what_it_is(kind, machine, make_board):
    seen = check(device(make_board(kind)), ("tflite",))
    assert seen.facts.arch == machine
    assert seen.facts.emulated is True
    assert seen.usable


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["arm64", "armhf"])
def test_its_latency_is_never_valid(kind, make_board, tmp_path):
    board = make_board(kind)
    variant = Runnable(
        backend="tflite",
        main=write_tflite(tmp_path / "m.tflite"),
        inputs={"x": np.ones((1, 6, 6, 3), "f")},
        options={"threads": 1},
    )
    settings = BenchSettings(processes=1, seconds=0.05, iterations=3, warmup_s=0.1)
    measured = bench_artifact(variant, device=device(board), settings=settings)
    assert measured.validity == "INVALID"
    assert any("emulated" in reason for reason in measured.reasons)
    assert board.settled() == ([], [])
