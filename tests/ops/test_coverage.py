"""What evaluation holds that calibration never saw: told by how far it lies outside, not by how much does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize_support import Items, attention

from edgekit.graph import io
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.calibrate.coverage import coverage
from edgekit.types import Coverage, OnnxModel

F = TensorProto.FLOAT
LIMIT = 0.1
"""What the INT8 rows take: 0.9 of the variance must be left."""


def network(folder: Path) -> OnnxModel:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 1, 3, 3)).astype(np.float32) / 3}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="filter", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["y"], name="rectified"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, [1, 1, 32, 32])],
        [helper.make_tensor_value_info("y", F, [1, 4, 32, 32])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return io.save(io.ir.from_proto(made), folder / "m.onnx")


def pictures(count: int, seed: int, change: Callable[[int, np.ndarray], None] = lambda k, x: None) -> Items:
    rng, found = np.random.default_rng(seed), []
    for k in range(count):
        x = rng.normal(0, 0.1, (1, 1, 32, 32)).astype(np.float32)
        change(k, x)
        found.append({"x": x})
    return Items(found)


def measured(folder: Path, calibration: Items, evaluation: Items) -> tuple[Coverage, ...]:
    model = network(folder)
    calibrate(model, calibration, out=folder / "c")
    return coverage(model, evaluation, Calibration.load(folder / "c"))


@pytest.mark.parametrize("calibrated", [8, 64])
def test_other_samples_of_the_same_kind_leave_the_ranges_and_cost_nothing(tmp_path, calibrated):
    worst = measured(tmp_path, pictures(calibrated, 0), pictures(64, 1))[0]
    assert worst.outside > 0
    assert worst.uncovered < 0.01


def test_heavy_tails_cost_little(tmp_path):
    def tails(k: int, x: np.ndarray) -> None:
        x[:] = np.random.default_rng(int(abs(x.sum()) * 1e6)).standard_t(4, x.shape) / 10

    assert measured(tmp_path, pictures(64, 0, tails), pictures(64, 1, tails))[0].uncovered < LIMIT / 2


@pytest.mark.parametrize("every", [1, 10])
def test_a_rare_class_that_calibration_never_saw_is_seen(tmp_path, every):
    """A dozen of 1,024 pixels, in all pictures or in one of ten."""

    def mark(k: int, x: np.ndarray) -> None:
        if k % every == 0:
            x[0, 0, 4:8, 4:7] += 3

    worst = measured(tmp_path, pictures(64, 0), pictures(64, 1, mark))[0]
    assert worst.outside < 0.02
    assert worst.uncovered > LIMIT
    assert worst.seen_high > 2 * worst.high


def test_what_is_clipped_on_purpose_is_no_matter(tmp_path):
    """Against what calibration saw, not against the range that a method chose."""

    def spike(k: int, x: np.ndarray) -> None:
        x[0, 0, 0, 0] = 5

    assert measured(tmp_path, pictures(32, 0, spike), pictures(32, 1, spike))[0].uncovered < 0.01


def test_masks_have_no_range(tmp_path):
    model, items = attention(tmp_path)
    calibrate(model, items, out=tmp_path / "c")
    calibration = Calibration.load(tmp_path / "c")
    found = coverage(model, items, calibration)
    assert found
    assert not any(calibration.statistics(c.tensor).masked for c in found)
    assert all(c.uncovered < 0.01 for c in found)
