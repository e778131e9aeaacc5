"""edgekit.build(): the same line from Python."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("api")]


@pytest.fixture
def module():
    import torch
    from torch import nn

    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


def samples(count=24, size=8):
    generator = np.random.default_rng(2)
    return [generator.standard_normal((1, 3, size, size)).astype(np.float32) for _ in range(count)]


def test_a_module_and_samples_to_artifacts(module, tmp_path):
    import torch

    import edgekit

    artifacts = edgekit.build(
        module, torch.randn(1, 3, 8, 8), targets=["ort-int8", "ort-fp32"], calibration=samples(), out=tmp_path
    )
    assert [a.target for a in artifacts] == ["ort-int8", "ort-fp32"]
    assert all(a.passed for a in artifacts)
    assert artifacts[0].manifest.calibration.samples == 24
    assert artifacts[0].directory == tmp_path / "ort-int8"
    assert artifacts[0].model.stat().st_size < 2 * artifacts[1].model.stat().st_size


def test_a_generator_and_labels(module, tmp_path):
    import torch

    import edgekit

    module.eval()
    labelled = [(s, int(module(torch.from_numpy(s)).argmax())) for s in samples()]
    (artifact,) = edgekit.build(
        module,
        (torch.randn(1, 3, 8, 8),),
        targets=["ort-int8"],
        calibration=(s for s in samples()),
        evaluation=labelled,
        out=tmp_path,
        options={"max_drop": "50%"},
    )
    assert artifact.manifest.parity.reference_metric == 1.0


def test_weights_are_part_of_the_identity(module, tmp_path):
    import torch

    import edgekit

    example = torch.randn(1, 3, 8, 8)
    (first,) = edgekit.build(module, example, targets=["ort-fp32"], out=tmp_path)
    with torch.no_grad():
        module[0].weight[0, 0, 0, 0] += 1.0
    (second,) = edgekit.build(module, example, targets=["ort-fp32"], out=tmp_path)
    assert first.manifest.source.sha256 != second.manifest.source.sha256
    assert first.manifest.files[0].sha256 != second.manifest.files[0].sha256


def test_python_code_is_part_of_the_identity(tmp_path):
    import torch

    import edgekit

    class Scaled(torch.nn.Module):
        factor = 2.0

        def forward(self, x):
            return x * self.factor

    module = Scaled()
    (first,) = edgekit.build(module, torch.ones(1, 3), targets=["ort-fp32"], out=tmp_path)
    module.factor = 3.0
    (second,) = edgekit.build(module, torch.ones(1, 3), targets=["ort-fp32"], out=tmp_path)
    assert second.passed
    assert first.manifest.files[0].sha256 != second.manifest.files[0].sha256


def test_errors_are_raised_after_the_others_have_finished(module, tmp_path):
    import torch

    import edgekit
    from edgekit.errors import GateFailedError

    with pytest.raises(GateFailedError) as error:
        edgekit.build(
            module,
            torch.randn(1, 3, 8, 8),
            targets=["ort-int8", "ort-fp32"],
            calibration=[1e-4 * s for s in samples()],
            evaluation=samples(),
            out=tmp_path,
            options={"accept_data": True},
        )
    assert "snr" in error.value.gates
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ort-fp32", "ort-int8.failed"]


def test_import_is_light():
    code = "import edgekit, sys; print([m for m in ('torch', 'onnx', 'numpy', 'onnxruntime') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_what_a_target_cannot_express_is_said_before_calibration(tmp_path, monkeypatch):
    import torch

    import edgekit
    from edgekit.errors import UnsupportedOperatorsError
    from edgekit.pipeline import stages

    class Places(torch.nn.Module):
        def forward(self, x):
            return torch.nonzero(x).float().sum(0)

    def calibrate(*_):
        raise AssertionError("calibrated for a target that cannot be built")

    monkeypatch.setattr(stages, "calibrate", calibrate)
    with pytest.raises(UnsupportedOperatorsError, match="ReduceSum") as caught:
        edgekit.build(
            Places(), torch.randn(1, 3, 8, 8), targets=["tflite-int8"], calibration=samples(), out=tmp_path
        )
    assert caught.value.exit_code == 4
    assert "ort-fp32" in caught.value.supported_by
