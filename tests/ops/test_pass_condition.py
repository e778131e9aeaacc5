"""A rewrite is not blamed for what float32 itself makes of the last bit of a weight, and for more than that it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")

from edgekit.graph import io, passes

RNG = np.random.default_rng(6)


def amplifier(gain: float, factor: float = 1.0) -> ir.Model:
    """What two nearly equal sums leave, amplified: the last bits of ``w`` decide."""
    made = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        "main (float[2,16] x) => (float[2,8] y) {\n"
        "  a = MatMul (x, w)\n  b = MatMul (x, v)\n  d = Sub (a, b)\n  y = Mul (d, gain)\n}"
    )
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((16, 8)).astype(np.float32)
    values = {"w": weight * np.float32(factor), "v": weight * np.float32(1 + 3e-6), "gain": np.float32(gain)}
    for name, array in values.items():
        value = next(v for n in made.graph for v in n.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(np.asarray(array), name=name)
        value.shape, value.dtype = ir.Shape(np.shape(array)), ir.DataType.FLOAT
        made.graph.initializers[name] = value
    return made


@pytest.mark.parametrize(("factor", "same"), [(1 + 6e-8, True), (1 + 1e-4, False)])
def test_the_last_bit_of_a_weight_is_nobodys_change(factor, same, tmp_path):
    model = io.save(amplifier(100.0), tmp_path / "m.onnx")
    candidate = io.save(amplifier(100.0, factor), tmp_path / "c.onnx")
    check = passes._Check(model, None)
    assert check.passes(candidate) is same
    if same:
        assert check.worst is not None
        assert check.worst > passes._LIMIT  # alone it would be refused
