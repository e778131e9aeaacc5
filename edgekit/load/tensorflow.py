"""A SavedModel directory, or a Keras file (``.keras``, ``.h5``), through tf2onnx.

TensorFlow runs in a process of its own: it and torch bring two copies of the same libraries, and it cannot
be kept quiet otherwise. Inputs keep their layout (channels last), which the input's spec states.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from edgekit.core.files import temporary
from edgekit.core.scores import without_rounding
from edgekit.errors import MissingExtraError, SourceError, UntrustedSourceError
from edgekit.graph import io
from edgekit.load.array_files import read_npz
from edgekit.load.watch import path_seen
from edgekit.types import OnnxModel, Permit, SourceSpec

OPSET = 18
"""The highest that tf2onnx writes."""

_LIMIT = 1e-3
"""Relative L2 distance from TensorFlow's outputs, float32 on both sides; misread operators are far beyond it."""

_TIMEOUT_S = 1800


@dataclass(frozen=True, kw_only=True)
class _Report:
    """What the worker says: nothing when the file is written, else why it is not."""

    untrusted: str = ""
    error: str = ""
    hint: str = ""


def load(spec: SourceSpec, permit: Permit) -> OnnxModel:
    """Convert to ONNX in a temporary directory that goes with the process; see :func:`edgekit.load.load`."""
    assert spec.path is not None
    for package in ("tensorflow", "tf2onnx"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"{package}, which reads {spec.text},", "tensorflow")
    for path in (spec.path, *sorted(spec.path.rglob("*"))):  # TensorFlow reads them in a process of its own
        path_seen(path)
    _converted.append(temporary("tensorflow"))
    folder = Path(_converted[-1].name)
    report = _convert(spec.path.resolve(), folder / "converted.onnx", permit.trust)
    if report.untrusted:
        raise UntrustedSourceError(
            f"{spec.text} {report.untrusted}",
            hint="pass --trust only if you made the file yourself or trust who did: it can then run any program",
        )
    if report.error:
        raise SourceError(f"{spec.text} cannot be converted: {report.error}", hint=report.hint)
    model = io.load(folder / "converted.onnx")
    io.strip_metadata(model)
    _express_erfc(model)
    _refuse_foreign(model, spec.text)
    _name_axes(model)
    saved = io.save(model, folder / "model.onnx")
    _compare(saved, folder / "converted.npz", spec.text)
    return saved


_converted: list[tempfile.TemporaryDirectory[str]] = []
"""Models refer to the files in these folders: they go with the process."""


def _compare(model: OnnxModel, reference: Path, what: str) -> None:
    """The ONNX against what TensorFlow computed on the same random inputs, where it took them."""
    if not reference.is_file():
        return
    stored = read_npz(reference)
    inputs = {k.removeprefix("in:"): array for k, array in stored.items() if k.startswith("in:")}
    expected = {k.removeprefix("out:"): array for k, array in stored.items() if k.startswith("out:")}
    outputs = io.run(io.session(model.path), inputs)
    for name, array in expected.items():
        wide = array.astype(np.float64)
        near = without_rounding(wide, outputs[name].astype(np.float64))
        distance = float(np.linalg.norm(wide - near) / max(float(np.linalg.norm(wide)), 1e-6))
        if not distance <= _LIMIT:
            raise SourceError(
                f"{what}: the converted model computes something else: {name!r} is {distance:.2g} away (relative L2)",
                hint="tf2onnx misreads an operator of the model; export it to ONNX yourself",
            )


def _convert(source: Path, out: Path, trust: bool) -> _Report:
    # TensorFlow reads these when it is imported: quiet, the same sums on every processor, and no GPU.
    environment = os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
    }
    arguments = [str(source), str(out), str(OPSET), str(int(trust))]
    command = [sys.executable, "-m", "edgekit.load.tensorflow_worker", *arguments]
    report = out.with_suffix(".json")
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SourceError(
            f"converting {source} took more than {_TIMEOUT_S} s", hint="export it to ONNX yourself"
        ) from error
    if not report.is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceError(
            f"TensorFlow ended with status {done.returncode} on {source}: {last}",
            hint="is the model complete?",
        )
    return msgspec.json.decode(report.read_bytes(), type=_Report)


def _express_erfc(model: ir.Model) -> None:
    """``Erfc(x)`` → ``1 - Erf(x)``: Keras' Gelu uses it, tf2onnx leaves it, ONNX does not have it."""
    one = ir.Value(name="erfc_one", const_value=ir.Tensor(np.float32(1), name="erfc_one"))
    for node in [n for n in model.graph if n.op_type == "Erfc"]:
        erf = ir.Node("", "Erf", node.inputs, name=f"{node.name}_erf")
        result = ir.Node("", "Sub", [one, erf.outputs[0]], name=node.name)
        model.graph.initializers[one.name or ""] = one
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [erf, result], node.outputs, result.outputs
        )


def _refuse_foreign(model: ir.Model, what: str) -> None:
    foreign = {
        n.op_type
        for n in ir.traversal.RecursiveGraphIterator(model.graph)
        if n.domain in ("", "ai.onnx") and not onnx.defs.has(n.op_type)
    }
    if foreign:
        raise SourceError(
            f"{what} uses TensorFlow operators that ONNX does not have: {', '.join(sorted(foreign))}",
            hint="rebuild the model without them, or export that part apart",
        )


def _name_axes(model: ir.Model) -> None:
    """Name the dynamic axes: the first is the batch; state the layout of what looks like images."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is None:
            continue
        names = ["batch" if axis == 0 else f"{value.name}_axis{axis}" for axis in range(len(value.shape))]
        value.shape = ir.Shape(
            [d if isinstance(d, int) else n for d, n in zip(value.shape, names, strict=True)]
        )
        if value.is_graph_input() and len(value.shape) == 4 and value.shape[3] in (1, 3, 4):
            value.metadata_props[io.LAYOUT] = "NHWC"
