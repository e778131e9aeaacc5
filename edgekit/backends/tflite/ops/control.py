"""If, Loop and Scan.

A known condition or number of iterations leaves no control flow behind: the branch, or every iteration, is
lowered in place. What depends on data becomes IF or WHILE with subgraphs, as long as every shape is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import BOOL, INT64, Graph, Tensor, Type
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View

MAX_ITERATIONS = 2048


@op("If", rule=Rule.ANY)
def if_(g: Builder, condition: View, *, then_branch: ir.Graph, else_branch: ir.Graph) -> Sequence[View]:
    """The branch in place, or IF."""
    if condition.const is not None:
        return g.lowering.inline(then_branch if bool(condition.const.reshape(-1)[0]) else else_branch, [])
    captured = g.lowering.captured([then_branch, else_branch])
    branches = [
        g.lowering.nested(name, graph, [], captured)
        for name, graph in (("then", then_branch), ("else", else_branch))
    ]
    results = [g.lowering.graphs[b].outputs for b in branches]
    # TFLite gives IF one shape, whichever branch runs.
    for a, b in zip(*results, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise Refusal(f"its branches give {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}")
    inputs = [g.reshape(g.plain(condition), ()), *(g.lowering.view(v).tensor for v in captured)]
    options = schema.IfOptionsT(thenSubgraphIndex=branches[0], elseSubgraphIndex=branches[1])
    outputs = [(t.shape, Type(t.dtype, t.quant)) for t in results[0]]
    return [View.of(t) for t in g.emit_many("IF", inputs, outputs, options)]


@op("Scan", since=9, rule=Rule.ANY)
def scan(
    g: Builder,
    *inputs: View,
    body: ir.Graph,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
) -> Sequence[View]:
    """Every iteration in place."""
    count = len(inputs) - num_scan_inputs
    states: list[View] = list(inputs[:count])
    sequences = inputs[count:]
    axes = [a % s.rank for a, s in zip(scan_input_axes or [0] * len(sequences), sequences, strict=True)]
    backwards = scan_input_directions or [0] * len(sequences)
    steps = sequences[0].shape[axes[0]]
    _affordable(steps)
    rows: list[list[View]] = []
    for t in range(steps):
        row = [
            _row(g, s, axis, steps - 1 - t if back else t)
            for s, axis, back in zip(sequences, axes, backwards, strict=True)
        ]
        results = g.lowering.inline(body, [*states, *row])
        states = list(results[:count])
        rows.append(results[count:])
    stacked = []
    for k, parts in enumerate(zip(*rows, strict=True)):
        ordered = (
            list(reversed(parts)) if scan_output_directions and scan_output_directions[k] else list(parts)
        )
        stacked.append(stack(g, ordered, scan_output_axes[k] if scan_output_axes else 0))
    return [*states, *stacked]


@op("Scan", since=8, rule=Rule.ANY)
def scan_8(
    g: Builder,
    lengths: View | None,
    *inputs: View,
    body: ir.Graph,
    num_scan_inputs: int,
    directions: Sequence[int] | None = None,
) -> Sequence[View]:
    """With a batch axis in front: each item of the batch is a scan of its own."""
    if lengths is not None:
        raise Refusal("sequence lengths of opset 8")
    items = []
    for i in range(inputs[0].shape[0]):
        parts = [_row(g, x, 0, i) for x in inputs]
        items.append(
            scan(g, *parts, body=body, num_scan_inputs=num_scan_inputs, scan_input_directions=directions)
        )
    return [stack(g, parts, 0) for parts in zip(*items, strict=True)]


@op("Loop", rule=Rule.ANY)
def loop(
    g: Builder, trip: View | None, condition: View | None, *initial: View, body: ir.Graph
) -> Sequence[View]:
    """Every iteration in place if their number is known, else WHILE."""
    going = True if condition is None else _truth(condition)
    known_trip = trip is None or trip.const is not None
    if going is None or not known_trip or not _countable(g, body, initial):
        return _while(g, trip, condition, initial, body)
    limit = None if trip is None or trip.const is None else int(trip.const.reshape(-1)[0])
    states = list(initial)
    rows: list[list[View]] = []
    while going and (limit is None or len(rows) < limit):
        _affordable(len(rows) + 1)
        count = View.of(g.constant(len(rows), INT64))
        results = g.lowering.inline(body, [count, View.of(g.constant(True, BOOL)), *states])
        going = _truth(results[0])
        if going is None:
            raise Refusal("a condition that is not known though all that it is made of is")
        states = results[1 : 1 + len(initial)]
        rows.append(results[1 + len(initial) :])
    if not rows and len(body.outputs) > 1 + len(initial):
        raise Refusal("a loop that never runs, with an output of every iteration")
    return [*states, *(stack(g, list(parts), 0) for parts in zip(*rows, strict=True))]


def _countable(g: Builder, body: ir.Graph, initial: Sequence[View]) -> bool:
    """Whether the body's condition follows from the iteration number, constants, and states that start as constants
    and follow from these alone."""
    constant_states = {k for k, v in enumerate(initial) if v.tensor.data is not None}
    while True:
        unknown = {body.inputs[2 + k] for k in range(len(initial)) if k not in constant_states}
        following = {k for k in constant_states if _follows(g, body, body.outputs[1 + k], unknown)}
        if following == constant_states:
            return _follows(g, body, body.outputs[0], unknown)
        constant_states = following


def _follows(g: Builder, body: ir.Graph, value: ir.Value | None, unknown: set[ir.Value]) -> bool:
    """Whether ``value`` is computed within ``body`` from constants and from inputs that are not ``unknown``."""
    front: list[ir.Value | None] = [value]
    seen: set[ir.Value] = set()
    while front:
        value = front.pop()
        if value is None or value in seen or value in body.inputs[:2]:
            continue
        seen.add(value)
        if value in unknown:
            return False
        producer = value.producer()
        if producer is None or producer.graph is not body:
            if value not in body.inputs and not g.lowering.is_constant(value):
                return False
        elif any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in producer.attributes.values()
        ):
            return False  # what its subgraphs read is not followed
        else:
            front += producer.inputs
    return True


def _while(
    g: Builder, trip: View | None, condition: View | None, initial: Sequence[View], body: ir.Graph
) -> Sequence[View]:
    """WHILE over (iteration, condition, states, trip count, values from outside)."""
    if len(body.outputs) > 1 + len(initial):
        raise Refusal(
            "a loop whose number of iterations is computed at run time, with an output of every iteration"
        )
    outside = g.lowering.captured([body])
    start = [
        g.constant(0, INT64),
        g.constant(True, BOOL) if condition is None else g.reshape(g.plain(condition), ()),
        *(g.plain(v) for v in initial),
    ]
    index = g.lowering.nested("loop", body, start, outside)
    inner = Builder(g.lowering.graphs[index], g.lowering, opset=g.opset)
    graph = inner.graph
    for before, after in zip(start[2:], graph.outputs[1:], strict=True):
        if before.shape != after.shape or before.dtype != after.dtype:
            raise Refusal(f"a loop whose state changes from {list(before.shape)} to {list(after.shape)}")
    # TFLite's WHILE has no counter of its own: it is the first state.
    next_count = inner.binary("ADD", graph.inputs[0], inner.constant(1, INT64))
    # No trip count: only the condition ends the loop.
    limit = g.constant(np.iinfo(np.int64).max, INT64) if trip is None else g.reshape(g.plain(trip), ())
    passed = Tensor((), INT64, "trip_count")
    going = inner.reshape(graph.outputs[0], ())
    graph.outputs = [next_count, going, *graph.outputs[1:], *graph.inputs[len(start) :], passed]
    graph.inputs = [*graph.inputs, passed]
    inputs = [*start, *(g.lowering.view(v).tensor for v in outside), limit]
    check = _condition_graph(g, inputs)
    options = schema.WhileOptionsT(condSubgraphIndex=check, bodySubgraphIndex=index)
    outputs = [(t.shape, Type(t.dtype, t.quant)) for t in inputs]
    results = g.emit_many("WHILE", inputs, outputs, options)
    return [View.of(t) for t in results[2 : len(start)]]


def _condition_graph(g: Builder, states: Sequence[Tensor]) -> int:
    """The subgraph that says whether to go on: the condition, and iterations left."""
    graph = Graph(
        "loop_condition",
        inputs=[Tensor(t.shape, t.dtype, f"state_{i}", quant=t.quant) for i, t in enumerate(states)],
    )
    index = len(g.lowering.graphs)
    g.lowering.graphs.append(graph)
    inner = Builder(graph, g.lowering, opset=g.opset)
    iterations_left = inner.compare("LESS", graph.inputs[0], graph.inputs[-1])
    graph.outputs = [inner.emit("LOGICAL_AND", [iterations_left, graph.inputs[1]], (), BOOL)]
    return index


def _truth(condition: View) -> bool | None:
    return None if condition.const is None else bool(condition.const.reshape(-1)[0])


def _affordable(iterations: int) -> None:
    if iterations > MAX_ITERATIONS:
        raise Refusal(f"more than {MAX_ITERATIONS} iterations: they are unrolled")


def _row(g: Builder, x: View, axis: int, index: int) -> View:
    """``x[index]`` along ``axis``, the axis gone."""
    if x.tensor.data is not None:
        stored = g.plain(g.dequantize(x)).data
        assert stored is not None
        return View.of(g.constant(np.take(stored, index, axis=axis)))
    t = g.plain(x)
    begin = [index if i == axis else 0 for i in range(t.rank)]
    part = g.slice(t, begin, [1 if i == axis else n for i, n in enumerate(t.shape)])
    return View.of(g.reshape(part, [n for i, n in enumerate(t.shape) if i != axis]))


def stack(g: Builder, parts: Sequence[View], axis: int) -> View:
    """Values of one shape along a new axis."""
    tensors = [g.plain(p) for p in parts]
    shape = list(tensors[0].shape)
    axis %= len(shape) + 1
    single = [*shape[:axis], 1, *shape[axis:]]
    rows = [g.reshape(t, single) for t in tensors]
    return View.of(g.concat(rows, axis))
