"""Carry a plan out: integer weights and biases, Q/DQ pairs, activations that the integers already clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgekit.quantize.blocks import Block, constant, is_constant
from edgekit.quantize.edit import Editor
from edgekit.quantize.float_model import FloatModel
from edgekit.quantize.params import (
    Affine,
    Floats,
    Stored,
    float8_weight,
    limits,
    quantize_bias,
    room_for_bias,
    weight_scale,
)
from edgekit.quantize.plan import Plan, constant_affine
from edgekit.quantize.rules import table
from edgekit.types import FLOAT8, Scheme


def place(graph: ir.Graph, plan: Plan, scheme: Scheme, floats: FloatModel, weight_bits: int) -> None:
    """Rewrite ``graph``, a copy of that of ``floats``, in place. Float semantics stay those of the plan whatever a
    runtime fuses."""
    _Placer(graph, plan, scheme, floats, weight_bits).run()


class _Placer:
    def __init__(
        self, graph: ir.Graph, plan: Plan, scheme: Scheme, floats: FloatModel, weight_bits: int
    ) -> None:
        self.graph, self.plan, self.scheme = graph, plan, scheme
        self.rules, self.floats, self.weight_bits = table(scheme.rules), floats, weight_bits
        self.dequantized: dict[ir.Value, ir.Value] = {}
        self.requantized: dict[tuple[ir.Value, Affine], ir.Value] = {}
        self.weights: dict[tuple[ir.Value, bytes], ir.Value] = {}
        self.editor = Editor(graph)

    def run(self) -> None:
        """Operands first, while the graph still is the one planned; then the activations between blocks."""
        for block in self.plan.blocks:
            if self.plan.quantized(block):
                self._operands(block)
        for block in self.plan.blocks:
            if self.plan.quantized(block):
                self._drop_clip(block)
        uses = {v: tuple(v.uses()) for v in self.plan.own}
        core = {n: b for b in self.plan.blocks for n in b.nodes}
        for value, stored in self.plan.own.items():
            self._between(value, stored, uses[value], core)
        self._drop_unused()

    # --- weights, biases and other constants ------------------------------------------------------------

    def _operands(self, block: Block) -> None:
        if block.weight is not None:
            self._weight(block)
            return
        rule = self.rules.ops[block.op]
        for value in block.data:
            if not is_constant(value) or not (rule.produces_integer or rule.same_scale):
                continue
            dq = self.editor.dequantize(
                block.core, value.name or "", _store(value, self._constant_affine(block, value))
            )
            _replace_input(block.core, value, dq)

    def _constant_affine(self, block: Block, value: ir.Value) -> Affine:
        output = block.outputs[0]
        if self.rules.ops[block.op].same_scale and output in self.plan.own:
            return self.plan.own[output]
        dtype = self.plan.dtypes[block]
        return constant_affine(value, dtype, symmetric=self.scheme.activation_symmetric or dtype == "int16")

    def _weight(self, block: Block) -> None:
        weight, activation = block.weight, self._read_scale(block)
        assert weight is not None
        real = _array(weight)
        bias = block.bias_value
        shift = None if bias is None else _array(bias).reshape(-1)
        integer_bias = activation is not None and self.scheme.bias == "int32"
        stored = self._rounded(block, real, shift, activation if integer_bias else None)
        key = (weight, stored.scale.tobytes())
        if key not in self.weights:
            self.weights[key] = self.editor.dequantize(block.core, weight.name or "", stored)
        block.core.replace_input_with(1, self.weights[key])
        if block in self.plan.means:
            error = self.floats.mean_error(block, real, stored, self.plan.means[block])
            shift = ((0.0 if shift is None else shift) - error).astype(np.float32)
        elif shift is None or not integer_bias:
            return
        self._bias(block, bias, shift, stored.scale * np.float32(activation) if integer_bias else None)

    def _rounded(self, block: Block, real: Floats, bias: Floats | None, activation: float | None) -> Stored:
        assert block.weight is not None
        stored = self.plan.weights.get(block.weight.name or "")
        axis = block.weight_axis if self.scheme.per_channel else None
        if self.scheme.weight == FLOAT8:
            return float8_weight(real, axis)
        scale = weight_scale(real, axis, self.weight_bits) if stored is None else stored.scale
        raised = scale
        if bias is not None and activation is not None:
            raised = room_for_bias(scale, bias if scale.ndim else np.abs(bias).max(), activation)
        if stored is not None and not (raised > scale).any():
            return stored
        axis = axis if stored is None else stored.axis
        nearest = self.floats.nearest(block.weight.name or "", real, axis, self.weight_bits, raised)
        if stored is None:
            return nearest
        kept = np.broadcast_to(nearest.spread <= stored.spread, real.shape)
        return dataclasses.replace(nearest, values=np.where(kept, stored.values, nearest.values))

    def _bias(self, block: Block, old: ir.Value | None, bias: Floats, scale: Floats | None) -> None:
        """Store a block's bias as INT32 on ``scale``, or as float without one."""
        node, name = block.bias or block.core, f"{block.name}_bias" if old is None else old.name or ""
        if scale is None:
            new = self.editor.constant(name, bias.reshape(_array(old).shape) if old is not None else bias)
        else:
            integers = quantize_bias(np.broadcast_to(bias, scale.shape) if scale.ndim else bias, scale)
            stored = Stored(values=integers, scale=scale.astype(np.float32), axis=0 if scale.ndim else None)
            new = self.editor.dequantize(node, name, stored)
        if old is not None:
            _replace_input(node, old, new)
        elif len(node.inputs) > 2:
            node.replace_input_with(2, new)
        else:
            node.resize_inputs(3)
            node.replace_input_with(2, new)

    def _read_scale(self, block: Block) -> float | None:
        """The scale of what a weighted block reads; ``None`` where it reads float."""
        value = block.activations[0]
        if block in self.plan.hybrid:
            return None
        if (block, value) in self.plan.edges:
            return self.plan.edges[block, value].scale
        own = self.plan.own.get(value)
        return own.scale if own is not None else None

    # --- activations --------------------------------------------------------------------------------------

    def _drop_clip(self, block: Block) -> None:
        """Remove an activation whose limits the stored integers cannot exceed anyway."""
        output, limits = block.outputs[0], block.limits
        own = self.plan.own.get(output)
        if block.clip is None or limits is None or own is None or not self._all_read_stored(output):
            return
        slack = own.scale * 0.51  # rounding the zero point may move the ends by half a step
        if own.high > limits[1] + slack:
            return
        if own.low < limits[0] - slack:
            self._lower_limit_only(block, limits[0])
            return
        inner = block.clip.inputs[0]
        assert inner is not None
        for use in tuple(output.uses()):
            use.node.replace_input_with(use.idx, inner)
        if output.is_graph_output():
            _take_output(self.graph, output, inner)
        self._move(output, inner)
        block.clip = None

    def _lower_limit_only(self, block: Block, low: float) -> None:
        """A Clip at zero whose upper limit the integers cannot exceed is a Relu, which every runtime fuses."""
        clip = block.clip
        if clip is None or clip.op_type == "Relu" or low != 0.0:
            return
        relu = ir.Node("", "Relu", clip.inputs[:1], num_outputs=1, name=clip.name)
        relu.metadata_props.update(clip.metadata_props)
        old, new = clip.outputs[0], relu.outputs[0]
        new.type, new.shape = old.type, old.shape
        self.graph.insert_before(clip, relu)
        for use in tuple(old.uses()):
            use.node.replace_input_with(use.idx, new)
        if old.is_graph_output():
            _take_output(self.graph, old, new)
        else:
            old.name, new.name = None, old.name
        self._move(old, new)
        block.clip = relu

    def _all_read_stored(self, value: ir.Value) -> bool:
        if value in self.plan.stored:
            return True
        core = {b.core: b for b in self.plan.blocks}
        return not value.is_graph_output() and all(
            (reader := core.get(u.node)) is not None
            and self.plan.quantized(reader)
            and value in reader.data
            and (reader, value) not in self.plan.raw
            for u in value.uses()
        )

    def _move(self, old: ir.Value, new: ir.Value) -> None:
        """The plan for ``old`` now holds for ``new``."""
        plan = self.plan
        plan.own[new] = plan.own.pop(old)
        if old in plan.stored:
            del plan.stored[old]
            plan.stored[new] = None
        for block, value in tuple(plan.edges):
            if value is old:
                plan.edges[block, new] = plan.edges.pop((block, old))
        for block, value in tuple(plan.raw):
            if value is old:
                plan.raw.discard((block, old))
                plan.raw.add((block, new))

    def _between(
        self, value: ir.Value, stored: Affine, uses: Sequence[Any], core: dict[ir.Node, Block]
    ) -> None:
        """Q/DQ behind one tensor, and every reader on the side where it belongs."""
        dq = self._pair(value, stored)
        for use in uses:
            block = core.get(use.node)
            reads = block is not None and self.plan.quantized(block) and use.node is block.core
            if reads and block is not None and value in block.data:
                if (block, value) in self.plan.raw:
                    if block in self.plan.hybrid and value in self.plan.stored:
                        use.node.replace_input_with(use.idx, dq)
                    continue
                edge = self.plan.edges.get((block, value))
                use.node.replace_input_with(use.idx, dq if edge is None else self._again(value, dq, edge))
            elif value in self.plan.stored:
                use.node.replace_input_with(use.idx, dq)
        if value.is_graph_output() and value in self.plan.stored:
            _take_output(self.graph, value, dq)

    def _again(self, value: ir.Value, dq: ir.Value, wanted: Affine) -> ir.Value:
        """A tensor on another scale, for the readers that need it there."""
        source = dq if value in self.plan.stored else value
        if (value, wanted) not in self.requantized:
            self.requantized[value, wanted] = self._pair(source, wanted)
        return self.requantized[value, wanted]

    def _pair(self, value: ir.Value, stored: Affine) -> ir.Value:
        scale, zero = self._scalars(stored)
        q = self.editor.node("QuantizeLinear", value.name or "", [value, scale, zero])
        q.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(np.dtype(stored.dtype)))
        q.outputs[0].shape = value.shape
        dq = self.editor.node("DequantizeLinear", value.name or "", [q.outputs[0], scale, zero])
        dq.outputs[0].type, dq.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, (q, dq))
        else:
            self.graph.insert_before(self.graph[0], (q, dq))
        return dq.outputs[0]

    # --- small things ---------------------------------------------------------------------------------------

    def _scalars(self, stored: Affine) -> tuple[ir.Value, ir.Value]:
        scale = np.asarray(stored.scale, np.float32)
        zero = np.asarray(stored.zero_point, stored.dtype)
        return self.editor.constant("scale", scale), self.editor.constant("zero_point", zero)

    def _drop_unused(self) -> None:
        for node in reversed(tuple(self.graph)):
            if node.op_type in ("Relu", "Clip") and not any(
                o.uses() or o.is_graph_output() for o in node.outputs
            ):
                self.graph.remove(node, safe=True)
        self.editor.drop_unused()


def _store(value: ir.Value, stored: Affine) -> Stored:
    least, most = limits(stored.dtype)
    steps = np.rint(_array(value) / stored.scale) + stored.zero_point
    integers: npt.NDArray[Any] = np.clip(steps, least, most).astype(stored.dtype)
    return Stored(values=integers, scale=np.asarray(stored.scale, np.float32), zero_point=stored.zero_point)


def _array(value: ir.Value) -> npt.NDArray[np.float32]:
    array = constant(value)
    assert array is not None
    return array.astype(np.float32, copy=False)


def _replace_input(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for i, value in enumerate(node.inputs):
        if value is old:
            node.replace_input_with(i, new)


def _take_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Make ``new`` the graph output that ``old`` was, under its name."""
    new_name, old_name = new.name, old.name
    for i, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[i] = new
    old.name = f"{old_name}_float" if new_name is None else new_name
    new.name = old_name
    if new.shape is None:
        new.shape = old.shape
