"""Decide: which blocks compute on integers, and the scale of every tensor between them.

Nothing is changed here; :mod:`edgekit.quantize.place` carries the plan out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgekit.errors import UnsupportedError
from edgekit.graph import ops
from edgekit.graph.ops import Trait
from edgekit.quantize.bias import input_mean
from edgekit.quantize.blocks import Block, attribute, constant, find_blocks, select
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.fronts import fronts
from edgekit.quantize.hybrid import Hybrid
from edgekit.quantize.inputs import LayerRanges
from edgekit.quantize.islands import leave_islands
from edgekit.quantize.options import WEIGHTED_MSE, Cause, InFloat, QuantizeOptions
from edgekit.quantize.params import Affine, Floats, Stored, affine, fixed_affine
from edgekit.quantize.rules import OpRule, Rules
from edgekit.quantize.tails import float_tails
from edgekit.quantize.trained import Trained, on_grid
from edgekit.types import Scheme

Edge = tuple[Block, ir.Value]

_FLOAT_INPUTS = InFloat(Cause.NEIGHBOURS, "its inputs are float")
_FLOAT_READERS = InFloat(Cause.NEIGHBOURS, "only float operators read it")


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Where tensors are clipped: where they were ``trained`` to be, by ``layers`` where that knows better, else by
    the method asked for."""

    calibration: Calibration
    options: QuantizeOptions
    layers: LayerRanges | None = None
    trained: Trained = field(default_factory=Trained)

    def of(self, tensor: str, *, wide: bool, symmetric: bool) -> tuple[float, float]:
        """``(low, high)``; 16 bits (``wide``) are enough for all that was seen."""
        kept = self.trained.ranges.get(tensor)
        if kept is not None:
            return kept.low, kept.high
        bits = 16 if wide else 8
        found = (
            self.layers.range(tensor, bits=bits, symmetric=symmetric) if self.layers and not wide else None
        )
        if found is not None:
            return found
        plain = "mse" if self.options.method == WEIGHTED_MSE else self.options.method
        return self.calibration.range(
            tensor,
            "minmax" if wide else plain,
            bits=bits,
            symmetric=symmetric,
            percentile=self.options.percentile,
        )


@dataclass(kw_only=True)
class Plan:
    """The decisions.

    ``in_float``: the blocks that stay float, and why. ``dtypes``: what the activations of a block are stored as.
    ``own``: how a tensor is stored. ``stored``: tensors that every reader gets from integers (a set that keeps its
    order: names of new nodes depend on it). ``edges``: what a quantized block reads an input as, where it is
    not ``own``'s. ``raw``: inputs that a quantized block reads unquantized (fused additions) or already
    quantized (behind operators that keep the scale). ``weights``: integers already chosen, by the weight's
    name; others are rounded to nearest. ``means``: mean inputs of the blocks whose bias is corrected.
    ``hybrid``: blocks with integer weights that read and give floats. ``notes`` are for the report.
    """

    blocks: list[Block]
    in_float: dict[Block, InFloat]
    dtypes: dict[Block, str]
    own: dict[ir.Value, Affine] = field(default_factory=dict)
    stored: dict[ir.Value, None] = field(default_factory=dict)
    edges: dict[Edge, Affine] = field(default_factory=dict)
    raw: set[Edge] = field(default_factory=set)
    weights: dict[str, Stored] = field(default_factory=dict)
    means: dict[Block, Floats] = field(default_factory=dict)
    hybrid: set[Block] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def quantized(self, block: Block) -> bool:
        """Whether a block computes on integers."""
        return block not in self.in_float


def make_plan(
    graph: ir.Graph,
    ranges: Ranges,
    scheme: Scheme,
    rules: Rules,
    options: QuantizeOptions,
) -> Plan:
    """Plan the quantization of a graph whose constants are initializers."""
    return _Planner(graph, ranges, scheme, rules, options).plan()


