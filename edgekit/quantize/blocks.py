"""A graph as blocks: an operator with the bias addition and the activation that runtimes fuse into it."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgekit.errors import UnknownNameError
from edgekit.graph import io as graphs
from edgekit.graph import ops
from edgekit.graph.ops import Trait

WEIGHTED = ops.named(Trait.WEIGHTED)
_MANY_INPUTS = ops.named(Trait.BINARY | Trait.JOINS) | {"MatMul"}
_ABSORB_CLIP = WEIGHTED | {"Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool", "BatchNormalization"}
"""Operators whose kernels clip what they write: with integers at no cost."""


@dataclass(eq=False)
class Block:
    """``core`` decides the rule. ``bias`` is an addition of a constant vector behind a MatMul; ``clip`` a
    Relu, or a Clip with constant limits, that alone reads the output."""

    core: ir.Node
    bias: ir.Node | None = None
    clip: ir.Node | None = None

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The block's nodes in order."""
        return tuple(n for n in (self.core, self.bias, self.clip) if n is not None)

    @property
    def graph(self) -> ir.Graph:
        """Where it is: the model's graph, or one inside a branch or a loop."""
        graph = self.core.graph
        assert isinstance(graph, ir.Graph)
        return graph

    @property
    def outputs(self) -> Sequence[ir.Value]:
        """What other blocks read."""
        return self.nodes[-1].outputs

    @property
    def op(self) -> str:
        """The core's operator; other domains are spelled out."""
        return (
            self.core.op_type
            if self.core.domain in ("", "ai.onnx")
            else f"{self.core.domain}::{self.core.op_type}"
        )

    @property
    def data(self) -> tuple[ir.Value, ...]:
        """The inputs that hold values to compute with: activations, and constants of elementwise operators."""
        inputs = self.core.inputs if self.op in _MANY_INPUTS else self.core.inputs[:1]
        if self.op == "MatMul" and self.weight is not None:
            inputs = self.core.inputs[:1]
        return tuple(dict.fromkeys(v for v in inputs if v is not None))

    @property
    def activations(self) -> tuple[ir.Value, ...]:
        """The data inputs that are computed at run time."""
        return tuple(v for v in self.data if not is_constant(v))

    @property
    def weight(self) -> ir.Value | None:
        """The constant weight of a weighted operator."""
        if self.op not in WEIGHTED or len(self.core.inputs) < 2:
            return None
        value = self.core.inputs[1]
        return value if is_constant(value) else None

    @property
    def weight_values(self) -> int:
        """How many values the constant weight has; 0 without one."""
        weight = self.weight
        if weight is None or weight.const_value is None:
            return 0
        return _product(weight.const_value.shape)

    @property
    def weight_axis(self) -> int | None:
        """The weight's output-channel axis; ``None`` where a scale a channel does not apply."""
        weight = self.weight
        if weight is None or weight.const_value is None:
            return None
        rank = len(weight.const_value.shape)
        if self.op == "Conv":
            return 0
        if self.op == "ConvTranspose":
            return 1 if attribute(self.core, "group", 1) == 1 else None
        if self.op == "Gemm":
            return 0 if attribute(self.core, "transB", 0) else 1
        return 1 if rank == 2 else None

    @property
    def bias_value(self) -> ir.Value | None:
        """The constant bias, in the core or behind it."""
        if self.bias is not None:
            return next((v for v in self.bias.inputs if is_constant(v)), None)
        if self.op in ("Conv", "ConvTranspose", "Gemm") and len(self.core.inputs) > 2:
            value = self.core.inputs[2]
            return value if is_constant(value) else None
        return None

    @property
    def limits(self) -> tuple[float, float] | None:
        """What the activation clips to; ``None`` without one."""
        return None if self.clip is None else clip_limits(self.clip)

    @property
    def name(self) -> str:
        """The core's name."""
        return self.core.name or ""

    @property
    def macs(self) -> int:
        """Multiply-accumulates, dynamic dimensions counted as 1; 0 for operators without."""
        if self.op in ("LSTM", "GRU", "RNN"):
            return _recurrent_macs(self.core)
        if self.op not in WEIGHTED or len(self.core.inputs) < 2 or self.core.inputs[1] is None:
            return 0
        second = self.core.inputs[1]
        shape = second.const_value.shape if second.const_value is not None else second.shape
        if shape is None or len(shape) == 0:
            return 0
        if self.op in ("Conv", "ConvTranspose"):
            driver = self.core.outputs[0] if self.op == "Conv" else self.core.inputs[0]
            return _elements(driver) * _product(shape[1:]) if driver is not None else 0
        depth = (
            shape[-1]
            if self.op == "Gemm" and attribute(self.core, "transB", 0)
            else shape[max(len(shape) - 2, 0)]
        )
        return _elements(self.core.outputs[0]) * (depth if isinstance(depth, int) else 1)


