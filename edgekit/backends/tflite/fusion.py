"""Fusions on a finished TFLite graph: activations, per-channel products and sums, chains of moves."""

from __future__ import annotations

from collections import Counter

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.ir import FLOAT32, Array, Graph, Op, Tensor

_ACTIVATIONS = {
    "RELU": schema.ActivationFunctionType.RELU,
    "RELU6": schema.ActivationFunctionType.RELU6,
    "RELU_N1_TO_1": schema.ActivationFunctionType.RELU_N1_TO_1,
}
_MOVES = frozenset({"RESHAPE", "TRANSPOSE"})
_OUT_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
_FUSES_ACTIVATION = frozenset(
    [
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "ADD",
        "SUB",
        "MUL",
        "DIV",
        "AVERAGE_POOL_2D",
        "MAX_POOL_2D",
        "CONV_3D",
    ]
)


def fuse_graph(graph: Graph) -> Counter[str]:
    """Fuse in one pass over the operators, first to last."""
    return _Fuser(graph).run()


class _Fuser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.outputs = {id(t) for t in graph.outputs}
        self.readers: Counter[int] = Counter(id(t) for op in graph.ops for t in op.inputs if t is not None)
        self.readers.update(id(t) for t in graph.outputs)
        self.producer: dict[int, Op] = {}
        self.alias: dict[int, Tensor] = {}
        self.counts: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        kept: list[Op] = []
        for op in self.graph.ops:
            op.inputs = [t if t is None else self.alias.get(id(t), t) for t in op.inputs]
            if self._absorb(op):
                continue
            kept.append(op)
            self.producer.update((id(t), op) for t in op.outputs)
        self.graph.ops = kept
        return self.counts

    def _absorb(self, op: Op) -> bool:
        """Whether ``op`` disappeared into its producer."""
        if op.code in _ACTIVATIONS:
            return self._activation(op)
        if op.code in ("MUL", "ADD", "SUB"):
            return self._per_channel(op)
        if op.code in ("RESHAPE", "TRANSPOSE"):
            return self._move(op)
        return False

    def _sole(self, tensor: Tensor | None) -> Op | None:
        """The producer of a tensor that only one operator reads."""
        if tensor is None or self.readers[id(tensor)] != 1:
            return None
        return self.producer.get(id(tensor))

    def _take_over(self, producer: Op, op: Op, kind: str) -> bool:
        """``producer`` now delivers what ``op`` did."""
        producer.outputs[0] = op.outputs[0]
        self.producer[id(op.outputs[0])] = producer
        self.counts[kind] += 1
        return True

    def _activation(self, op: Op) -> bool:
        producer = self._sole(op.inputs[0])
        if producer is None or producer.code not in _FUSES_ACTIVATION or not _open(producer):
            return False
        # In integers the activation may also change the scale.
        if not producer.outputs[0].same_type(op.outputs[0]):
            return False
        producer.options.fusedActivationFunction = _ACTIVATIONS[op.code]
        return self._take_over(producer, op, "activation")

    def _per_channel(self, op: Op) -> bool:
        """``conv(x) * s``, ``conv(x) + b`` → other weights, other bias."""
        left, right = op.inputs[0], op.inputs[1]
        # A sum and a product take their constant on either side; c - conv(x) is no bias.
        if op.code != "SUB" and left is not None and left.data is not None:
            left, right = right, left
        if left is None or right is None or right.data is None or right.dtype != FLOAT32:
            return False
        if op.outputs[0].dtype != FLOAT32 or op.outputs[0].shape != left.shape or not _open(op):
            return False
        producer = self._sole(left)
        while op.code == "MUL" and right.size == 1 and producer is not None and producer.code in _MOVES:
            # A factor for all elements passes moves.
            producer = self._sole(producer.inputs[0])
        if producer is None or producer.code not in _OUT_AXIS or not _open(producer):
            return False
        if not _apply(producer, op.code, right.data):
            return False
        return self._take_over(self.producer[id(left)], op, "scale" if op.code == "MUL" else "bias")

    def _move(self, op: Op) -> bool:
        """Chains of RESHAPE or of TRANSPOSE, and those that change nothing."""
        source = op.inputs[0]
        before = self.producer.get(id(source)) if source is not None else None
        if before is not None and before.code == op.code:
            if op.code == "TRANSPOSE":
                order = before.values(1)[op.values(1)]
                op.inputs[1] = Tensor(order.shape, order.dtype, "", order)
            op.inputs[0] = source = before.inputs[0]
            self.counts[op.code.lower()] += 1
        assert source is not None
        nothing = source.shape == op.outputs[0].shape and (
            op.code == "RESHAPE" or (op.inputs[1] is not None and _ascending(op.inputs[1]))
        )
        if nothing and id(op.outputs[0]) not in self.outputs:
            self.alias[id(op.outputs[0])] = source
            self.readers[id(source)] += self.readers[id(op.outputs[0])]
            return True
        return False


def _apply(producer: Op, code: str, operand: Array) -> bool:
    """Work a constant product or sum into the weights and bias of a convolution; False if it does not fit."""
    weight = producer.inputs[1]
    bias = producer.inputs[2] if len(producer.inputs) > 2 else None
    if weight is None or weight.data is None or (bias is not None and bias.data is None):
        return False
    # Integer weights times a factor would have to be rounded again.
    if weight.dtype != FLOAT32 and code == "MUL":
        return False
    axis = _OUT_AXIS[producer.code]
    count = weight.shape[axis]
    # Per channel, or one number: anything else is not what a bias or a row of weights can hold.
    if operand.size not in (1, count) or (operand.size > 1 and operand.shape[-1] != count):
        return False
    values = np.broadcast_to(operand.reshape(-1), (count,))
    old = np.zeros(count, np.float32) if bias is None or bias.data is None else bias.data
    if code == "MUL":
        shape = [1] * weight.rank
        shape[axis] = count
        scaled = np.asarray(weight.data * values.reshape(shape), np.float32)
        producer.inputs[1] = Tensor(weight.shape, FLOAT32, weight.name, scaled)
        new = old * values
    else:
        new = old + values if code == "ADD" else old - values
    name = bias.name if bias is not None else ""
    producer.inputs[2:] = [Tensor((count,), FLOAT32, name, np.asarray(new, np.float32))]
    return True


def _open(op: Op) -> bool:
    """Whether the operator has no fused activation yet."""
    return bool(op.options.fusedActivationFunction == schema.ActivationFunctionType.NONE)


def _ascending(order: Tensor) -> bool:
    return order.data is not None and bool(np.all(order.data == np.arange(order.size)))
