"""ONNX → LiteRT flatbuffer: :func:`compile_onnx`.

One pass over the nodes in order. A node whose inputs are constants is folded; any other is handed to its
handler (:mod:`edgekit.backends.tflite.ops`), which emits TFLite operators and returns views on the
results. Layout is bookkeeping in the views, quantization is read out of Q/DQ, and a peephole pass at the
end fuses what TFLite fuses. See docs/tflite-compiler.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from edgekit.backends.tflite import ops as _ops  # noqa: F401 - fills the operator table
from edgekit.backends.tflite.limits import too_many_axes
from edgekit.backends.tflite.lowering import Lowering
from edgekit.backends.tflite.report import Report, make_report
from edgekit.backends.tflite.rewrite import rewrite
from edgekit.backends.tflite.storage import expand_weights, store_half
from edgekit.backends.tflite.writer import Signature, write
from edgekit.errors import UnsupportedError, UnsupportedOperatorsError
from edgekit.types import TensorSpec

# Before, broadcasting was an attribute of Add, Mul and their kin.
MINIMUM_OPSET = 7


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """How to compile.

    ``io_layout``: the order in which image inputs and outputs cross the boundary. ``io_dtype``: the
    element type at the boundary of a quantized graph. ``weights``: storage of float weights.
    ``quantized_weights``: what happens to quantized weights of operators with float activations:
    ``dynamic`` quantizes the activations at run time, ``float`` expands the weights when the file is loaded.
    ``kernels``: ``xnnpack`` spells operators so that LiteRT's CPU delegate keeps the graph in one
    partition, and computes in float what it has no integer kernel for; ``builtin`` uses the builtin
    operators as they are, in integers wherever TFLite can (for accelerators and microcontrollers).
    ``fuse``: run the peephole pass. ``wide``: ONNX nodes whose constants are not stored as float16. ``metadata``:
    name → text, stored in the file.
    """

    io_layout: Literal["nchw", "nhwc"] = "nchw"
    io_dtype: Literal["float32", "int8", "uint8"] = "float32"
    weights: Literal["float32", "float16"] = "float32"
    quantized_weights: Literal["dynamic", "float"] = "dynamic"
    kernels: Literal["xnnpack", "builtin"] = "xnnpack"
    fuse: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    wide: tuple[str, ...] = ()
    target: str = "tflite"


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A TFLite file in memory, what its boundary looks like, and how it came about."""

    data: memoryview
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    report: Report


_DEFAULT = CompileOptions()


def compile_onnx(model: ir.Model, *, options: CompileOptions = _DEFAULT) -> Compiled:
    """Compile an ONNX model with fixed shapes to a TFLite flatbuffer.

    The model is not changed. Float values are computed in float32 unless they lie between
    QuantizeLinear/DequantizeLinear, in which case they become quantized tensors.

    Raises:
        UnsupportedOperatorsError: with every node that LiteRT cannot express, at once.
        UnsupportedError: an input with a symbolic dimension, an opset that is too old, or a file over 2 GiB.
    """
    lowering = _lowering(model, options)
    fusions = rewrite(lowering, fuse=options.fuse, kernels=options.kernels)
    if refused := too_many_axes(lowering.graphs):
        raise UnsupportedOperatorsError(options.target, refused)
    for graph in lowering.graphs:
        expand_weights(graph, dynamic=options.quantized_weights == "dynamic")
        if options.weights == "float16":
            store_half(graph, options.wide)
    # Last: fusions decide which tensors there are.
    lowering.name_tensors()
    signature = Signature(
        inputs=tuple(i.name for i in lowering.inputs), outputs=tuple(o.name for o in lowering.outputs)
    )
    metadata = {name: text.encode() for name, text in options.metadata.items()}
    data = write(lowering.graphs, signature, description=f"edgekit {options.target}", metadata=metadata)
    report = make_report(lowering.graphs, fusions, lowering.left_in_float)
    return Compiled(data=data, inputs=lowering.inputs, outputs=lowering.outputs, report=report)


def check_onnx(model: ir.Model, *, options: CompileOptions = _DEFAULT) -> None:
    """Raise what :func:`compile_onnx` would raise for operators and shapes, without writing a file."""
    _lowering(model, options)


def _lowering(model: ir.Model, options: CompileOptions) -> Lowering:
    _check(model)
    lowering = Lowering(model, options.io_layout, options.io_dtype, options.kernels)
    lowering.run()
    if lowering.unsupported:
        raise UnsupportedOperatorsError(options.target, lowering.unsupported)
    return lowering


def _check(model: ir.Model) -> None:
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset and opset < MINIMUM_OPSET:
        raise UnsupportedError(
            f"the model is written in ONNX opset {opset}; the compiler reads {MINIMUM_OPSET} and later",
            hint="convert it with onnx.version_converter, or export it again",
        )
    for value in model.graph.inputs:
        dims: Any = None if value.shape is None else value.shape.dims
        if dims is None or not all(isinstance(d, (int, np.integer)) for d in dims):
            shown = "unknown" if dims is None else [str(d) for d in dims]
            raise UnsupportedError(
                f"input {value.name!r} has the shape {shown}: TFLite files are compiled for fixed shapes",
                hint="fix the dynamic axes to the example input's sizes before compiling",
            )
