"""The MNIST example on a reduced size: every stage runs, the container gives back the weights it reports."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit import entropy

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "mnist_lossless"


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.data
def test_reduced(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    spec = importlib.util.spec_from_file_location("mnist_lossless", EXAMPLE / "mnist_lossless.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mnist_lossless", example)
    spec.loader.exec_module(example)

    task = example.digits(data / "mnist", train=12_000, test=2_000)
    result = example.compress(task, "lenet-300-100", "accurate", tmp_path)

    assert result.error < 6.0
    assert result.ratio > 60
    assert result.packed == (tmp_path / "model.safetensors.ekz").stat().st_size
    back = entropy.unpack(tmp_path / "model.safetensors.ekz", tmp_path / "back").path
    assert back.read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    with entropy.open(tmp_path / "model.safetensors.ekz") as container:
        first = container["1.weight"]
    assert len(np.unique(first)) <= 11
    assert np.count_nonzero(first) < 0.1 * first.size
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert [s["name"] for s in plan["steps"]] == ["prune", "cluster"]
