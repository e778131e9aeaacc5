"""What came out: operators, transpositions that stayed, fusions, float islands, origins, MACs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgekit.backends.tflite.ir import Graph, Op, Origin
from edgekit.graph.weights import integer_share
from edgekit.types import Fallback

_TRANSFORMS = frozenset({"DFT", "STFT"})


@dataclass(frozen=True, kw_only=True)
class Report:
    """An account of one compilation.

    ``operators``: TFLite operator → how many. ``transposes``: TRANSPOSE operators that stayed.
    ``fusions``: kind → how many. ``left_in_float``: operators of a quantized graph that compute in float,
    and why. ``origins``: TFLite tensor name → ONNX node and PyTorch module. ``macs``: multiply-accumulates
    of the main graph's operators, in order; ``codes``: their names; ``types``: the types of their activations;
    ``weights``: how the constant operand of those that multiply is stored, ``"int8 expanded"`` where it becomes
    float32 when the file is loaded, empty without one. ``nested``: the same facts of every operator that multiplies in
    the bodies of WHILE and IF. ``integer_weights``: the share of the constants' values that are stored as integers.
    """

    operators: Mapping[str, int]
    transposes: int
    fusions: Mapping[str, int]
    left_in_float: tuple[Fallback, ...]
    origins: Mapping[str, Origin]
    codes: tuple[str, ...]
    macs: tuple[int, ...]
    types: tuple[str, ...]
    weights: tuple[str, ...]
    nested: tuple[Nested, ...] = ()
    integer_weights: float | None = None


@dataclass(frozen=True, kw_only=True)
class Nested:
    """One operator in the body of a WHILE or an IF."""

    code: str
    macs: int
    type: str
    weight: str


@dataclass(frozen=True, slots=True)
class FloatNode:
    """One ONNX node of a quantized graph that is computed in float."""

    op: str
    node: str
    reason: str


def make_report(graphs: Sequence[Graph], fusions: Mapping[str, int], floats: Sequence[FloatNode]) -> Report:
    """Sum up the finished graphs."""
    ops = [op for g in graphs for op in g.ops]
    counts = Counter(op.code for op in ops)
    expanded = {
        id(op.outputs[0]): f"{t.dtype.name} expanded"
        for op in ops
        if op.code == "DEQUANTIZE" and (t := op.inputs[0]) is not None and t.data is not None
    }
    # Ten layers left in float for one reason are one line.
    groups: dict[tuple[str, str], list[str]] = {}
    for f in floats:
        groups.setdefault((f.op, f.reason), []).append(f.node)
    return Report(
        operators=dict(sorted(counts.items())),
        transposes=counts["TRANSPOSE"],
        fusions=dict(sorted(fusions.items())),
        left_in_float=tuple(
            Fallback(op=op, count=len(nodes), reason=reason, nodes=tuple(nodes))
            for (op, reason), nodes in sorted(groups.items())
        ),
        origins={t.name: op.origin for op in ops for t in op.outputs},
        codes=tuple(op.code for op in graphs[0].ops),
        macs=tuple(macs(op) for op in graphs[0].ops),
        types=tuple(_computes_in(op) for op in graphs[0].ops),
        weights=tuple(_weight(op, expanded) for op in graphs[0].ops),
        nested=tuple(
            Nested(code=op.code, macs=macs(op), type=_computes_in(op), weight=_weight(op, expanded))
            for g in graphs[1:]
            for op in g.ops
            if macs(op)
        ),
        integer_weights=integer_share(_constants(ops)),
    )


def _constants(ops: Sequence[Op]) -> Iterator[tuple[int, str]]:
    """Size and type of every constant that is in the file, each once."""
    seen: set[int] = set()
    for t in (t for op in ops for t in op.inputs):
        # A constant in two subgraphs is two tensors with one buffer.
        if t is not None and t.data is not None and id(t.data) not in seen:
            seen.add(id(t.data))
            yield t.size, t.dtype.name


def _weight(op: Op, expanded: Mapping[int, str]) -> str:
    weight = op.inputs[1] if macs(op) else None
    if weight is None:
        return ""
    return weight.dtype.name if weight.data is not None else expanded.get(id(weight), "")


def _computes_in(op: Op) -> str:
    data = [t for t in op.inputs if t is not None]
    active = [t for t in data if t.data is None] or data
    # A transposed convolution's first input is the output's shape.
    return active[0].dtype.name if active else ""


def macs(op: Op) -> int:
    """Multiply-accumulates of one operator (0 for those that do not multiply matrices).

    A Fourier transform is spelled as a product, but it has no weights and is not the network's: other runtimes have an
    operator of its own for it, which no quantizer touches and nobody counts.
    """
    if op.origin.op in _TRANSFORMS:
        return 0
    out = math.prod(op.outputs[0].shape)
    if op.code in ("CONV_2D", "FULLY_CONNECTED"):
        return out * math.prod(op.input(1).shape[1:])
    if op.code == "CONV_3D":
        return out * math.prod(op.input(1).shape[:4])
    if op.code == "DEPTHWISE_CONV_2D":
        return out * math.prod(op.input(1).shape[1:3])
    if op.code == "TRANSPOSE_CONV":
        return math.prod(op.input(2).shape) * math.prod(op.input(1).shape[:3])
    if op.code == "BATCH_MATMUL":
        left = op.input(0)
        return out * (left.shape[-2] if op.options is not None and op.options.adjX else left.shape[-1])
    return 0
