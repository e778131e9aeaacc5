"""``edgekit build --device``: quantized for the device's processor, run and gated there."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from edgekit import Options, build
from edgekit.artifact import manifest
from edgekit.cli import cli
from edgekit.devices import catalogue, target_device
from edgekit.devices.catalogue import Row
from edgekit.errors import GateFailedError, RuntimeMissingError, UnknownNameError, UnreachableError
from edgekit.quantize.calibrate.codes import CODES

pytestmark = pytest.mark.device


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def arm64():
    from testbed.boards import ARM64, Board
    from testbed.sshd import MissingToolError

    try:
        with Board(kind=ARM64) as server:
            yield server
    except MissingToolError as error:
        pytest.skip(str(error))


def keep(server, name="board", python="", **fields):
    catalogue.write(
        Row(name=name, address="device", config=str(server.config), python=python or server.python, **fields)
    )


def network():
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU6()]
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4)]
    return torch.nn.Sequential(*layers, *head).eval(), torch.randn(1, 3, 12, 12)


def samples():
    return [np.random.default_rng(i).normal(size=(1, 3, 12, 12)).astype("f") for i in range(16)]


def made(targets, **options):
    module, example = network()
    settings = Options(**{"device": "board", "speed_gate": False, "accept_data": CODES, **options})
    result = build(module, example, targets=targets, calibration=samples(), options=settings)
    return result.raise_for_failures().artifacts


def test_it_is_run_and_gated_there(sshd, tmp_path, monkeypatch):
    keep(sshd)
    plain = target_device.probe

    def no_vnni(device, backends):
        seen = plain(device, backends)
        return replace(seen, facts=msgspec.structs.replace(seen.facts, isa=("avx2",)))

    monkeypatch.setattr("edgekit.pipeline.build.probe", no_vnni)
    onnx, tflite = made(["ort-int8", "tflite-int8"])
    assert onnx.manifest.status == tflite.manifest.status == "passed"
    assert onnx.manifest.machine["device"] == tflite.manifest.machine["device"] == "board"
    assert onnx.manifest.target.scheme.weight_bits == 7
    assert tflite.manifest.target.scheme.weight_bits == 8
    assert any("7 bits" in note for note in onnx.manifest.notes)
    assert any("run on board" in note for note in onnx.manifest.notes)
    weights = largest_weights(onnx.model)
    assert weights
    assert max(weights) <= 63
    assert manifest.read(onnx.directory).manifest == onnx.manifest
    assert sshd.settled() == ([], [])


def largest_weights(path):
    import onnx
    from onnx import numpy_helper as nh

    arrays = [nh.to_array(t) for t in onnx.load(path).graph.initializer]
    return [int(np.abs(a.astype(int)).max()) for a in arrays if a.dtype == np.int8 and a.ndim > 1]


def test_a_runtime_that_is_not_there_is_named_before_anything_is_quantized(make_sshd, tmp_path):
    hidden = tmp_path / "hidden"
    (hidden / "onnxruntime").mkdir(parents=True)
    (hidden / "onnxruntime" / "__init__.py").write_text("raise ImportError('not here')")
    hidden.chmod(0o755)
    server = make_sshd()
    packages = server.base / "shadow"
    hidden.rename(packages)
    keep(server, python=str(wrapper(server, packages)))
    with pytest.raises(RuntimeMissingError) as caught:
        made(["ort-int8"])
    assert caught.value.exit_code == 7
    assert "edgekit devices prepare board --backend onnxruntime" in caught.value.hint


def wrapper(server, packages):
    """An interpreter there that finds ``packages`` first."""
    path = server.base / "python-shadowed"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={packages}:$PYTHONPATH exec {server.python} "$@"\n')
    path.chmod(0o755)
    return path


def test_unknown_and_unreachable_devices_end_the_build_at_once(sshd, tmp_path):
    with pytest.raises(UnknownNameError, match="board"):
        made(["ort-int8"])
    keep(sshd)
    sshd.stop()
    with pytest.raises(UnreachableError):
        made(["ort-int8"])
    assert not (tmp_path / "build").exists()
    (tmp_path / "m.py").write_text("")
    result = CliRunner().invoke(
        cli, ["build", "m.py:f", "-t", "ort-fp32", "--device", "nowhere", "--dry-run"]
    )
    assert isinstance(result.exception, UnknownNameError)


@pytest.mark.slow
def test_on_an_emulated_board_the_result_says_so(arm64):
    keep(arm64, emulated=True)
    for artifact in made(["tflite-int8", "ort-int8"], speed_gate=True):
        machine = artifact.manifest.machine
        assert (machine["machine"], machine["emulated"]) == ("aarch64", True)
        assert artifact.manifest.status == "passed"
        assert any("emulated" in note for note in artifact.manifest.notes)
        assert "speed" not in {g.name for g in artifact.manifest.gates}


@pytest.mark.slow
def test_integers_that_the_boards_processor_does_not_compute_with_are_found_out_there(arm64):
    """A Cortex-A72 has no dot products: OpenVINO takes the model, and multiplies in float."""
    keep(arm64, emulated=True)
    with pytest.raises(GateFailedError) as caught:
        made(["openvino-int8"])
    assert caught.value.gates == ("placement",)
