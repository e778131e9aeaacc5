"""Operator versions: which revision of a builtin's contract an operator needs.

A runtime refuses a version that it does not know, so an operator asks for the lowest one that covers its
types and options. Source: ``tensorflow/lite/tools/versioning/op_version.cc``.
"""

from __future__ import annotations

from collections.abc import Callable

from edgekit.backends.tflite.ir import INT4, INT8, INT16, Op


def operator_version(op: Op) -> int:
    """The lowest version of ``op.code`` that covers ``op``."""
    rule = _RULES.get(op.code)
    return rule(op) if rule is not None else 1


def _input_type(op: Op) -> object:
    return next((t.dtype for t in op.inputs if t is not None), None)


def _by_type(int8: int, int16: int) -> Callable[[Op], int]:
    def rule(op: Op) -> int:
        kind = _input_type(op)
        return int16 if kind == INT16 else int8 if kind == INT8 else 1

    return rule


def _convolution(op: Op) -> int:
    weight = op.inputs[1]
    kind = _input_type(op)
    # INT4 weights, whatever the activations are.
    if weight is not None and weight.dtype == INT4:
        return 7
    if kind == INT16:
        return 4
    if kind == INT8:
        return 3
    # Float activations, integer weights: 5 is the hybrid kernel with a scale a channel.
    return 5 if weight is not None and weight.dtype == INT8 else 1


def _fully_connected(op: Op) -> int:
    weight = op.inputs[1]
    kind = _input_type(op)
    if kind == INT16:
        return 7
    if weight is not None and weight.dtype == INT4:
        # LiteRT before 2.1 computes blocks wrongly in XNNPACK (measured); it refuses version 14.
        return 14 if weight.quant is not None and weight.quant.block else 10
    if kind == INT8:
        return 12 if weight is not None and weight.quant is not None and weight.quant.per_channel else 4
    if weight is not None and weight.dtype == INT8:
        return 12 if weight.quant is not None and weight.quant.per_channel else 9
    return 5 if op.options is not None and op.options.keepNumDims else 1


_RULES: dict[str, Callable[[Op], int]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "FULLY_CONNECTED": _fully_connected,
    # The version that added int8, then the one that added int16.
    "BATCH_MATMUL": _by_type(2, 3),
    "ADD": _by_type(2, 3),
    "SUB": _by_type(2, 5),
    "MUL": _by_type(2, 4),
    "AVERAGE_POOL_2D": _by_type(2, 3),
    "MAX_POOL_2D": _by_type(2, 3),
    "CONCATENATION": _by_type(2, 3),
    "SOFTMAX": _by_type(2, 3),
    "LOGISTIC": _by_type(2, 3),
    "TANH": _by_type(2, 3),
    "MEAN": _by_type(2, 3),
    "PAD": _by_type(2, 3),
    "PADV2": _by_type(2, 3),
    "TRANSPOSE": _by_type(2, 4),
    "RESIZE_BILINEAR": _by_type(3, 4),
    "RESIZE_NEAREST_NEIGHBOR": _by_type(3, 4),
    "RELU": _by_type(2, 3),
    "RELU6": _by_type(2, 3),
    "LEAKY_RELU": _by_type(2, 2),
    "QUANTIZE": _by_type(2, 3),
    "DEQUANTIZE": _by_type(2, 3),
    "SLICE": _by_type(2, 4),
    "STRIDED_SLICE": _by_type(2, 4),
    "GATHER": _by_type(2, 4),
    "TRANSPOSE_CONV": _by_type(3, 4),
    "MAXIMUM": _by_type(2, 3),
    "MINIMUM": _by_type(2, 3),
    "BROADCAST_TO": lambda op: 3 if _input_type(op) == INT16 else 2,  # 1 was never a builtin
}
