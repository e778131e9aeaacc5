"""What ONNX Runtime really executed, read from its profiler's record (see ``targets/onnxruntime/runner.py``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from edgekit.backends.base import reported
from edgekit.graph import macs, ops
from edgekit.graph.macs import Kernel, MacNode, assign, axis_sizes, computes_integers, count_macs, summarize
from edgekit.graph.ops import Trait
from edgekit.types import Json, Lowered, OnnxModel, Placement, Precision, Target


class TensorInfo(TypedDict):
    """An operand of an executed node."""

    dtype: str
    shape: list[int]


class Executed(TypedDict):
    """One node of the profile, as the runner reports it; absent operands are ``None``."""

    name: str
    op: str
    provider: str
    inputs: list[TensorInfo | None]
    outputs: list[TensorInfo | None]


_INT8 = macs.RULES.keys() & (ops.named(Trait.INTEGER) | ops.named(Trait.INTEGER, "com.microsoft"))
_FLOAT = macs.RULES.keys() - _INT8 - {"MatMulNBits"}
_DTYPES = {"float32": "fp32", "float16": "fp16", "float64": "fp64", "bfloat16": "bf16"}
_BYTES = ("int8", "uint8")

_ASKED = {
    Precision.INT8_DYNAMIC: "int8",
    Precision.INT16X8: "int16x8",
    Precision.INT8_WEIGHTS: "low-bit weights",
    Precision.INT4_WEIGHTS: "low-bit weights",
}


def placement(model: OnnxModel, target: Target, lowered: Lowered, raw: Mapping[str, Json]) -> Placement:
    """Share of the multiply-accumulates in the asked-for precision, and every node that is not, with why.

    ``raw["nodes"]`` is ``None`` when the profile was not recorded: then the share is not known.
    """
    executed = reported(raw, "nodes", list[Executed])
    if executed is None:
        note = "the runtime's profile was not recorded"
        return Placement(precision=str(target.precision), share=None, operators=0, notes=(note,))
    first = {n["name"]: n["outputs"][0] for n in executed if n["outputs"]}
    shapes = {name: tuple(output["shape"]) for name, output in first.items() if output}
    nodes = count_macs(model.path, axis_sizes(model.path, shapes))
    kernels = assign(nodes, tuple(_kernels(executed, target)))
    # A branch that was not taken, or a loop's body that never ran, computed in nothing.
    nodes = tuple(n for n in nodes if not n.nested or kernels[n.name] is not None)
    promised = _ASKED.get(target.precision, str(target.precision))
    share, fallbacks = summarize(nodes, kernels, promised, lambda node, kernel: _reason(node, kernel, target))
    if not nodes and computes_integers(target):
        share = float(any(_integers(n) for n in executed))
    return Placement(
        precision=str(target.precision),
        share=share,
        operators=len({n["name"] for n in executed}),
        kernels=dict(sorted(Counter(n["op"] for n in executed).items())),
        fallbacks=fallbacks,
        notes=tuple(_notes(executed, target, lowered)),
    )


def _integers(node: Executed) -> bool:
    """Whether a kernel computes on integers: made for them, or fed with them. Scales and casts are neither."""
    if ops.named(Trait.QUANTIZES) & {node["op"]} or node["op"] == "Cast":
        return False
    return node["op"].startswith("QLinear") or any(t and t["dtype"] in _BYTES for t in node["inputs"][:1])


def _kernels(executed: Sequence[Executed], target: Target) -> Iterator[Kernel]:
    names: set[str] = set()
    for node in executed:
        if node["name"] in names:  # a loop's body reports every iteration
            continue
        names.add(node["name"])
        precision = _precision(node, target)
        if precision:
            yield Kernel(names=(node["name"],), op=node["op"], precision=precision)


def _precision(node: Executed, target: Target) -> str:
    if node["op"] in _INT8:
        return "int8"
    if node["op"] == "MatMulNBits":
        return "low-bit weights"
    if node["op"] not in _FLOAT:
        return ""
    first = next((t["dtype"] for t in node["inputs"] if t), "")
    if first == "float64" and target.precision is Precision.FP32:
        return "fp32"  # a model in float64 stays one: it has all that float32 promises, and more
    return _DTYPES.get(first, first)


def _reason(node: MacNode, kernel: Kernel | None, target: Target) -> str:
    if kernel is None:
        return "the runtime's profile names no kernel for it"
    if target.precision is Precision.FP16:
        return f"no float16 kernel in this provider: computed in {kernel.precision} between casts"
    if target.scheme is None:
        return f"computed in {kernel.precision}"
    if target.scheme.quantizer == "weights":
        return {
            "": f"no constant weights: {kernel.op} computes in {kernel.precision}",
            "float": f"weights are float in the graph: {kernel.op} computes in {kernel.precision}",
            "integer": f"weights are widened before {kernel.op} computes in {kernel.precision}",
        }[node.weight]
    if not node.quantized:
        return f"not quantized in the graph: {kernel.precision}"
    return f"Q/DQ island: {kernel.op} was not fused, computes in {kernel.precision} between Q/DQ"


def _notes(executed: Sequence[Executed], target: Target, lowered: Lowered) -> Iterator[str]:
    counts = Counter(n["op"] for n in executed)
    if target.scheme is not None and (counts["QuantizeLinear"] or counts["DequantizeLinear"]):
        yield (
            f"executed besides: {counts['QuantizeLinear']} QuantizeLinear, "
            f"{counts['DequantizeLinear']} DequantizeLinear"
        )
    if target.precision is Precision.FP16 and counts["Cast"]:
        outputs = len(lowered.inputs) + len(lowered.outputs)
        yield f"{counts['Cast']} Cast executed, of which the graph's boundary needs at most {outputs}"
    for provider, count in sorted(Counter(n["provider"] for n in executed).items()):
        if provider not in ("", "CPUExecutionProvider"):
            yield f"{count} operators on {provider}"