def _recurrent_macs(node: ir.Node) -> int:
    """Every step of a sequence ``[time, batch, features]`` against both matrices."""
    sequence, *matrices = node.inputs[:3]
    shape = None if sequence is None else sequence.shape
    if shape is None or len(shape) < 2:
        return 0
    steps = _product(shape[:2])
    return steps * sum(_elements(m) for m in matrices if m is not None)


def find_blocks(graph: ir.Graph) -> list[Block]:
    """The graph's blocks in topological order. Every node is in exactly one."""
    taken: set[ir.Node] = set()
    blocks = []
    for node in graph:
        if node in taken:
            continue
        block = Block(core=node)
        if block.op == "MatMul":
            block.bias = _bias_behind(block)
        if block.op in _ABSORB_CLIP:
            behind = _only_reader(block.outputs[0])
            if behind is not None and clip_limits(behind) is not None:
                block.clip = behind
        taken.update(block.nodes)
        blocks.append(block)
    return blocks


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses, producer = value.uses(), value.producer()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = next(iter(uses)).node
    if producer is not None and node.graph is not producer.graph:
        return None  # in a branch or a loop, where it may run never or often
    return node if node.domain in ("", "ai.onnx") else None


def _bias_behind(block: Block) -> ir.Node | None:
    weight, node = block.weight, _only_reader(block.core.outputs[0])
    if (
        weight is None
        or weight.const_value is None
        or block.weight_axis is None
        or node is None
        or node.op_type != "Add"
    ):
        return None
    other = next((v for v in node.inputs if v is not block.core.outputs[0]), None)
    array = constant(other) if other is not None else None
    if (
        array is None
        or array.ndim == 0
        or array.size != array.shape[-1]
        or array.size != weight.const_value.shape[1]
    ):
        return None
    return node


def clip_limits(node: ir.Node) -> tuple[float, float] | None:
    """The limits of a Relu or a Clip with constant limits; ``None`` for other nodes."""
    if not ops.has(node, Trait.CLIPS):
        return None
    limits = [0.0 if node.op_type == "Relu" else -np.inf, np.inf]
    for i, value in enumerate(node.inputs[1:3] if node.op_type == "Clip" else ()):
        if value is None:
            continue
        array = constant(value)
        if array is None:
            return None
        limits[i] = float(array.reshape(-1)[0])
    return limits[0], limits[1]


def is_constant(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether a value is an initializer that no caller can override."""
    return value is not None and value.is_initializer() and not value.is_graph_input()


def constant(value: ir.Value) -> npt.NDArray[Any] | None:
    """The array of an initializer (one that is not an input as well), else ``None``. It is a copy of the file's."""
    return value.const_value.numpy() if is_constant(value) and value.const_value is not None else None


def matrix(block: Block) -> npt.NDArray[np.float32]:
    """The weight as ``[K, N]``."""
    assert block.weight is not None
    array = constant(block.weight)
    assert array is not None
    return (
        np.ascontiguousarray(array.T) if block.op == "Gemm" and attribute(block.core, "transB", 0) else array
    )


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value, or ``default`` where it is not set."""
    found = node.attributes.get(name)
    return default if found is None or found.is_ref() else found.value


def name_nodes(graph: ir.Graph) -> None:
    """Give nodes without a name, or with one that is taken, a name from their place in the graph; those inside
    branches and loops as well."""
    seen: set[str] = set()
    for i, node in enumerate(graph.all_nodes()):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{i}"
        seen.add(node.name)


def select(blocks: Sequence[Block], patterns: Sequence[str]) -> dict[Block, str]:
    """The blocks that each pattern means, with the first pattern that means them.

    A pattern is a node's name, a module path (with everything below), an operator or an output tensor;
    ``*`` and ``?`` are wild. Raises :class:`UnknownNameError` for a pattern that means nothing.
    """
    chosen: dict[Block, str] = {}
    names = {b: _names(b) for b in blocks} if patterns else {}
    for pattern in patterns:
        hits = [b for b in blocks if any(_matches(n, pattern) for n in names[b])]
        if not hits:
            known = {n for b in blocks for n in names[b] if n}
            raise UnknownNameError("node, module or operator", pattern, known, where="the options")
        for block in hits:
            chosen.setdefault(block, pattern)
    return chosen


def _names(block: Block) -> set[str]:
    names = {block.op}
    for node in block.nodes:
        path = graphs.module_path(node)
        parts = path.split(".") if path else []
        names |= {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
        names |= {node.name or "", *(o.name or "" for o in node.outputs)}
    return names - {""}


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _elements(value: ir.Value) -> int:
    return _product(value.shape or ())


def _product(dims: Any) -> int:
    return prod(d for d in dims if isinstance(d, int))
