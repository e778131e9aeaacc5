"""Models with states, built for every runtime here: calibrated and verified along their own stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import edgekit  # noqa: E402
from edgekit.errors import UsageError  # noqa: E402

HERE = "local"
"""Quantized for this processor: without VNNI sums of what is built for any saturate."""
TARGETS = ["ort-int8", "openvino-int8", "tflite-int8", "ort-fp32", "tflite-fp32"]


class Detector(torch.nn.Module):
    """A voice detector: features of a frame, a recurrent cell, a score."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = torch.nn.Sequential(torch.nn.Conv1d(1, 16, 16, 8), torch.nn.ReLU())
        self.cell = torch.nn.GRUCell(16, 24)
        self.score = torch.nn.Linear(24, 1)

    def forward(self, x: Any, state: Any) -> Any:
        state = self.cell(self.features(x[:, None]).mean(2), state)
        return torch.sigmoid(6 * self.score(state)), state


class Enhancer(torch.nn.Module):
    """A convolution over the last frames, which are kept as pictures: channels that TFLite moves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.Conv2d(12, 1, 3, padding=1)

    def forward(self, frame: Any, cache: Any) -> Any:
        made = torch.relu(self.first(frame))
        return self.second(torch.cat([made, cache], 1)), made * 0.5 + cache * 0.5


def _frames(count: int, seed: int) -> Iterator[dict[str, Any]]:
    rng, time = np.random.default_rng(seed), np.arange(160) / 8000
    for index in range(count):
        loud = 0.9 if (index // 12) % 2 else 0.05
        wave = loud * np.sin(2 * np.pi * (200 + 40 * (index % 7)) * time) + 0.02 * rng.standard_normal(160)
        yield {"x": wave.astype(np.float32)[None], "state": np.zeros((1, 24), np.float32)}


def _pictures(count: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    for index in range(count):
        ramp = np.sin(np.linspace(0, 4, 35) + index / 5).reshape(1, 1, 7, 5) + 0.1 * rng.standard_normal(
            (1, 1, 7, 5)
        )
        yield {"frame": ramp.astype(np.float32), "cache": np.zeros((1, 6, 7, 5), np.float32)}


def _built(module: Any, example: Any, samples: Any, tmp_path: Any, **options: Any) -> dict[str, Any]:
    result = edgekit.build(
        module.eval(),
        example,
        targets=options.pop("targets", TARGETS),
        calibration=list(samples(40, 1)),
        evaluation=list(samples(options.pop("count", 220), 2)),
        options=edgekit.Options(out=tmp_path, speed_gate=False, strict=False, device=HERE, **options),
    )
    return {a.manifest.target.name: a for a in result.raise_for_failures().artifacts}


def _by_hand(module: Any, samples: Any, state: str) -> list[Any]:
    outputs, before = [], None
    with torch.no_grad():
        for sample in samples:
            inputs = {n: torch.from_numpy(a) for n, a in sample.items()}
            if before is not None:
                inputs[state] = before
            first, before = module(**inputs)
            outputs.append(first.numpy())
    return outputs


def test_a_detector_is_calibrated_and_verified_along_its_stream(tmp_path):
    module = Detector()
    example, few = (
        (torch.zeros(1, 160), torch.zeros(1, 24)),
        {"decisions": "96%"},
    )  # untrained: many near one half
    artifacts = _built(module, example, _frames, tmp_path, limit=few)
    assert set(artifacts) == set(TARGETS)
    wanted = _by_hand(module, _frames(220, 2), "state")
    assert 0.2 < np.mean(np.stack(wanted) >= 0.5) < 0.8  # both are decided
    for name, artifact in artifacts.items():
        rollout = artifact.manifest.details["rollout"]
        assert rollout["states"] == {"state": artifact.manifest.outputs[1].name}
        assert rollout["steps"] == 220
        assert rollout["decided"] == 220
        assert {g.name for g in artifact.manifest.gates} >= {"rollout", "decisions"}
        # The same by hand, step by step.
        got, before = [], None
        for sample in list(_frames(220, 2))[:30]:
            row = next(iter(artifact.predict([sample if before is None else {**sample, "state": before}])))
            first, before = row.values()
            got.append(first)
        near = 1e-4 if name.endswith("fp32") else 0.12
        np.testing.assert_allclose(np.stack(got), np.stack(wanted[:30]), atol=near, err_msg=name)
        if name.endswith("fp32"):
            assert rollout["decisions"] == 1.0


def test_states_that_are_pictures_and_a_short_stream(tmp_path):
    artifacts = _built(
        Enhancer(), (torch.zeros(1, 1, 7, 5), torch.zeros(1, 6, 7, 5)), _pictures, tmp_path, count=20
    )
    for name, artifact in artifacts.items():
        rollout = artifact.manifest.details["rollout"]
        assert rollout["steps"] == 200, name  # the stream is gone through again
        assert rollout["decisions"] is None
        assert rollout["explained"] > (0.999999 if name.endswith("fp32") else 0.9), name


def test_an_onnx_file_is_rolled_out_in_onnxruntime_and_verified_again(tmp_path):
    example = (torch.zeros(1, 160), torch.zeros(1, 24))
    path = tmp_path / "detector.onnx"
    torch.onnx.export(
        Detector().eval(),
        example,
        path,
        input_names=["x", "state"],
        output_names=["p", "stateN"],
        dynamo=True,
    )
    result = edgekit.build(
        str(path),
        targets="ort-int8",
        calibration=list(_frames(40, 1)),
        evaluation=list(_frames(220, 2)),
        options=edgekit.Options(out=tmp_path, speed_gate=False, device=HERE),
    )
    (artifact,) = result.raise_for_failures().artifacts
    rollout = artifact.manifest.details["rollout"]
    assert rollout["states"] == {"state": "stateN"}
    assert rollout["steps"] == 220
    again = artifact.verify(evaluation=list(_frames(220, 2)), source=str(path))
    values = {g.name: g.value for g in again.gates}
    assert values["decisions"] == pytest.approx(rollout["decisions"])
    assert values["rollout"] == pytest.approx(rollout["explained"])


def test_a_state_can_be_said_and_denied(tmp_path):
    example = (torch.zeros(1, 160), torch.zeros(1, 24))
    (artifact,) = _built(
        Detector(), example, _frames, tmp_path, targets="ort-fp32", state={"state": "none"}
    ).values()
    assert "rollout" not in artifact.manifest.details
    with pytest.raises(UsageError, match="cannot be the next"):
        _built(Detector(), example, _frames, tmp_path, targets="ort-fp32", state={"state": "output_0"})


class Level(torch.nn.Module):
    """A leaky sum of what comes in, under a name that is no state's, and whether it is high."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.taken, self.score = torch.nn.Linear(12, 20), torch.nn.Linear(20, 1)

    def forward(self, reading: Any, level: Any) -> Any:
        level = 0.97 * level + 0.2 * torch.tanh(self.taken(reading))
        return self.score(level), level


