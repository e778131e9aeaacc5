"""How constants are stored, as against what operators compute in: float16 weights, quantized weights
under float activations."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.ir import FLOAT16, FLOAT32, INT4, INT8, Graph, Op, Tensor

# Below, a DEQUANTIZE and its tensor take more bytes than float16 saves.
_SMALL = 64
# Beyond, a weight would become infinite.
_LARGEST_HALF = float(np.finfo(np.float16).max)
_BLOCK = 32
"""XNNPACK reads blocks of multiples of this."""
# How far a scale may move when it is stored as float16: normal numbers move by 2^-11, subnormal ones by far more.
_HALF_STEP = 2.0**-8
_DYNAMIC = {"FULLY_CONNECTED": (INT8, INT4), "CONV_2D": (INT8,), "TRANSPOSE_CONV": (INT8,)}
"""Kernels of XNNPACK that read integers under float activations. CONV_2D takes INT4 too, but in the builtin kernel."""
_WEIGHTED = frozenset({"FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "BATCH_MATMUL"})


def store_half(graph: Graph, wide: Collection[str] = ()) -> int:
    """Store float32 constants of more than a few elements as float16 behind a DEQUANTIZE.

    The runtime expands them once, when it loads the model; lookups (GATHER) expand only what they read.
    Constants with values beyond float16's range stay as they are, and so do those of operators that come from the ONNX
    nodes ``wide``. Returns how many were converted.
    """
    halves: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    out: list[Op] = []
    front: list[Op] = []
    for op in graph.ops:
        if op.origin.node in wide:
            out.append(op)
            continue
        # A table of embeddings is read a few rows a run: expanding all of it would cost its size in
        # float32.
        if op.code == "GATHER" and _fits_half(op.inputs[0]) and op.inputs[0] is not None:
            out += _gathered_half(op, op.inputs[0])
            continue
        for i, t in enumerate(op.inputs):
            if t is None or not _fits_half(t):
                continue
            if id(t) not in halves:
                real = Tensor(t.shape, FLOAT32, t.name)
                half = _half(t)
                halves[id(t)] = (t, half, real)
                front.append(Op("DEQUANTIZE", [half], [real], schema.DequantizeOptionsT(), op.origin))
            op.inputs[i] = halves[id(t)][2]
        out.append(op)
    graph.ops = front + out
    return len(halves)


def _fits_half(t: Tensor | None) -> bool:
    if t is None or t.data is None or t.dtype != FLOAT32 or t.size < _SMALL:
        return False
    return bool(np.max(np.abs(t.data)) <= _LARGEST_HALF)


def _half(t: Tensor) -> Tensor:
    assert t.data is not None
    return Tensor(t.shape, FLOAT16, f"{t.name}/float16" if t.name else "", t.data.astype(np.float16))


def _gathered_half(op: Op, table: Tensor) -> list[Op]:
    rows = Tensor(op.outputs[0].shape, FLOAT16)
    inputs: list[Tensor | None] = [_half(table), *op.inputs[1:]]
    expand = Op("DEQUANTIZE", [rows], op.outputs, schema.DequantizeOptionsT(), op.origin)
    return [Op(op.code, inputs, [rows], op.options, op.origin), expand]


def expand_weights(graph: Graph, *, dynamic: bool) -> int:
    """Quantized weights of operators with float activations.

    With ``dynamic`` they stay (the kernel quantizes the activations as it goes) where LiteRT has such a
    kernel and the weights are symmetric; else a DEQUANTIZE, done once at load, expands them to float32.
    Returns how many were expanded.
    """
    expanded: dict[int, tuple[Tensor, Tensor]] = {}
    widened: dict[int, tuple[Tensor, Tensor]] = {}
    out: list[Op] = []
    for op in graph.ops:
        w = _weight_under_float(op)
        if w is not None and not (dynamic and _has_dynamic_kernel(op.code, w)):
            stored = widened.setdefault(id(w), (w, _in_eight_bits(w)))[1]
            if dynamic and _has_dynamic_kernel(op.code, stored):
                op.inputs[1] = stored
            else:
                if id(w) not in expanded:
                    real, expanders = _expanded(stored, op)
                    expanded[id(w)] = (w, real)
                    out += expanders
                op.inputs[1] = expanded[id(w)][1]
        out.append(op)
    graph.ops = out
    return len(expanded)


def _weight_under_float(op: Op) -> Tensor | None:
    """The constant quantized weight of an operator with float activations."""
    if op.code not in _WEIGHTED:
        return None
    w, x = op.inputs[1], op.inputs[2 if op.code == "TRANSPOSE_CONV" else 0]
    if w is None or w.quant is None or w.data is None or x is None or x.quant is not None:
        return None
    return w


def _has_dynamic_kernel(code: str, w: Tensor) -> bool:
    """Whether a kernel reads these integers under float activations."""
    assert w.quant is not None
    if np.any(w.quant.zero_point) or w.dtype not in _DYNAMIC.get(code, ()):
        return False
    if not w.quant.block:
        return True
    # Scales of blocks are stored as float16.
    half = w.quant.scale.astype(np.float16).astype(np.float32)
    exact = np.all(np.abs(half - w.quant.scale) <= _HALF_STEP * w.quant.scale)
    return code == "FULLY_CONNECTED" and w.quant.axis == 1 and w.quant.block % _BLOCK == 0 and bool(exact)


def _in_eight_bits(w: Tensor) -> Tensor:
    """INT4 weights as INT8, which more kernels read and XNNPACK expands when it loads a file."""
    if w.dtype != INT4 or w.data is None or w.quant is None or w.quant.block:
        return w
    return Tensor(w.shape, INT8, w.name, w.data.astype(np.int8), w.quant)


def _expanded(w: Tensor, reader: Op) -> tuple[Tensor, list[Op]]:
    """The float32 weight and what expands it; weights in blocks are stored expanded."""
    assert w.quant is not None
    assert w.data is not None
    if w.quant.block:
        return Tensor(w.shape, FLOAT32, w.name, w.quant.dequantize(w.data)), []
    real = Tensor(w.shape, FLOAT32)
    return real, [Op("DEQUANTIZE", [w], [real], schema.DequantizeOptionsT(), reader.origin)]
