"""Divide activations whose channels differ, and multiply the weights that read them: SmoothQuant.

After Xiao et al., "SmoothQuant" (ICML 2023): channel c is divided by a_c^α / w_c^(1-α), from the largest
activation and the largest weight of the channel. There α is one number for a model. Here each tensor gets the
exponents of least noise at the outputs of the products that read it, which needs no trial: rounding noise is
known from the steps, and what the weights make of it from their norms (within 0.2 dB of the measured noise of
MiniLM's layers, a few outputs of its GELUs excepted). A tensor where little is gained is left alone.

Where a layer normalization or another product alone writes the tensor, its parameters take the factors; elsewhere
a product is put before the layers. What a convolution wrote is left alone, also behind pooling: it is stored as
integers already, and a division behind that would come too late.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgekit.graph import ops
from edgekit.graph.ops import Trait
from edgekit.quantize import rescaled
from edgekit.quantize.blocks import Block, attribute, constant, find_blocks
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.edit import Editor
from edgekit.quantize.equalize import (
    core_blocks,
    reach_of,
    scale_inputs,
    scale_outputs,
    store,
    takes_factors,
    takes_input_factors,
    weight_of,
)
from edgekit.quantize.inputs import LayerInputs
from edgekit.quantize.params import Floats

_ACTIVATION, _WEIGHT = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), (0.0, 0.2, 0.5)
"""Exponents that are tried: of the activation's largest value, and of the weight's."""
_WORTH = 2.0  # dB at the products' outputs: below that a product more is not worth its time
_LEVELS, _TOP = 255, 127
_ONWARD = ops.named(Trait.VIEW | Trait.PASSES | Trait.POOLS) | {
    *("Transpose", "Relu", "Clip", "HardSwish", "LeakyRelu", "Sigmoid", "ReduceMean", "ReduceMax")
}
"""Operators behind which a tensor still is what a convolution wrote."""

Doubles = npt.NDArray[np.float64]


def smooth(graph: ir.Graph, calibration: Calibration, inputs: LayerInputs) -> int:
    """Smooth tensors before matrix products, in place; how many."""
    blocks = find_blocks(graph)
    products = _products(graph, blocks)
    writers = {b.outputs[0]: b for b in blocks}
    names = [v.name or "" for v in products if v.name in calibration.tensors]
    squares = inputs.squares(names)
    editor, done = Editor(graph), 0
    for value, users in products.items():
        if value.name not in squares:
            continue
        factors = _factors(value, users, calibration, squares[value.name])
        if factors is None:
            continue
        inverse = (1.0 / factors).astype(np.float32)
        if not _fold(value, users, writers, inverse):
            _divide(editor, value, users, inverse)
        for user in users:
            scale_inputs(user, factors)
        done += 1
    return done


def _products(graph: ir.Graph, blocks: list[Block]) -> dict[ir.Value, list[Block]]:
    """The matrix products with weights of their own, by what they read."""
    readers = core_blocks(blocks)
    found = {}
    for value in [o for n in graph for o in n.outputs]:
        users = [b for u in value.uses() if (b := readers.get(u.node)) and takes_input_factors(b, value)]
        users = [b for b in users if b.op in ("Gemm", "MatMul")]
        if users and len({_matrix(b).shape[0] for b in users}) == 1 and not _convolved(value):
            found[value] = users
    return found


def _convolved(value: ir.Value) -> bool:
    """Whether a convolution wrote the tensor, perhaps before operators with one data input."""
    node = value.producer()
    while node is not None and not node.domain and node.op_type in _ONWARD:
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    return ops.is_op(node, "Conv", "ConvTranspose")


def _matrix(block: Block) -> Floats:
    """The weight as ``[inputs, outputs]``."""
    array = weight_of(block)
    return array.T if block.op == "Gemm" and attribute(block.core, "transB", 0) else array


@dataclass(frozen=True, kw_only=True)
class _Products:
    """All that decides the noise of products with one input, by input channel: extremes and mean square of the
    activations, the weights ``[inputs, outputs]``."""

    low: Floats
    high: Floats
    squares: Doubles
    weights: Floats

    def noise(self, factors: Floats) -> float:
        """Power of the rounding noise at the outputs if the input is divided by ``factors``."""
        weights = self.weights * factors[:, None]
        power = self.squares / np.square(factors, dtype=np.float64)
        span = max(float((self.high / factors).max()), 0.0) - min(float((self.low / factors).min()), 0.0)
        # Values far below a step become zero: they lose no more than themselves.
        rounding = np.minimum((span / _LEVELS) ** 2 / 12.0, power)
        steps = np.abs(weights).max(axis=0).astype(np.float64) / _TOP
        norms = np.square(weights, dtype=np.float64).sum(axis=1)
        return float(rounding @ norms + power.sum() * np.square(steps).sum() / 12.0)


def _factors(
    value: ir.Value, users: list[Block], calibration: Calibration, squares: Doubles
) -> Floats | None:
    reach = reach_of(value, calibration)
    if reach is None or reach.size != squares.size or reach.size != _matrix(users[0]).shape[0]:
        return None
    s = calibration.tensors[value.name or ""]
    weights = np.concatenate([_matrix(b) for b in users], axis=1)
    products = _Products(low=s.channel_low, high=s.channel_high, squares=squares, weights=weights)
    strength = np.maximum(np.abs(weights).max(axis=1), 1e-12)
    least, best = products.noise(np.ones_like(reach)) * 10 ** (-_WORTH / 10), None
    alive = reach > reach.max(initial=0.0) * 1e-6
    for a, b in itertools.product(_ACTIVATION, _WEIGHT):
        factors = np.where(alive, np.maximum(reach, 1e-30) ** a / strength**b, 1.0)
        factors[alive] /= np.exp(np.log(factors[alive]).mean()) if alive.any() else 1.0
        noise = products.noise(factors.astype(np.float32))
        if noise < least:
            least, best = noise, factors.astype(np.float32)
    return best


def _fold(value: ir.Value, users: list[Block], writers: dict[ir.Value, Block], inverse: Floats) -> bool:
    """Let what alone writes the tensor take the factors, where only ``users`` read it."""
    if len(value.uses()) != len(users) or value.is_graph_output():
        return False
    node = value.producer()
    if node is not None and node.op_type == "Reshape" and not node.domain:  # the last axis stays as it is
        source = node.inputs[0]
        if source is None or len(source.uses()) != 1 or source.is_graph_output():
            return False
        if not _into_writer(source, writers, inverse):
            return False
        rescaled.note(node, inverse, -1)
        return True
    return _into_writer(value, writers, inverse)


def _into_writer(value: ir.Value, writers: dict[ir.Value, Block], inverse: Floats) -> bool:
    node = value.producer()
    if node is not None and node.op_type == "LayerNormalization" and not node.domain:
        return _into_normalization(node, inverse)
    writer = writers.get(value)
    if writer is None or writer.op not in ("Gemm", "MatMul") or not takes_factors(writer):
        return False
    if weight_of(writer).shape[writer.weight_axis or 0] != inverse.size:
        return False
    scale_outputs(writer, inverse)
    return True


def _into_normalization(node: ir.Node, inverse: Floats) -> bool:
    operands = [v for v in node.inputs[1:] if v is not None]
    arrays = [constant(v) for v in operands]
    alone = all(len(v.uses()) == 1 and not v.is_graph_output() for v in operands)
    if not alone or any(a is None or a.shape != inverse.shape for a in arrays):
        return False
    for operand, array in zip(operands, arrays, strict=True):
        assert array is not None
        store(operand, array * inverse)
    rescaled.note(node, inverse, -1)
    return True


def _divide(editor: Editor, value: ir.Value, users: list[Block], inverse: Floats) -> None:
    product = editor.node(
        "Mul", f"{value.name}_smooth", [value, editor.constant(f"{value.name}_smooth", inverse)]
    )
    product.outputs[0].type, product.outputs[0].shape = value.type, value.shape
    producer = value.producer()
    assert producer is not None
    editor.graph.insert_after(producer, product)
    for user in users:
        user.core.replace_input_with(0, product.outputs[0])
