"""What a loop hands on unchanged is read from outside: what it computes stays, and what must stay carried does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")

from edgekit.graph import io
from edgekit.graph.passes.loops import HoistInvariants

RNG = np.random.default_rng(3)
X = {"x": RNG.standard_normal((1, 4)).astype(np.float32)}

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
main (float[1,4] x) => (float[1,4] y{given}) <float[4,4] w = {{{w}}}, int64 turns = {{3}}, bool go = {{1}}> {{
  y, final = Loop (turns, go, x, w) <body = body (int64 i, bool on, float[1,4] s, float[4,4] {carried})
    => (bool more, float[1,4] s2, float[4,4] {handed}) {{
      more = Identity (on)
      m = MatMul (s, {carried})
      s2 = Tanh (m)
      {line}
  }}>
  {after}
}}
"""


def loop(carried: str = "v", handed: str = "", line: str = "", given: str = "", after: str = "") -> ir.Model:
    weights = ",".join(map(str, RNG.standard_normal(16).round(3).tolist()))
    return ir.from_onnx_text(
        TEXT.format(w=weights, carried=carried, handed=handed or carried, line=line, given=given, after=after)
    )


def states(model: ir.Model) -> int:
    return next(len(n.outputs) for n in model.graph if n.op_type == "Loop")


def answers(model: ir.Model, path: Path) -> dict[str, np.ndarray]:
    return io.run(io.session(io.save(model, path).path), X)


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"handed": "same", "line": "same = Identity (v)"},
        {"given": ", float[4,4] z", "after": "z = Neg (final)"},
    ],
)
def test_what_is_handed_on_is_read_from_outside(case, tmp_path):
    model = loop(**case)
    before = answers(model, tmp_path / "before.onnx")
    assert HoistInvariants()(model).modified
    assert states(model) == 1
    after = answers(model, tmp_path / "after.onnx")
    assert all(np.allclose(before[name], after[name], atol=1e-6) for name in before)


@pytest.mark.parametrize(
    "case",
    [
        {"handed": "less", "line": "less = Neg (v)"},  # it changes
        {"line": "w = Relu (s2)"},  # the body has a value of the outer one's name
        {"given": ", float[4,4] final"},  # an output of the model
    ],
)
def test_what_stays_carried(case):
    model = loop(**case)
    assert not HoistInvariants()(model).modified
    assert states(model) == 2


def test_openvino_reads_a_loop_that_carries_a_weight_under_its_name(tmp_path):
    """PaddlePaddle's exporter writes such loops; OpenVINO mistakes the carried value for the outer one."""
    openvino = pytest.importorskip("openvino")
    model = loop(carried="w")
    HoistInvariants()(model)
    openvino.Core().read_model(io.save(model, tmp_path / "m.onnx").path)
