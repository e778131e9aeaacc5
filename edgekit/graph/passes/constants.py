"""Constants computed ahead of time."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.optimizer import fold_constants

_INPUT_LIMIT = 1 << 20
_OUTPUT_LIMIT = 1 << 18
"""Elements. What is larger stays computed: folding an Expand or a Range must not bloat the artifact."""


class FoldConstants(ir.passes.InPlacePass):
    """Evaluate nodes whose inputs are all constant, within the size limits, with onnxscript's folder."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        result = fold_constants(model, input_size_limit=_INPUT_LIMIT, output_size_limit=_OUTPUT_LIMIT)
        return ir.passes.PassResult(model, modified=bool(result.modified))
