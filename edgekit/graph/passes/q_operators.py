"""Operators that compute on integers by themselves, as the arithmetic that they stand for between Q/DQ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgekit.graph.edit import constant, home, nodes, produced_by, replace
from edgekit.graph.make import Maker

_MICROSOFT = "com.microsoft"
_ONNX = ("", "ai.onnx")
_MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "MaxPool", "Expand")


class ToQdq(ir.passes.InPlacePass):
    """QLinearConv, QLinearMatMul and ONNX Runtime's QLinearAdd and its kin → DequantizeLinear, the operator on floats,
    QuantizeLinear.

    ONNX Runtime fuses them again; the other runtimes, and whoever plans a quantization anew, know Q/DQ only.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            rule = _RULES.get((_MICROSOFT if node.domain == _MICROSOFT else "", node.op_type))
            if rule is None or home(node) is None or node.domain not in (*_ONNX, _MICROSOFT):
                continue
            make = Maker(node)
            if rule(node, make):
                replace(node, make.made)
                modified = True
        for node in nodes(model, *_MOVES) if modified else ():
            self._moved(node)
        for node in nodes(model, "DequantizeLinear") if modified else ():
            self._bounded(node)
        return ir.passes.PassResult(model, modified=modified)

    @staticmethod
    def _moved(node: ir.Node) -> None:
        """Between two of them integers are moved: floats are, then, between DequantizeLinear and QuantizeLinear."""
        stored = produced_by(node.inputs[0], "QuantizeLinear")
        if stored is None or home(node) is None or any(o.uses() for o in node.outputs[1:]):
            return
        make, parts = Maker(node), [node.inputs[0], stored.inputs[1], _input(stored, 2)]
        result = make.add(node.op_type, [_real(make, parts), *node.inputs[1:]], **_attributes(node))
        _stored(make, result, parts[1], parts[2])
        replace(node, make.made)

    @staticmethod
    def _bounded(node: ir.Node) -> None:
        """What leaves the graph cannot leave the range of its integers: nor may it where floats are computed."""
        scale, zero = constant(node.inputs[1]), constant(_input(node, 2))
        ends = node.outputs[0].is_graph_output() and produced_by(node.inputs[0], "QuantizeLinear") is not None
        if not ends or scale is None or scale.size != 1 or zero is None or home(node) is None:
            return
        limits = np.iinfo(zero.dtype)
        low, high = ((np.float32(n) - np.float32(zero)) * scale for n in (limits.min, limits.max))
        make = Maker(node)
        bounds = [make.constant(np.asarray(v, np.float32).reshape(())) for v in (low, high)]
        make.add("Clip", [make.add("DequantizeLinear", node.inputs), *bounds])
        replace(node, make.made)


def _real(make: Maker, parts: Sequence[ir.Value | None], axis: int | None = None) -> ir.Value:
    """``parts`` (value, scale, zero point) as floats; ``axis`` is that of scales by channel."""
    scale = constant(parts[1])
    by_channel = axis is not None and scale is not None and scale.size > 1
    given = [parts[0], parts[1], *([] if parts[2] is None else [parts[2]])]
    return make.add("DequantizeLinear", given, **({"axis": axis} if by_channel and axis is not None else {}))


