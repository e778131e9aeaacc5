"""A source's example inputs against what was calibrated: the only inputs that came with the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import edgekit
from edgekit.artifact import summary
from edgekit.core.config import Options
from edgekit.errors import DataError
from edgekit.types import Verdict


def smooth(seed: int, count: int = 1) -> np.ndarray:
    """Pictures: noise with a blur, 0 to 1, ``[count, 3, 24, 24]``."""
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.random((count, 3, 30, 30)).astype(np.float32))
    blurred = torch.nn.functional.avg_pool2d(noise, 7, 1)
    low, high = (f(blurred.flatten(1), 1).values[:, None, None, None] for f in (torch.min, torch.max))
    return ((blurred - low) / (high - low)).numpy()


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    conv = torch.nn.Conv2d(3, 8, 3, padding=1)
    return torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 576, 6)).eval()


def rows(count: int, seed: int, factor: float) -> list[np.ndarray]:
    return [factor * picture[None] for picture in smooth(seed, count)]


def built(
    folder: Path,
    example: np.ndarray,
    factor: float,
    *,
    options: dict[str, object] | None = None,
    **more: object,
) -> edgekit.BuildResult:
    return edgekit.build(
        network(),
        example_inputs=(torch.from_numpy(example),),
        targets=["ort-int8"],
        calibration=rows(32, 1, factor),
        out=folder,
        options=Options(speed_gate=False, **(options or {})),
        **more,
    )


def test_honest_calibration_passes_and_says_what_it_was_judged_on(tmp_path: Path) -> None:
    (artifact,) = built(tmp_path, smooth(9), 1.0).artifacts
    assert summary.verdict(artifact.manifest) == "passed on 32 calibration samples"
    unseen = built(tmp_path / "eval", smooth(9), 1.0, evaluation=rows(32, 2, 1.0))
    assert summary.verdict(unseen.artifacts[0].manifest) == "passed; no metric measured"
    labelled = [(row, index % 6) for index, row in enumerate(rows(32, 2, 1.0))]
    judged = built(tmp_path / "labels", smooth(9), 1.0, evaluation=labelled).artifacts[0].manifest
    assert judged.parity is not None
    assert judged.parity.metric is not None
    assert "no metric" not in summary.verdict(judged)


@pytest.mark.parametrize("evaluated", [False, True])
def test_values_four_times_too_small_are_refused(tmp_path: Path, evaluated: bool) -> None:
    data = {"evaluation": rows(32, 2, 0.25)} if evaluated else {}
    with pytest.raises(DataError, match="example inputs leave the calibrated ranges") as raised:
        built(tmp_path, smooth(9), 0.25, **data)
    assert "--accept-data example" in raised.value.hint


def test_one_who_knows_accepts_it(tmp_path: Path) -> None:
    (artifact,) = built(tmp_path, smooth(9), 0.25, options={"accept_data": ("example",)}).artifacts
    assert any("example inputs" in f for f in artifact.manifest.calibration.findings)


def test_a_picture_of_noise_is_no_example(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random((1, 3, 24, 24)).astype(np.float32)
    (artifact,) = built(tmp_path, noise, 0.25).artifacts
    assert "example" not in {g.name for g in artifact.manifest.gates}


def test_of_rows_of_figures_it_is_unproven_which_of_the_two_is_wrong(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(5)
    (artifact,) = edgekit.build(
        torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)).eval(),
        example_inputs=(torch.from_numpy(rng.normal(size=(1, 12)).astype(np.float32)),),
        targets=["ort-int8"],
        calibration=[0.1 * rng.normal(size=(1, 12)).astype(np.float32) for _ in range(32)],
        out=tmp_path,
        options=Options(speed_gate=False),
    ).artifacts
    gate = next(g for g in artifact.manifest.gates if g.name == "example")
    assert gate.verdict is Verdict.UNPROVEN
    assert "unproven: example" in summary.verdict(artifact.manifest)


def test_what_was_unproven_is_not_proven_by_verifying_it(tmp_path: Path) -> None:
    """Golden vectors do not tell this gate: it was left out, and the artifact passed."""
    (artifact,) = built(tmp_path, smooth(9), 0.25, options={"accept_data": ("example",)}).artifacts
    manifest = artifact.manifest
    (gate,) = [g for g in manifest.gates if g.name == "example"]
    assert gate.verdict is Verdict.UNPROVEN
    result = artifact.verify()
    assert result.status == "unproven"
    assert gate in result.gates
