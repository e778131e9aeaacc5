"""Transposes in a row."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph.edit import integers, nodes, produced_by, sweep


class MergeTransposes(ir.passes.InPlacePass):
    """``Transpose(Transpose(x))`` → one Transpose; where both undo each other, clean-up removes it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for node in nodes(model, "Transpose"):
            first = produced_by(node.inputs[0], "Transpose")
            inner, outer = integers(first, "perm") if first is not None else None, integers(node, "perm")
            if first is None or inner is None or outer is None:
                continue
            node.replace_input_with(0, first.inputs[0])
            node.attributes["perm"] = ir.AttrInt64s("perm", [inner[i] for i in outer])
            modified = True
        if modified:
            sweep(model)
        return ir.passes.PassResult(model, modified=modified)