class _Planner:
    def __init__(
        self,
        graph: ir.Graph,
        ranges: Ranges,
        scheme: Scheme,
        rules: Rules,
        options: QuantizeOptions,
    ) -> None:
        self.ranges, self.calibration = ranges, ranges.calibration
        self.scheme, self.rules, self.options = scheme, rules, options
        self.blocks = find_blocks(graph)
        self.producer: dict[ir.Value, Block] = {o: b for b in self.blocks for o in b.outputs}
        self.readers = _readers(self.blocks)
        self.order = {b: i for i, b in enumerate(self.blocks)}
        self.groups = _Groups()
        self.cache: dict[tuple[frozenset[ir.Value], str], Affine] = {}
        self.zero_centred: set[ir.Value] = set()
        self.trained = ranges.trained
        self.refused: dict[str, str] = {}
        self.joined: dict[str, None] = {}
        self.notes: tuple[str, ...] = ()
        self.int16 = select(self.blocks, options.int16)
        self.in_float: dict[Block, InFloat] = {}

    def plan(self) -> Plan:
        """All decisions, in the order in which they depend on each other."""
        self.in_float = in_float = self._in_float()
        kinds = {b: "int16" if b in self.int16 else self.scheme.activation for b in self.blocks}
        plan = Plan(blocks=self.blocks, in_float=in_float, dtypes=kinds, notes=[*self.notes])
        if self.rules.hybrid:
            self._find_hybrid(plan)
        for block in self.blocks:
            if plan.quantized(block):
                self._mark(plan, block)
        self._assign(plan)
        if self.trained:
            self._keep_weights(plan)
        if "bias" in self.options.corrections:
            self._find_means(plan)
        return plan

    def _find_hybrid(self, plan: Plan) -> None:
        hybrid = Hybrid(
            self.blocks, self.readers, plan.in_float, self._carries, outputs=self.options.float_outputs
        )
        hybrid.find(plan.dtypes, self.calibration)
        plan.hybrid |= hybrid.found
        plan.in_float.update(dict.fromkeys(hybrid.between, _FLOAT_INPUTS))

    def _carries(self, block: Block) -> bool:
        return self.rule(block).same_scale and len(block.activations) == 1

    def _find_means(self, plan: Plan) -> None:
        for block in self.blocks:
            correctable = plan.quantized(block) and block.weight is not None
            if correctable and (block.op != "MatMul" or block.bias is not None):
                mean = input_mean(block, self.calibration)
                if mean is not None:
                    plan.means[block] = mean

    def rule(self, block: Block) -> OpRule:
        """The block's rule; an empty one for operators that are not in the table."""
        return self.rules.ops.get(block.op, OpRule())

    # --- which blocks ---------------------------------------------------------------------------------

    def _in_float(self) -> dict[Block, InFloat]:
        excluded = select(self.blocks, self.options.exclude)
        in_float: dict[Block, InFloat] = {}
        integers: set[ir.Value] = set()
        front, self.notes = fronts(
            self.blocks, self.calibration, bits=16 if self.scheme.activation == "int16" else 8
        )
        for block in self.blocks:
            if block in excluded:
                in_float[block] = InFloat.excluded(excluded[block])
                continue
            if block in front:
                in_float[block] = front[block]
                continue
            why = InFloat.unsupported(self._impossible(block))
            if why is None and not self.rule(block).force and not self._follows(block, integers):
                why = _FLOAT_INPUTS
            if why is not None:
                in_float[block] = why
            elif self.rule(block).propagates:
                integers.update(block.outputs)
        if not self.rules.full_integer:
            self._cut_tails(in_float)
        elif self.options.float_outputs:
            float_tails(self.blocks, self.readers, in_float)
            if self.rules.islands and not self.trained:
                leave_islands(self.blocks, self.readers, self.rule, in_float, frozenset(self.int16))
        return in_float

    def _impossible(self, block: Block) -> str:
        if block.op not in self.rules.ops:
            return f"{self.rules.name} has no integer kernel for {block.op}"
        if not block.activations:
            return "its data is constant"
        if self.rule(block).constant and block.weight is None:
            return "its weights are computed at run time"
        if block.op == "Gemm" and not _plain_gemm(block.core):
            return "Gemm with alpha, beta or transA"
        values = [
            *block.activations,
            *(block.outputs if self.rule(block).produces_integer or self.rule(block).same_scale else ()),
        ]
        if not any(v.name in self.calibration for v in block.activations):
            return "does not compute on float32"
        for value in values:
            if value.name not in self.calibration:
                return f"tensor {value.name!r} has no calibrated range"
            if self.calibration.statistics(value.name or "").masked:
                return f"tensor {value.name!r} holds a mask (-inf or below -1e30)"
        return ""

    def _follows(self, block: Block, integers: set[ir.Value]) -> bool:
        return all(
            v in integers or (v.is_graph_input() and self.rules.full_integer) for v in block.activations
        )

    def _cut_tails(self, in_float: dict[Block, InFloat]) -> None:
        """Back to float: blocks that only follow, and that nothing quantized reads."""
        for block in reversed(self.blocks):
            if block in in_float or self.rule(block).force:
                continue
            readers = [r for o in block.outputs for r in self.readers.get(o, ())]
            if all(r in in_float for r in readers):
                in_float[block] = _FLOAT_READERS

    # --- which tensors --------------------------------------------------------------------------------

    def _mark(self, plan: Plan, block: Block) -> None:
        rule = self.rule(block)
        if (
            rule.symmetric_second
            and block.weight is None
            and len(block.core.inputs) > 1
            and block.core.inputs[1] is not None
        ):
            self.zero_centred.add(block.core.inputs[1])
        if block in plan.hybrid:
            plan.raw.update((block, value) for value in block.activations)
            return
        fused = self._fused_input(plan, block) if rule.fuses_sum else None
        for value in block.activations:
            source = self.producer.get(value)
            carried = source is not None and plan.quantized(source) and self.rule(source).same_scale
            if value is fused or (carried and not self.rules.requantize_same_scale):
                plan.raw.add((block, value))
        if rule.same_scale:
            plan.dtypes[block] = self._dtype_before(plan, block)
            self.groups.join([*block.activations, *block.outputs])
        if rule.produces_integer or (rule.same_scale and self.rules.requantize_same_scale):
            plan.stored.update(dict.fromkeys(block.outputs))

    def _dtype_before(self, plan: Plan, block: Block) -> str:
        source = self.producer.get(block.activations[0])
        return plan.dtypes[source] if source is not None and plan.quantized(source) else plan.dtypes[block]

    def _fused_input(self, plan: Plan, block: Block) -> ir.Value | None:
        """The input of an addition whose convolution the addition is fused into."""
        candidates = []
        for value in block.activations:
            source = self.producer.get(value)
            if source is None or not ops.has(source.core, Trait.CONVOLVES) or not plan.quantized(source):
                continue
            if len(value.uses()) == 1 and not value.is_graph_output() and source.clip is None:
                candidates.append(value)
        return max(candidates, key=lambda v: self.order[self.producer[v]], default=None)

    # --- which scales ---------------------------------------------------------------------------------

    def _assign(self, plan: Plan) -> None:
        for value in plan.stored:
            plan.own[value] = self._own(value, plan.dtypes[self.producer[value]])
        for block in self.blocks:
            if not plan.quantized(block):
                continue
            for value in block.activations:
                if (block, value) in plan.raw:
                    continue
                wanted = self._wanted(block, value, plan.dtypes[block])
                if plan.own.setdefault(value, wanted) != wanted:
                    plan.edges[block, value] = wanted

    def _own(self, value: ir.Value, dtype: str) -> Affine:
        fixed = self._fixed(value)
        if fixed is not None:
            return fixed_affine(*fixed, dtype, symmetric=self._symmetric(dtype))
        return self._shared(value, dtype)

    def _wanted(self, block: Block, value: ir.Value, dtype: str) -> Affine:
        """A block that keeps the scale reads its group's; others read tensors as they are stored."""
        if self.rule(block).same_scale:
            return self._shared(value, dtype)
        if self.rule(block).symmetric_inputs and block.weight is None:
            return self._measure(frozenset({value}), "int8", symmetric=True)
        kept = self._kept(value, dtype) if block.weight is not None else None
        return self._own(value, dtype) if kept is None else kept

    def _shared(self, value: ir.Value, dtype: str) -> Affine:
        members = frozenset(self.groups.members(value))
        if (members, dtype) not in self.cache:
            symmetric = self._symmetric(dtype) or not members.isdisjoint(self.zero_centred)
            self.cache[members, dtype] = self._measure(members, dtype, symmetric=symmetric)
        return self.cache[members, dtype]

    def _measure(self, members: frozenset[ir.Value], dtype: str, *, symmetric: bool) -> Affine:
        """One scale for a group: the fixed one if that covers all, else the hull of the members' ranges."""
        lows, highs, fixed = [], [], None
        kept = self._kept_of(members, dtype, symmetric=symmetric)
        if kept is not None:
            return kept
        for value in members:
            prescribed = self._fixed(value)
            if prescribed is not None:
                fixed = prescribed
                lows.append(fixed[0])
                highs.append(fixed[1])
                continue
            low, high = self._range(value, dtype, symmetric=symmetric)
            lows.append(low)
            highs.append(high)
        if fixed is not None and min(lows) >= fixed[0] and max(highs) <= fixed[1]:
            return fixed_affine(*fixed, dtype, symmetric=symmetric)
        return affine(min(lows), max(highs), dtype, symmetric=symmetric)

    def _fixed(self, value: ir.Value) -> tuple[float, float] | None:
        """The range that an integer kernel prescribes for what it gives."""
        source = self.producer.get(value)
        return None if source is None or source in self.in_float else self.rule(source).fixed

    def _range(self, value: ir.Value, dtype: str, *, symmetric: bool) -> tuple[float, float]:
        low, high = self.ranges.of(value.name or "", wide=dtype == "int16", symmetric=symmetric)
        source = self.producer.get(value)
        limits = source.limits if source is not None else None
        return (max(low, limits[0]), min(high, limits[1])) if limits is not None else (low, high)

    # --- what was trained ---------------------------------------------------------------------------------

    def _kept(self, value: ir.Value, dtype: str) -> Affine | None:
        """The trained range of a tensor in the target's type; where it has none, that is refused in the end."""
        found = self.trained.ranges.get(value.name or "")
        if found is None:
            return None
        kept = on_grid(found, dtype, symmetric=self._symmetric(dtype))
        if kept is None:
            self.refused[value.name or ""] = found.dtype if found.dtype == "int16" else "zero point"
        return kept

    def _kept_of(self, members: frozenset[ir.Value], dtype: str, *, symmetric: bool) -> Affine | None:
        """The one trained range among tensors that share a scale."""
        known = sorted(v.name or "" for v in members if v.name in self.trained.ranges)
        fixed = any(self._fixed(v) is not None for v in members)
        if not known or fixed:
            return None
        kept = {self._kept(v, dtype) for v in members if v.name in known}
        if len(kept) > 1:
            self.joined.update(dict.fromkeys(known))
            return None
        one = kept.pop()
        return one if one is not None and (not symmetric or one.zero_point == 0) else None

    def _keep_weights(self, plan: Plan) -> None:
        """The trained integers. Raises :class:`UnsupportedError` for what the target's scheme cannot have."""
        top = (1 << (self.options.weight_bits - 1)) - 1
        for block in plan.blocks:
            stored = self.trained.weights.get(block.weight.name or "") if block.weight is not None else None
            if stored is None or not plan.quantized(block):
                continue
            if top < 127 and abs(stored.values.astype(np.int16)).max(initial=0) > top:
                self.refused[block.name] = f"{self.options.weight_bits} bits"
            elif stored.axis is not None and (
                not self.scheme.per_channel or stored.axis != block.weight_axis
            ):
                self.refused[block.name] = "scales"
        if self.refused:
            raise _refusal(self.refused, self.scheme)
        plan.weights.update(self.trained.weights)
        if self.joined:
            plan.notes.append(f"trained apart, on one scale here: {', '.join(self.joined)}")
        rows = [b for b in plan.hybrid if b.activations[0].name in self.trained.ranges]
        if rows:
            plan.notes.append(
                f"{len(rows)} fully connected layers quantize their input row by row as they run, "
                "not with the range that was trained"
            )

    def _symmetric(self, dtype: str) -> bool:
        return self.scheme.activation_symmetric or dtype == "int16"


