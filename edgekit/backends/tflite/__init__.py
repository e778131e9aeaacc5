"""TFLite (LiteRT): lowers ONNX with edgekit's own compiler, no TensorFlow involved.

In comes an ONNX graph with fixed shapes (with Q/DQ where the target has a scheme), out go ``model.tflite`` and a
placement: which operators the delegate took. The compiler begins at :mod:`.compiler`; docs/tflite-compiler.md tells
how it works.

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

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from edgekit.core.plugins import BackendInfo
from edgekit.core.versions import installed
from edgekit.errors import MissingExtraError
from edgekit.types import Availability, Json, Lowered, OnnxModel, Option, Placement, Target

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
    narrow="edgekit.backends.tflite.narrow",
)


def available() -> Availability:
    """Whether LiteRT is installed; found out without importing it."""
    version = installed("ai-edge-litert")
    if not version:
        return Availability(
            installed=False,
            usable=False,
            why_not="ai-edge-litert is not installed",
            hint="pip install 'edgekit-deploy[tflite]'",
        )
    return Availability(installed=True, usable=True, version=version)


def flatbuffer_schema() -> ModuleType:
    """LiteRT's classes for reading and writing TFLite files. Raises :class:`MissingExtraError`."""
    try:
        return importlib.import_module("ai_edge_litert.schema_py_generated")
    except ImportError as e:
        raise MissingExtraError("LiteRT", "tflite") from e


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """Compile the (Q/DQ) ONNX file and write ``out/model.tflite``.

    Options: ``io_layout`` (``nchw`` or ``nhwc``), ``io_dtype`` (``float32``, ``int8``, ``uint8``),
    ``weights`` (``float32``, ``float16``), ``quantized_weights`` (``dynamic``, ``float``), ``kernels``
    (``xnnpack``, ``builtin``), ``fuse``, and ``metadata.<name>`` for texts to store in the file.

    The file carries :data:`~edgekit.backends.tflite.artifact.ORIGIN`, a sha256 over the graph, the target and the
    options that it was made from; the manifest's details hold the same.

    Raises:
        MissingExtraError: LiteRT is not installed.
        UnsupportedOperatorsError: every node that LiteRT cannot express, at once.
    """
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise MissingExtraError("LiteRT", "tflite")
    from edgekit.backends.tflite import artifact

    return artifact.lower(model, target, options, out)


def check(model: OnnxModel, target: Target, options: Mapping[str, Option]) -> None:
    """Raise what :func:`lower` would raise for the model's operators. ``model`` need not be quantized yet."""
    from edgekit.backends.tflite import artifact

    artifact.check(model, target, options)


def placement(model: OnnxModel, target: Target, lowered: Lowered, raw: Mapping[str, Json]) -> Placement:
    """The share of the multiply-accumulates that runs as promised, and what does not, with the reasons."""
    del model
    from edgekit.backends.tflite.executed import read_placement

    return read_placement(target, lowered, raw)