def _stored(make: Maker, value: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> bool:
    point = constant(zero)
    if point is not None and point.size and np.all(point == np.iinfo(point.dtype).min):
        value = make.add("Relu", [value])  # saturation is all that is left of it in such a file
    make.add("QuantizeLinear", [value, scale, *([] if zero is None else [zero])])
    return True


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if position < len(node.inputs) else None


def _bias(make: Maker, node: ir.Node, position: int, scales: tuple[int, int]) -> ir.Value | None:
    """The INT32 bias, whose scale is the product of the input's and the weight's."""
    bias, first, second = _input(node, position), *(constant(node.inputs[s]) for s in scales)
    if bias is None or first is None or second is None:
        return None
    scale = np.asarray(first, np.float32).reshape(-1)[0] * np.asarray(second, np.float32)
    return _real(make, [bias, make.constant(scale.astype(np.float32)), None], 0)


def _convolution(node: ir.Node, make: Maker) -> bool:
    x, w = _real(make, node.inputs[0:3]), _real(make, node.inputs[3:6], 0)
    bias = _bias(make, node, 8, (1, 4))
    if bias is None and _input(node, 8) is not None:
        return False
    result = make.add("Conv", [x, w, *([] if bias is None else [bias])], **_attributes(node))
    return _stored(make, result, node.inputs[6], node.inputs[7])


def _product(node: ir.Node, make: Maker) -> bool:
    scale = constant(node.inputs[4])
    if scale is not None and scale.ndim > 1:
        return False
    right = node.inputs[3]
    axis = len(right.shape) - 1 if right is not None and right.shape is not None else None
    a, b = _real(make, node.inputs[0:3]), _real(make, node.inputs[3:6], axis)
    return _stored(make, make.add("MatMul", [a, b]), node.inputs[6], node.inputs[7])


def _binary(op: str) -> Callable[[ir.Node, Maker], bool]:
    def rewritten(node: ir.Node, make: Maker) -> bool:
        result = make.add(op, [_real(make, node.inputs[0:3]), _real(make, node.inputs[3:6])])
        return _stored(make, result, node.inputs[6], _input(node, 7))

    return rewritten


def _unary(op: str) -> Callable[[ir.Node, Maker], bool]:
    def rewritten(node: ir.Node, make: Maker) -> bool:
        attributes = _attributes(node)
        if attributes.pop("channels_last", 0):
            return False
        attributes.pop("opset", None)
        result = make.add(op, [_real(make, node.inputs[0:3])], **attributes)
        return _stored(make, result, node.inputs[3], _input(node, 4))

    return rewritten


def _concatenation(node: ir.Node, make: Maker) -> bool:
    parts = [_real(make, node.inputs[i : i + 3]) for i in range(2, len(node.inputs), 3)]
    return _stored(make, make.add("Concat", parts, **_attributes(node)), node.inputs[0], node.inputs[1])


def _gemm(node: ir.Node, make: Maker) -> bool:
    attributes = _attributes(node)
    axis = 0 if attributes.get("transB") else 1
    a, b = _real(make, node.inputs[0:3]), _real(make, node.inputs[3:6], axis)
    bias = _bias(make, node, 6, (1, 4))
    if (bias is None and _input(node, 6) is not None) or attributes.get("alpha", 1.0) != 1.0:
        return False
    result = make.add("Gemm", [a, b, *([] if bias is None else [bias])], **attributes)
    scale = _input(node, 7)
    return True if scale is None else _stored(make, result, scale, _input(node, 8))


def _attributes(node: ir.Node) -> dict[str, int | float | str | Sequence[int]]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


_RULES: dict[tuple[str, str], Callable[[ir.Node, Maker], bool]] = {
    ("", "QLinearConv"): _convolution,
    ("", "QLinearMatMul"): _product,
    (_MICROSOFT, "QLinearConv"): _convolution,
    (_MICROSOFT, "QLinearAdd"): _binary("Add"),
    (_MICROSOFT, "QLinearMul"): _binary("Mul"),
    (_MICROSOFT, "QLinearSigmoid"): _unary("Sigmoid"),
    (_MICROSOFT, "QLinearLeakyRelu"): _unary("LeakyRelu"),
    (_MICROSOFT, "QLinearSoftmax"): _unary("Softmax"),
    (_MICROSOFT, "QLinearGlobalAveragePool"): _unary("GlobalAveragePool"),
    (_MICROSOFT, "QLinearAveragePool"): _unary("AveragePool"),
    (_MICROSOFT, "QLinearConcat"): _concatenation,
    (_MICROSOFT, "QGemm"): _gemm,
}