_WHY = {
    "int16": (
        "was trained with INT16",
        "this target computes on {activation}: take one with INT16 activations",
    ),
    "zero point": ("was trained with a zero point", "this target has none: train with qat(symmetric=true)"),
    "scales": ("was trained with a scale a channel", "this target has one a layer: qat(per_channel=false)"),
    "7 bits": ("was trained with 8 bits", "7 bits are asked for: train with qat(weights=7)"),
}


def _refusal(refused: Mapping[str, str], scheme: Scheme) -> UnsupportedError:
    """What was trained in a way that the scheme does not have, and what to do."""
    kinds = dict.fromkeys(refused.values())
    parts = []
    for kind in kinds:
        names = [n for n, k in refused.items() if k == kind]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        parts.append(f"{shown} {_WHY[kind][0]}")
    hints = [_WHY[kind][1].format(activation=scheme.activation.upper()) for kind in kinds]
    return UnsupportedError("; ".join(parts), hint="; ".join(hints))


class _Groups:
    """Disjoint sets of tensors that share a scale."""

    def __init__(self) -> None:
        self.sets: dict[ir.Value, set[ir.Value]] = {}

    def join(self, values: list[ir.Value]) -> None:
        merged = set().union(*(self.members(v) for v in values))
        for value in merged:
            self.sets[value] = merged

    def members(self, value: ir.Value) -> set[ir.Value]:
        return self.sets.get(value, {value})


def _readers(blocks: list[Block]) -> Mapping[ir.Value, list[Block]]:
    readers: dict[ir.Value, list[Block]] = {}
    for block in blocks:
        for node in block.nodes:
            for value in node.inputs:
                if value is not None and value not in block.core.outputs:
                    readers.setdefault(value, []).append(block)
    return readers


def _plain_gemm(node: ir.Node) -> bool:
    factors = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
    return factors and not attribute(node, "transA", 0)


def constant_affine(value: ir.Value, dtype: str, *, symmetric: bool) -> Affine:
    """Parameters of a constant operand from its own extremes."""
    array = constant(value)
    assert array is not None
    return affine(
        float(np.min(array, initial=0.0)), float(np.max(array, initial=0.0)), dtype, symmetric=symmetric
    )
