"""The CIFAR-10 example on a reduced size: cut, trained, quantized, run; half of the arithmetic is gone."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cifar_prune_quantize"


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.data
def test_reduced(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    spec = importlib.util.spec_from_file_location("cifar_prune_quantize", EXAMPLE / "cifar_prune_quantize.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cifar_prune_quantize", example)
    spec.loader.exec_module(example)

    task = example.objects(data, tmp_path / "cifar10.npz", train=2_560, test=300)
    rows = example.compress(
        task, data, tmp_path, tune=0.5, steps=example.recipe(1.0), targets=("ort-fp32", "ort-int8")
    )

    whole, pruned, quantized = rows
    assert whole.accuracy > 75
    assert pruned.macs <= 0.5 * whole.macs
    assert pruned.parameters <= 0.5 * whole.parameters
    assert pruned.bytes < 0.6 * whole.bytes
    assert pruned.accuracy > 25  # one epoch of 20 steps; chance is 10
    assert quantized.accuracy > pruned.accuracy - 8
    assert quantized.bytes < 0.5 * pruned.bytes
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert [s["name"] for s in plan["steps"]] == ["shrink", "distill"]
    assert json.loads((tmp_path / "results.json").read_text())["rows"][1]["macs"] == pruned.macs
