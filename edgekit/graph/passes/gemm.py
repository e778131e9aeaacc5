"""Matrix product and bias as one operator."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph.edit import constant, nodes, only_user, produced_by, replace


class MatMulAddToGemm(ir.passes.InPlacePass):
    """``Add(MatMul(x, W), b)`` on two axes → ``Gemm(x, W, b)``.

    Only for a matrix ``x`` and constants ``W`` and ``b`` with one bias an output: then every backend maps it
    to its fully connected operator, and a quantizer sees the bias as one.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for node in nodes(model, "Add"):
            for side in (0, 1):
                product = node.inputs[side]
                source = produced_by(product, "MatMul")
                if product is None or source is None:
                    continue
                if only_user(product) is node and _fits(source, node.inputs[1 - side]):
                    made = ir.Node("", "Gemm", [*source.inputs, node.inputs[1 - side]], name=source.name)
                    replace(node, [made], covers=[source])
                    assert source.graph is not None
                    source.graph.remove(source, safe=True)
                    modified = True
                    break
        return ir.passes.PassResult(model, modified=modified)


def _fits(product: ir.Node, bias: ir.Value | None) -> bool:
    left, right = product.inputs
    weight, shift = constant(right), constant(bias)
    if left is None or left.shape is None or len(left.shape) != 2 or weight is None or weight.ndim != 2:
        return False
    return shift is not None and shift.shape in ((weight.shape[1],), (1, weight.shape[1]))
