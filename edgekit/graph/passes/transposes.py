"""Transposes in a row."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph.passes._edit import attribute, nodes, sweep


class MergeTransposes(ir.passes.InPlacePass):
    """``Transpose(Transpose(x))`` → one Transpose; where both undo each other, clean-up removes it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for node in nodes(model, "Transpose"):
            source = node.inputs[0]
            first = source.producer() if source is not None else None
            if first is None or first.op_type != "Transpose" or first.domain not in ("", "ai.onnx"):
                continue
            inner, outer = attribute(first, "perm", None), attribute(node, "perm", None)
            if inner is None or outer is None:
                continue
            node.replace_input_with(0, first.inputs[0])
            node.attributes["perm"] = ir.AttrInt64s("perm", [inner[i] for i in outer])
            modified = True
        if modified:
            sweep(model)
        return ir.passes.PassResult(model, modified=modified)