def _readings(count: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    for index in range(count):
        reading = np.sin(index / 4) + 0.3 * rng.standard_normal((1, 12))
        yield {"reading": reading.astype(np.float32), "level": np.zeros((1, 20), np.float32)}


LEVEL = (torch.zeros(1, 12), torch.zeros(1, 20))


def _level(tmp_path: Any, samples: Any = _readings, **options: Any) -> Any:
    (artifact,) = _built(Level(), LEVEL, samples, tmp_path, targets="ort-int8", **options).values()
    return artifact


def test_a_state_of_another_name_does_not_pass_unmeasured(tmp_path):
    artifact = _level(tmp_path)
    output = artifact.manifest.outputs[1].name
    assert artifact.manifest.status == "unproven"
    (gate,) = [g for g in artifact.manifest.gates if g.name == "rollout"]
    assert gate.verdict == "unproven"
    assert f"--state level={output} " in gate.message
    assert artifact.verify().status == "unproven"
    # Said to be one it is measured, said to be none it is not.
    named = _level(tmp_path / "named", state={"level": output})
    assert named.manifest.details["rollout"]["states"] == {"level": output}
    assert [g.verdict for g in named.manifest.gates if g.name == "rollout"] != ["unproven"]
    denied = _level(tmp_path / "denied", state={"level": "none"})
    assert "rollout" not in {g.name for g in denied.manifest.gates}


def test_samples_that_bring_a_state_and_inputs_without_data_are_no_sign_of_one(tmp_path):
    def moved(count: int, seed: int) -> Iterator[dict[str, Any]]:
        for index, sample in enumerate(_readings(count, seed)):
            yield {**sample, "level": sample["level"] + np.float32(0.1 * np.sin(index))}

    assert "rollout" not in {g.name for g in _level(tmp_path, moved).manifest.gates}
    result = edgekit.build(
        Level().eval(),
        LEVEL,
        targets="ort-fp32",
        options=edgekit.Options(out=tmp_path / "random", speed_gate=False, device=HERE),
    )
    (artifact,) = result.raise_for_failures().artifacts
    assert "rollout" not in {g.name for g in artifact.manifest.gates}
