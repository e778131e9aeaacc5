"""Activations that exporters have taken apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgekit.graph.edit import attribute, nodes, only_user, replace, scalar, sweep

if TYPE_CHECKING:
    from edgekit.types import Array

_erf = np.vectorize(math.erf, otypes=[np.float64])
_GRID = np.concatenate([np.linspace(-8, 8, 129), [-60.0, 60.0]])
_TOLERANCE = 2e-6  # float32 constants; the two Gelus differ by 4e-4
_DEPTH = 8


@dataclass(frozen=True, kw_only=True)
class Activation:
    """An ONNX operator of one input, what it computes, and since which operator set it exists."""

    operator: str
    since: int
    attributes: Mapping[str, str]
    function: Callable[[Array], Array]


KNOWN: tuple[Activation, ...] = (
    Activation(
        operator="Gelu",
        since=20,
        attributes={"approximate": "none"},
        function=lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    ),
    Activation(
        operator="Gelu",
        since=20,
        attributes={"approximate": "tanh"},
        function=lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    Activation(
        operator="HardSwish", since=14, attributes={}, function=lambda x: x * np.clip(x / 6 + 0.5, 0, 1)
    ),
)

_ANCHORS = ("Erf", "Tanh", "HardSigmoid", "Clip", "Min", "Relu")
_ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Neg": np.negative,
    "Pow": np.power,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Erf": _erf,
    "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0),
    "Min": np.minimum,
    "Max": np.maximum,
}


class RecognizeActivations(ir.passes.InPlacePass):
    """Subgraphs that compute Gelu or HardSwish → that operator, however they are spelled.

    A subgraph of elementwise operators and scalar constants between one value and another is a function of
    one number: it is evaluated on a grid in float64 and compared with the known ones.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        opset = model.opset_imports.get("", 0)
        known = [k for k in KNOWN if opset >= k.since]
        modified = False
        for anchor in nodes(model, *_ANCHORS):
            if anchor.graph is not None and known:
                modified |= _recognize(anchor, known)
        if modified:
            sweep(model)
        return ir.passes.PassResult(model, modified=modified)


def _recognize(anchor: ir.Node, known: list[Activation]) -> bool:
    starts = _ancestors(anchor)
    for end in _descendants(anchor):
        for start in starts:
            values = _evaluate(end, start)
            match = next((k for k in known if values is not None and _same(values, k)), None)
            if match is not None and _is_private(end, start):
                made = ir.Node(
                    "",
                    match.operator,
                    [start],
                    [ir.AttrString(k, v) for k, v in match.attributes.items()],
                    name=f"{end.name}_{match.operator}",
                )
                replace(end, [made], covers=[anchor])
                return True
    return False


def _same(values: Array, known: Activation) -> bool:
    expected = known.function(_GRID)
    return bool(np.all(np.abs(values - expected) <= _TOLERANCE * (1 + np.abs(expected))))


def _ancestors(anchor: ir.Node) -> list[ir.Value]:
    """Values that the anchor is computed from by elementwise operators, the nearest first."""
    found: list[ir.Value] = []
    level = [v for v in anchor.inputs if v is not None and scalar(v) is None]
    for _ in range(_DEPTH):
        found += [v for v in level if not any(v is f for f in found)]
        producers = [v.producer() for v in level]
        level = [
            i
            for p in producers
            if p is not None and p.op_type in _ELEMENTWISE
            for i in p.inputs
            if i is not None and scalar(i) is None
        ]
    return found


def _descendants(anchor: ir.Node) -> list[ir.Node]:
    """The chain of elementwise operators that only continue from the anchor, the furthest last."""
    chain: list[ir.Node] = []
    node: ir.Node | None = anchor
    for _ in range(_DEPTH):
        node = only_user(node.outputs[0]) if node is not None else None
        if node is None or node.op_type not in _ELEMENTWISE or node.graph is not anchor.graph:
            break
        chain.append(node)
    return chain


def _evaluate(end: ir.Node, start: ir.Value) -> Array | None:
    """``end`` as a function of ``start`` on the grid; ``None`` when it depends on anything else."""
    memory: dict[int, Array | None] = {id(start): _GRID}

    def value(v: ir.Value | None, depth: int) -> Array | None:
        if v is None or depth > 3 * _DEPTH:
            return None
        if id(v) not in memory:
            number = scalar(v)
            producer = v.producer()
            if number is not None:
                memory[id(v)] = np.full_like(_GRID, number)
            else:
                memory[id(v)] = None if producer is None else compute(producer, depth + 1)
        return memory[id(v)]

    def compute(node: ir.Node, depth: int) -> Array | None:
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in ("HardSigmoid", "Clip"):
            return _limited(node, value(node.inputs[0], depth))
        function = _ELEMENTWISE.get(node.op_type)
        arguments = [value(v, depth) for v in node.inputs]
        if function is None or any(a is None for a in arguments):
            return None
        with np.errstate(all="ignore"):
            return np.asarray(function(*arguments))

    return compute(end, 0)


def _limited(node: ir.Node, x: Array | None) -> Array | None:
    if x is None:
        return None
    if node.op_type == "HardSigmoid":
        alpha, beta = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
        return np.clip(alpha * x + beta, 0, 1)
    low = scalar(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else -math.inf
    high = scalar(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else math.inf
    return None if low is None or high is None else np.clip(x, low, high)


def _is_private(end: ir.Node, start: ir.Value) -> bool:
    """Whether nothing outside reads what is computed between ``start`` and ``end``."""
    inner: set[int] = set()
    queue = [end]
    members = [end]
    while queue:
        for value in queue.pop().inputs:
            if value is None or value is start or scalar(value) is not None:
                continue
            producer = value.producer()
            if producer is not None and id(producer) not in inner:
                inner.add(id(producer))
                members.append(producer)
                queue.append(producer)
    allowed = {id(m) for m in members}
    return all(
        not o.is_graph_output() and all(id(u.node) in allowed for u in o.uses())
        for m in members[1:]
        for o in m.outputs
    )
