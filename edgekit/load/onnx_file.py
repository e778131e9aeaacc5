"""``model.onnx``: used unchanged, after the checks that untrusted files need."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import onnx

from edgekit.core.foreign import translated
from edgekit.errors import SourceError
from edgekit.graph import io
from edgekit.types import OnnxModel, Permit, SourceSpec, TensorSpec


def load(spec: SourceSpec, permit: Permit) -> OnnxModel:
    """Check and describe an ONNX file; see :func:`edgekit.load.load`.

    External data may not leave the folder; the model must be valid for its operator sets and have at
    least one input and output.
    """
    del permit  # nothing in the file is executed, and it is here
    assert spec.path is not None
    proto = io.read_proto(spec.path)
    _only_tensors(proto, spec.path)
    with translated(f"{spec.path} is not a valid ONNX model", hint="export it again"):
        # By path where weights are outside, so that the checker need not hold more than protobuf can.
        external = io.external_files(spec.path)
        onnx.checker.check_model(str(spec.path) if external else proto, full_check=False)
    model = io.describe(spec.path)
    if not model.outputs:
        raise SourceError(f"{spec.path} has no output", hint="export it again")
    if not model.inputs:
        raise SourceError(f"{spec.path} has no input: its output is a constant", hint="export it again")
    for tensor in (*model.inputs, *model.outputs):
        _refuse_form(tensor, spec.path)
    return model


_MOST_AXES = 64
"""numpy's limit; every sample and result is an array."""


def _refuse_form(tensor: TensorSpec, path: Path) -> None:
    """What no array can hold: a type that numpy has no kernels of, or more axes than there are."""
    if np.dtype(tensor.dtype).isbuiltin != 1:
        raise SourceError(
            f"{path}: {tensor.name!r} is {tensor.dtype}: no data can be given or taken in this type",
            hint="export it with float32 or integer inputs and outputs; a Cast inside may narrow them",
        )
    if len(tensor.shape) > _MOST_AXES:
        raise SourceError(
            f"{path}: {tensor.name!r} has {len(tensor.shape)} axes, and arrays have {_MOST_AXES} at most",
            hint="export it again",
        )


_LONGEST_NAME = 1000
_NOT_TO_BE_SHOWN = ("Cc", "Cf", "Cs")
"""Unicode's categories of what moves a cursor, turns the direction of writing, or is half of a character."""


def _refuse_name(side: str, name: str | bytes, path: Path) -> None:
    """Names go into files, tables and terminals. (protobuf gives bytes where they are no text.)"""
    if len(name) > _LONGEST_NAME:
        raise SourceError(
            f"{path}: an {side} has a name of {len(name):,} characters", hint="rename it, and export again"
        )
    if isinstance(name, bytes) or any(unicodedata.category(c) in _NOT_TO_BE_SHOWN for c in name):
        raise SourceError(
            f"{path}: the {side} {name!a} has control characters in its name",
            hint="rename it, and export again",
        )


def _only_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Say what no runtime here takes: sequences and maps at the boundary (scikit-learn's ZipMap), and texts."""
    weights = {i.name for i in proto.graph.initializer}
    for side, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if value.name in weights or kind is None:
                continue
            _refuse_name(side, value.name, path)
            if kind != "tensor_type":
                zipped = any(n.op_type == "ZipMap" and value.name in n.output for n in proto.graph.node)
                raise SourceError(
                    f"{path}: the {side} {value.name!r} is a {kind.removesuffix('_type')}"
                    + (" that ZipMap makes" if zipped else "")
                    + ", not a tensor",
                    hint="export again with zipmap=False (skl2onnx: options={'zipmap': False}): scores are a tensor"
                    if zipped
                    else "let the model take and give tensors",
                )
            if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
                raise SourceError(
                    f"{path}: the {side} {value.name!r} holds texts",
                    hint="let the app turn texts into numbers, and export the model behind its tokenizer or encoder",
                )
