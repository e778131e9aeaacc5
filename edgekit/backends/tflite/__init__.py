"""TFLite (LiteRT): lowers ONNX with edgekit's own compiler, no TensorFlow involved.

Placement: :func:`placement` expects what ``targets/tflite/runner.py`` makes of
``Interpreter._get_ops_details()`` (ai-edge-litert 2.3) after ``allocate_tensors()``::

    raw = {"delegates": 1,                       # how many partitions, DELEGATE nodes
           "nodes": [{"index": 0, "op": "CONV_2D", "inputs": […], "outputs": […],
                      "delegate": 0}, …]}        # the partition that runs it, None: a builtin kernel

The runtime lists the file's operators first, in file order, under the indices 0 … n - 1, and one node
``DELEGATE`` a partition after them. It does not say which operators a partition replaced; they are those
between the DELEGATE node's outputs and inputs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit.core import files
from edgekit.core.plugins import BackendInfo
from edgekit.core.store import canonical_json
from edgekit.errors import ConfigError, MissingExtraError
from edgekit.types import Availability, Lowered, OnnxModel, Option, Placement, Precision, Target, sha256_bytes

NAME = "tflite"
INFO = BackendInfo(
    title="LiteRT",
    requirement="edgekit-deploy[tflite]",
    # tflite-runtime, for devices that ai-edge-litert has no wheel for, dies with SystemError beside numpy 2.
    wheels=(("ai-edge-litert",), ("tflite-runtime", "numpy<2")),
    packages=("ai-edge-litert", "tflite-runtime"),
    purl="pkg:maven/com.google.ai.edge.litert/litert",
    doctor="edgekit.backends.tflite.doctor",
    benchmark="edgekit.backends.tflite.benchmark",
    form="edgekit.diff.tflite_form",
)
FILE = "model.tflite"
ORIGIN = "edgekit.origin"
"""Name of the metadata entry, and of the manifest's detail, that ties the file to what it was made from."""
_PACKAGE = "ai-edge-litert"


def available() -> Availability:
    """Whether LiteRT is installed; found out without importing it."""
    try:
        version = importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return Availability(
            installed=False,
            usable=False,
            why_not=f"{_PACKAGE} is not installed",
            hint="pip install 'edgekit-deploy[tflite]'",
        )
    return Availability(installed=True, usable=True, version=version)


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """Compile the (Q/DQ) ONNX file and write ``out/model.tflite``.

    Options: ``io_layout`` (``nchw`` or ``nhwc``), ``io_dtype`` (``float32``, ``int8``, ``uint8``),
    ``weights`` (``float32``, ``float16``), ``quantized_weights`` (``dynamic``, ``float``), ``kernels``
    (``xnnpack``, ``builtin``), ``fuse``, and ``metadata.<name>`` for texts to store in the file.

    The file carries :data:`ORIGIN`, a sha256 over the graph, the target and the options that it was made
    from; the manifest's details hold the same.

    Raises:
        MissingExtraError: LiteRT is not installed.
        UnsupportedOperatorsError: every node that LiteRT cannot express, at once.
    """
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise MissingExtraError("LiteRT", "tflite")
    from edgekit.backends.tflite.artifact import lowered, read_model
    from edgekit.backends.tflite.compiler import compile_onnx

    origin = sha256_bytes(canonical_json([model.sha256, target, dict(options)]))
    chosen = _options(model, target, {**options, f"metadata.{ORIGIN}": origin})
    compiled = compile_onnx(read_model(model.path), options=chosen)
    files.write(out / FILE, compiled.data)
    written = _as_declared(lowered(compiled, FILE), model)
    return replace(written, details={**written.details, ORIGIN: origin})


def check(model: OnnxModel, target: Target, options: Mapping[str, Option]) -> None:
    """Raise what :func:`lower` would raise for the model's operators. ``model`` need not be quantized yet."""
    from edgekit.backends.tflite.artifact import read_model
    from edgekit.backends.tflite.compiler import check_onnx

    check_onnx(read_model(model.path), options=_options(model, target, options))


def _as_declared(written: Lowered, model: OnnxModel) -> Lowered:
    """Say what was moved, and let tensors that were not keep the layout that their source declares."""
    moved = tuple(s.name for s in (*written.inputs, *written.outputs) if s.layout in ("NHWC", "NDHWC"))
    declared = {s.name: s.layout for s in (*model.inputs, *model.outputs) if s.layout and s.name not in moved}
    inputs, outputs = (
        tuple(replace(s, layout=declared.get(s.name, s.layout)) for s in side)
        for side in (written.inputs, written.outputs)
    )
    return replace(written, inputs=inputs, outputs=outputs, channels_moved=moved)


def placement(model: OnnxModel, target: Target, lowered: Lowered, raw: Mapping[str, Any]) -> Placement:
    """The share of the multiply-accumulates that runs as promised, and what does not, with the reasons."""
    del model
    from edgekit.backends.tflite.executed import read_placement

    return read_placement(target, lowered, raw)


def _options(model: OnnxModel, target: Target, options: Mapping[str, Option]) -> Any:
    from edgekit.backends.tflite.compiler import CompileOptions

    if any(spec.layout == "NHWC" for spec in model.inputs):  # channels are last already: TensorFlow's models
        options = {**options, "io_layout": "nchw"}
    choices: dict[str, tuple[Option, ...]] = {
        "io_layout": ("nchw", "nhwc"),
        "io_dtype": ("float32", "int8", "uint8"),
        "weights": ("float32", "float16"),
        "quantized_weights": ("dynamic", "float"),
        "kernels": ("xnnpack", "builtin"),
        "fuse": (True, False),
    }
    chosen: dict[str, Any] = {"io_dtype": target.io_dtype, "target": target.name}
    if target.precision is Precision.FP16:
        chosen["weights"] = "float16"
    if target.precision is Precision.INT8_WEIGHTS:
        chosen["quantized_weights"] = "float"
    metadata: dict[str, str] = {}
    for name, value in options.items():
        if name.startswith("metadata."):
            metadata[name.removeprefix("metadata.")] = str(value)
        elif name in choices:
            if value not in choices[name]:
                raise ConfigError(
                    f"{name} = {value!r} is not possible for {target.name}",
                    hint=f"use one of {', '.join(map(str, choices[name]))}",
                )
            chosen[name] = value
    return CompileOptions(metadata=metadata, **chosen)
