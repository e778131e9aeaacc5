"""The preprocessing contract as part of the graph: the model then takes pixels as they are.

What is folded is colour to grey or colour order, ``(pixel * scale - mean) / std`` and the layout; resizing and
cropping stay outside, because they depend on the image's size. The input becomes ``[N, H, W, 3]`` with values 0
to 255, float32 or uint8, which is what cameras, canvases and MediaPipe Tasks give. Not in
:data:`edgekit.graph.passes.PASSES`: it changes what the model takes, so it is applied on request only, after
quantization: the added nodes stay in float and what follows them is the same to the bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgekit.errors import ConfigError
from edgekit.graph import io
from edgekit.graph.edit import add_constant
from edgekit.preprocess.contract import LUMA, Preprocessing
from edgekit.types import OnnxModel


class FoldPreprocessing(ir.passes.InPlacePass):
    """``x`` → ``Cast (uint8), luma (grey), Transpose, Gather (BGR), Mul, Add`` in front of what reads ``x``.

    Luma is ``Floor(ReduceSum(x * weights) + 0.5)`` with 16-bit fixed-point weights: exact in float32.

    ``pixel * (scale / std) - mean / std`` with both constants computed in double and rounded once: within
    three units in the last place of the table that :meth:`Preprocessing.table` gives.

    Raises :class:`ConfigError` where the contract is not one of this model's float32 inputs.
    """

    def __init__(self, contract: Preprocessing, dtype: str = "float32") -> None:
        super().__init__()
        self.contract, self.dtype = contract, ir.DataType.from_numpy(np.dtype(dtype))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        value = self._input(model.graph)
        uses = tuple(value.uses())
        nodes = self._nodes(model.graph, value)
        result = nodes[-1].outputs[0] if nodes else value
        for user, index in uses:
            user.replace_input_with(index, result)
        first = next(iter(model.graph), None)
        if nodes and first is not None:
            model.graph.insert_before(first, nodes)
        batch = value.shape[0] if value.shape is not None else 1
        value.shape = ir.Shape([batch, *self.contract.size, 3])
        value.dtype = self.dtype
        return ir.passes.PassResult(model, modified=True)

    def _input(self, g: ir.Graph) -> ir.Value:
        wanted = self.contract.input
        candidates = [v for v in g.inputs if not wanted or v.name == wanted]
        for value in candidates:
            shape = None if value.shape is None else tuple(value.shape)
            fits = (
                shape is not None
                and len(shape) == 4
                and all(
                    not isinstance(d, int) or d == s
                    for d, s in zip(shape[1:], self.contract.shape[1:], strict=True)
                )
            )
            if fits and value.dtype == ir.DataType.FLOAT:
                return value
        raise ConfigError(
            f"fold_preprocessing: no float32 input takes {list(self.contract.shape)}",
            hint="make resize, crop, color and layout those of the exported model",
        )

    def _nodes(self, g: ir.Graph, value: ir.Value) -> list[ir.Node]:
        c, nodes = self.contract, list[ir.Node]()
        taken = {v.name for n in g for v in n.outputs} | {n.name for n in g} | {v.name for v in g.inputs}

        def add(op: str, *constants: ir.Value, **attributes: object) -> None:
            source = nodes[-1].outputs[0] if nodes else value
            made = ir.node(op, [source, *constants], attributes=attributes)  # type: ignore[arg-type]
            made.name = made.outputs[0].name = _free(taken, f"{value.name}_{op.lower()}")
            made.outputs[0].dtype = ir.DataType.FLOAT
            nodes.append(made)

        axis, ones = (1, (1, c.channels, 1, 1)) if c.layout == "NCHW" else (3, (1, 1, 1, c.channels))
        std = np.broadcast_to(np.asarray(c.std, np.float64), c.channels)
        factor = (c.scale / std).astype(np.float32).reshape(ones)
        mean = np.broadcast_to(np.asarray(c.mean, np.float64), c.channels)
        shift = (-mean / std).astype(np.float32).reshape(ones)
        if self.dtype != ir.DataType.FLOAT:
            add("Cast", to=int(ir.DataType.FLOAT))
        if c.color == "gray":
            add("Mul", add_constant(g, np.array(LUMA, np.float32) / (1 << 16), "preprocessing_luma"))
            add("ReduceSum", add_constant(g, np.array([3]), "preprocessing_axis"), keepdims=1)
            add("Add", add_constant(g, np.array(0.5, np.float32), "preprocessing_half"))
            add("Floor")
        if c.layout == "NCHW":
            add("Transpose", perm=[0, 3, 1, 2])
        if c.color == "bgr":
            add("Gather", add_constant(g, np.array([2, 1, 0]), "preprocessing_order"), axis=axis)
        if (factor != 1).any():
            add("Mul", add_constant(g, factor, "preprocessing_scale"))
        if (shift != 0).any():
            add("Add", add_constant(g, shift, "preprocessing_shift"))
        return nodes


def _free(taken: set[str | None], name: str) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def fold_preprocessing(
    model: OnnxModel, contract: Preprocessing, out: Path, *, dtype: str = "float32"
) -> tuple[OnnxModel, Preprocessing]:
    """Fold ``contract`` into ``model``; gives the model in ``out`` and the contract that is left.

    ``dtype`` is the new input's, float32 or uint8. Samples for the old input become samples for the new one
    with :meth:`Preprocessing.unapply`.
    """
    loaded = io.load(model.path)
    fold = FoldPreprocessing(contract, dtype)
    name = fold._input(loaded.graph).name
    assert name is not None
    fold(loaded)
    return io.save(loaded, out), contract.folded(name, dtype)
