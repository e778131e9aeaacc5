"""What OpenVINO really executes, read from the compiled model (see ``targets/openvino/runner.py``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from edgekit.backends.base import reported
from edgekit.graph.macs import (
    Kernel,
    MacNode,
    assign,
    axis_sizes,
    computes_integers,
    count_macs,
    plain,
    summarize,
)
from edgekit.types import Json, OnnxModel, Placement, Precision, Target

_MULTIPLY = frozenset(
    {
        "Convolution",
        "Deconvolution",
        "DeformableConvolution",
        "FullyConnected",
        "MatMul",
        "RNNSeq",
        "RNNCell",
        "ScaledDotProductAttention",
        "QKVProjection",
        "LLMMLP",
    }
)
_FUSED = frozenset({"Subgraph"})
"""Generated code: multiplies only when a product is among what it was fused from."""

_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8", "I8": "int8"}
_HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16", Precision.FP16: "f16"}
_BODIES = frozenset({"TensorIterator", "Loop", "If"})
"""Operators that run a body of their own, whose kernels the compiled model does not list."""
_LOOPED = frozenset({"LSTM", "GRU", "RNN"})
"""Operators that OpenVINO may spell as such a body: those with sequence lengths, among others."""
_PASSIVE = frozenset({"Const", "Input", "Output"})
_MOVES = frozenset({"Convert", "Reorder", "Reshape", "FakeQuantize", "If", "TensorIterator", "Loop"})
"""Operators whose type says nothing of arithmetic on integers. A FakeQuantize computes in float."""


class Executed(TypedDict):
    """One node of the compiled model, as the runner reports it; sizes are -1 where they are not known."""

    name: str
    type: str
    precision: str
    primitive: str
    original: list[str]
    outputs: list[list[int]]


_LOW_BIT = "low-bit weights"
_INTEGERS = frozenset({"i4", "u4", "i8", "u8"})


def placement(model: OnnxModel, target: Target, raw: Mapping[str, Json]) -> Placement:
    """Share of the multiply-accumulates in the asked-for precision, and every node that is not, with why."""
    executed = reported(raw, "nodes", list[Executed])
    if executed is None:
        note = "the compiled model was not recorded"
        return Placement(precision=str(target.precision), share=None, operators=0, notes=(note,))
    nodes = count_macs(model.path, axis_sizes(model.path, _shapes(executed)))
    own = {alias for node in nodes for alias in node.aliases[:2]}  # the node's own name, its output's
    kernels = assign(nodes, tuple(_kernels(executed, own, target)))
    if any(n["type"] in _BODIES for n in executed):
        kernels |= {n.name: _in_a_body(n, raw) for n in nodes if kernels[n.name] is None}
    promised = _LOW_BIT if _weights_only(target) else _asked(target.precision)
    share, fallbacks = summarize(
        nodes, kernels, promised, lambda node, kernel: _reason(node, kernel, target, raw)
    )
    active = [n for n in executed if n["type"] not in _PASSIVE]
    if not nodes and computes_integers(target):
        share = float(
            any(_PRECISIONS.get(n["precision"]) == "int8" for n in active if n["type"] not in _MOVES)
        )
    return Placement(
        precision=str(target.precision),
        share=share,
        operators=len(active),
        kernels=dict(sorted(Counter(f"{n['type']} {n['precision']}" for n in active).items())),
        fallbacks=fallbacks,
        notes=tuple(_notes(active, target, raw)),
    )


def _asked(precision: Precision) -> str:
    return "int8" if precision is Precision.INT8_DYNAMIC else str(precision)


def _weights_only(target: Target) -> bool:
    return target.scheme is not None and target.scheme.quantizer == "weights"


def _in_a_body(node: MacNode, raw: Mapping[str, Json]) -> Kernel | None:
    """The kernel of a product inside a body. It is compiled with the hint that the whole model has, and nothing in it
    is quantized: edgekit's Q/DQ are in the main graph."""
    if not node.nested and node.op not in _LOOPED:
        return None
    hint = str(raw.get("inference_precision", ""))
    return Kernel(names=(node.name,), op=node.op, precision=_PRECISIONS.get(hint, hint))


def _shapes(executed: Sequence[Executed]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for node in executed:
        if node["outputs"] and node["outputs"][0] and -1 not in node["outputs"][0]:
            shapes |= {name: tuple(node["outputs"][0]) for name in (node["name"], *node["original"])}
    return shapes


def _kernels(executed: Sequence[Executed], own: set[str], target: Target) -> Iterator[Kernel]:
    for node in executed:
        fused = node["type"] in _FUSED and own.intersection(map(plain, node["original"]))
        if node["type"] not in _MULTIPLY and not fused:
            continue
        # A kernel that widens weights as it reads them names their type; one that got them widened does not.
        low_bit = _weights_only(target) and node["precision"] in _INTEGERS
        names = tuple(dict.fromkeys((*node["original"], node["name"])))
        yield Kernel(names=names, op=node["type"], precision=_LOW_BIT if low_bit else _executed_in(node))


def _executed_in(node: Executed) -> str:
    """The kernel's own precision (``brgconv_avx512_1x1_f32``), where it says.

    ``runtimePrecision`` alone misleads: it is f16 for float32 kernels that read float16 weights.
    """
    suffix = node["primitive"].rpartition("_")[2]
    return _PRECISIONS.get(suffix) or _PRECISIONS.get(node["precision"], node["precision"])


def _reason(node: MacNode, kernel: Kernel | None, target: Target, raw: Mapping[str, Json]) -> str:
    if kernel is None:
        return "the compiled model names no kernel for it"
    if target.scheme is None:
        return f"executed in {kernel.precision}: inference precision is {raw.get('inference_precision', '?')}"
    if _weights_only(target):
        return {
            "": f"no constant weights: {kernel.op} executes in {kernel.precision}",
            "float": f"weights are float in the graph: {kernel.op} executes in {kernel.precision}",
            "integer": f"weights are widened at compile time: {kernel.op} executes in {kernel.precision}",
        }[node.weight]
    if not node.quantized:
        return f"not quantized in the graph: {kernel.precision}"
    return f"Q/DQ island: {kernel.op} executes in {kernel.precision} between Q/DQ"


def _notes(active: Sequence[Executed], target: Target, raw: Mapping[str, Json]) -> Iterator[str]:
    hint = str(raw.get("inference_precision", ""))
    precision = _HINTS.get(target.precision, "f32")
    yield f"inference precision {hint} on {raw.get('device', '?')}"
    silent = [n for n in active if n["precision"] == "bf16"]
    if silent and precision != "bf16":
        yield f"{len(silent)} operators execute in bf16, which nobody asked for: pin inference_precision to f32"
    quantizers = sum(n["type"] == "FakeQuantize" for n in active)
    if quantizers:
        yield f"{quantizers} FakeQuantize executed: quantized and dequantized again in float"
