"""A long recurrent sequence as WHILE: one step in a subgraph, run once a time step.

Unrolled, a thousand steps make a file of tens of thousands of operators that takes seconds to load; the loop's
size does not depend on the length. A step costs a little more (WHILE hands its states over by copying), so that
short sequences stay unrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT32, Graph, Tensor, Type
from edgekit.backends.tflite.view import View

LOOP_FROM = 65
"""Sequences of at least this many steps become a loop."""

Step: TypeAlias = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(the input's share of the gates, states) → new states, the hidden state first."""


@dataclass(frozen=True, kw_only=True)
class Direction:
    """A direction's work: ``gates`` [T·B, G] in time order, the first ``states`` [B, H], whether it runs from
    the end, ``lengths`` [B, 1] int32 where sequences end early, and whether all hidden states are wanted."""

    gates: Tensor
    steps: int
    states: tuple[Tensor, ...]
    backwards: bool
    lengths: Tensor | None
    want_all: bool


@dataclass(slots=True)
class _Slots:
    """The loop's states in order: those that change, then those that every step only reads."""

    outside: list[Tensor] = field(default_factory=list)
    inside: list[Tensor] = field(default_factory=list)

    def add(self, t: Tensor, name: str) -> Tensor:
        """Pass ``t`` into the loop; the tensor that the body sees."""
        self.outside.append(t)
        self.inside.append(Tensor(t.shape, t.dtype, name))
        return self.inside[-1]


def looped(g: Builder, step: Step, work: Direction) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """All hidden states [T, B, H] if they are wanted, and the states after the last step.

    ``step`` may read constants only, besides what it is given.
    """
    batch, size = work.states[0].shape
    slots = _Slots()
    time = slots.add(g.constant(0, INT32), "time")
    states = [slots.add(s, f"state_{i}") for i, s in enumerate(work.states)]
    written = None
    if work.want_all:
        shape = (work.steps, batch, size)
        # Made at run time: a constant of the whole sequence would be stored in the file.
        zeros = g.emit("FILL", [g.ints(shape), g.constant(np.float32(0))], shape, FLOAT32)
        written = slots.add(zeros, "hidden")
    changing = len(slots.inside)
    shares = slots.add(g.reshape(work.gates, (work.steps, batch, work.gates.shape[1])), "gates")
    lengths = work.lengths
    if lengths is not None and lengths.data is None:
        lengths = slots.add(lengths, "lengths")
    body, check = Graph("step", inputs=slots.inside), Graph("more_steps")
    with g.inside(body):
        after = _body(g, step, work, (time, states, written, shares, lengths))
        body.outputs = [*after, *slots.inside[changing:]]
    with g.inside(check):
        check.inputs = [Tensor(t.shape, t.dtype, f"{t.name}_seen") for t in slots.inside]
        last = g.constant(work.steps, INT32)
        check.outputs = [g.compare("LESS", check.inputs[0], last)]
    graphs = g.lowering.graphs
    graphs += [check, body]
    options = schema.WhileOptionsT(condSubgraphIndex=len(graphs) - 2, bodySubgraphIndex=len(graphs) - 1)
    outputs = [(t.shape, Type(t.dtype)) for t in slots.outside]
    results = g.emit_many("WHILE", slots.outside, outputs, options)
    ends = tuple(results[1 : 1 + len(states)])
    return (results[1 + len(states)] if written is not None else None), ends


def _body(
    g: Builder,
    step: Step,
    work: Direction,
    seen: tuple[Tensor, Sequence[Tensor], Tensor | None, Tensor, Tensor | None],
) -> list[Tensor]:
    """One step; the states that change, after it."""
    time, states, written, shares, lengths = seen
    batch, size = states[0].shape
    index = time
    if work.backwards:
        last = g.constant(work.steps - 1, INT32)
        index = g.emit("SUB", [last, time], (), INT32, schema.SubOptionsT())
    share = g.gather(shares, index)
    new = step(share, tuple(states))
    out = new[0]
    if lengths is not None:
        # Past the end of its sequence an item keeps its state and gives zeros.
        valid = g.compare("GREATER", lengths, index)
        out = g.select(valid, out, g.constant(np.zeros(out.shape, FLOAT32)))
        new = tuple(g.select(valid, n, s) for n, s in zip(new, states, strict=True))
    after = [g.binary("ADD", time, g.constant(1, INT32)), *new]
    if written is not None:
        place = g.reshape(index, (1,))
        parts = [place, g.ints([0, 0])]
        start = g.concat(parts, 0)
        row = g.reshape(out, (1, batch, size))
        after.append(g.emit("DYNAMIC_UPDATE_SLICE", [written, row, start], written.shape, written))
    return after


def lengths_column(g: Builder, lengths: View | None, steps: int) -> Tensor | None:
    """Sequence lengths as int32 [B, 1]; None where all sequences are full."""
    if lengths is None or (lengths.const is not None and np.all(lengths.const >= steps)):
        return None
    return g.reshape(g.cast(g.plain(lengths), INT32), (lengths.size, 1))
