"""ONNX rewrites that serve every target: one file each, applied in the order of :data:`PASSES`.

In comes an exported graph and the inputs of one call. Out goes a graph that was compared with the first on those
inputs, and a report on what each pass changed.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes import common

from edgekit.core.foreign import attempted
from edgekit.core.quiet import silence
from edgekit.core.scores import without_rounding
from edgekit.errors import ConfigError, SourceError, UnknownNameError
from edgekit.graph import io
from edgekit.graph.passes.activations import RecognizeActivations
from edgekit.graph.passes.affine import FoldAffine
from edgekit.graph.passes.batch_norm import FoldBatchNorm
from edgekit.graph.passes.clean_up import CleanUp, DropUnread
from edgekit.graph.passes.constants import FoldConstants
from edgekit.graph.passes.einsum import LowerCaseEinsum
from edgekit.graph.passes.gemm import MatMulAddToGemm
from edgekit.graph.passes.layer_norm import RecognizeLayerNorm
from edgekit.graph.passes.loops import HoistInvariants
from edgekit.graph.passes.q_operators import ToQdq
from edgekit.graph.passes.reshapes import MergeReshapes
from edgekit.graph.passes.scales import FoldScale
from edgekit.graph.passes.selections import MaskInPlace
from edgekit.graph.passes.softmax_guard import DropSoftmaxGuard
from edgekit.graph.passes.transposes import MergeTransposes
from edgekit.types import OnnxModel, TensorSpec

if TYPE_CHECKING:
    from edgekit.types import Array

PASSES: tuple[ir.passes.PassBase, ...] = (
    common.InlinePass(),  # functions hide their nodes from the passes and from every backend but one
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),  # one form of constant
    ToQdq(),  # one form of quantization: operators on integers hide what they compute
    FoldConstants(),  # shape arithmetic that onnxsim left becomes static, so that the rest can match
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),  # what folding made
    CleanUp(),  # nodes that compute nothing hide patterns
    HoistInvariants(),  # weights that a loop carries look like states: nothing in its body could be quantized
    common.CommonSubexpressionEliminationPass(),  # exporters repeat mask, position and mean arithmetic
    MaskInPlace(),  # sizes that the data decides go, where what a mask picks is written or reduced
    MergeTransposes(),  # layout changes of exporters meet in the middle
    MergeReshapes(),  # attention splits and merges heads in steps
    CleanUp(),  # transposes and reshapes that undid each other
    FoldBatchNorm(),  # quantizing weights and batch norm apart costs accuracy and an operator
    FoldAffine(),  # batch norm as other exporters spell it
    FoldScale(),  # attention scales queries and keys: two operators a layer, and two roundings when quantized
    RecognizeLayerNorm(),  # one kernel in ONNX Runtime, OpenVINO and TensorRT; stays whole when quantized
    RecognizeActivations(),  # Gelu and HardSwish have kernels in ONNX Runtime, OpenVINO, TensorRT and LiteRT
    DropSoftmaxGuard(),  # torch guards every attention against rows that are masked as a whole
    MatMulAddToGemm(),  # a fully connected layer on every backend, with the bias as a bias
    LowerCaseEinsum(),  # TensorRT's parser refuses upper-case letters
    common.RemoveUnusedNodesPass(),  # dead code would be quantized, placed and reported on
    DropUnread(),  # what was folded would be stored beside what it was folded into
    common.DeduplicateInitializersPass(),  # tied weights are stored once
    common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]  # inlined
    common.RemoveUnusedOpsetsPass(),  # a runtime refuses a model for an operator set that it does not use
    common.TopologicalSortPass(),  # readers of the file may rely on the order
)

OPSET = 20
"""What older models are raised to: Gelu is one operator from here on, and every backend here takes it."""

_LIMIT = 1e-4
"""Relative L2 distance that rewrites of float32 arithmetic may cause."""
_QUANTIZED_LIMIT = 2e-2
"""The same where values are rounded in between: a last bit may flip."""
_MOST_VALUES = 1 << 27
"""Of random inputs: a gigabyte where they are drawn."""


@dataclass(frozen=True, kw_only=True)
class OptimizeReport:
    """What optimizing did: node counts before and after, the largest relative L2 distance measured on
    random inputs (``None``: could not be run), and notes for the manifest."""

    nodes_before: int
    nodes_after: int
    error: float | None
    notes: tuple[str, ...] = ()


def optimize(model: OnnxModel, out: Path) -> OnnxModel:
    """onnxsim, then :data:`PASSES`; see :func:`optimize_with_report`."""
    return optimize_with_report(model, out)[0]


def optimize_with_report(
    model: OnnxModel, out: Path, *, example: Mapping[str, Array] | None = None
) -> tuple[OnnxModel, OptimizeReport]:
    """Simplify ``model`` into ``out``. Names of inputs and outputs and module paths stay.

    Every result is compared with the original in ONNX Runtime (on ``example`` too, when given); a rewrite
    that changes what the model computes is left out, and the report says so.
    """
    original = io.load(model.path)
    before = original.graph.num_nodes()
    check = _Check(model, example)
    notes: list[str] = []
    current = _upgraded(original, model, check, out, notes)
    current = _simplified(current, model, check, out, notes)
    rewritten = _apply(PASSES, current.clone())
    result = io.save(rewritten, out)
    if not check.passes(result):
        rewritten = _one_by_one(current, check, out, notes)
        result = io.save(rewritten, out)
        check.passes(result)
    return result, OptimizeReport(
        nodes_before=before,
        nodes_after=rewritten.graph.num_nodes(),
        error=check.worst,
        notes=(*notes, *check.notes),
    )


def fix_shapes(model: OnnxModel, shapes: Mapping[str, tuple[int, ...]], out: Path) -> OnnxModel:
    """Give every input in ``shapes`` that size, infer the shapes that follow, and fold what became constant.

    Raises :class:`ConfigError` when a shape contradicts the model, :class:`UnknownNameError` for an
    unknown input.
    """
    loaded = io.load(model.path)
    by_name = {v.name or "": v for v in loaded.graph.inputs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in by_name:
            raise UnknownNameError("input", name, by_name)
        _fix(by_name[name], shape, sizes)
    for value in loaded.graph.inputs:  # an axis of the same name elsewhere has the same size
        if value.shape is not None:
            value.shape = ir.Shape(
                [sizes.get(d.value or "", d) if not isinstance(d, int) else d for d in value.shape]
            )
    for node in ir.traversal.RecursiveGraphIterator(loaded.graph):
        for output in node.outputs:
            output.shape = _sized(output, sizes) if output.is_graph_output() else None
    return optimize(_loadable(_infer(loaded), out), out)


def _loadable(model: ir.Model, out: Path) -> OnnxModel:
    """``model`` in ``out``, without branches that are never taken where ONNX Runtime refuses it for one of them: it
    holds a ``Squeeze`` for an axis of one against the sixteen that the axis now has."""
    result = io.save(model, out)
    if _branches(result):
        try:
            io.session(result.path, optimized=False)
        except SourceError:
            return io.save(FoldConstants()(model).model, out)
    return result


def _fix(value: ir.Value, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    declared = value.shape
    fits = declared is not None and len(declared) == len(shape)
    if declared is not None and fits:
        for have, want in zip(declared, shape, strict=True):
            if isinstance(have, int):
                fits &= have == want
            elif have.value and sizes.setdefault(have.value, want) != want:
                fits = False
    if not fits:
        raise ConfigError(
            f"{value.name!r} cannot have the shape {shape}: the model says {declared}",
            hint="only dynamic axes can be given a size, axes of one name the same everywhere",
        )
    value.shape = ir.Shape(shape)


def _sized(value: ir.Value, sizes: Mapping[str, int]) -> ir.Shape | None:
    if value.shape is None:
        return None
    return ir.Shape([d if isinstance(d, int) else sizes.get(d.value or "") for d in value.shape])


def _infer(model: ir.Model) -> ir.Model:
    return common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model).model


def _apply(passes: tuple[ir.passes.PassBase, ...], model: ir.Model) -> ir.Model:
    manager = ir.passes.PassManager([ir.passes.Sequential(*passes)], steps=3, early_stop=True)
    with silence():  # the library's passes report on themselves
        result: ir.Model = manager(model).model
    return _infer(result)


def _one_by_one(current: ir.Model, check: _Check, out: Path, notes: list[str]) -> ir.Model:
    """Leave out the passes that change the result. Only reached through a defect in one of them."""
    for rewrite in PASSES:
        candidate = rewrite(current.clone()).model
        if check.passes(io.save(candidate, out)):
            current = candidate
        else:
            notes.append(f"left out {type(rewrite).__name__}: it changed what the model computes")
    return current


# --- onnxsim --------------------------------------------------------------------------------------------


_SKIPPED = [
    "fuse_matmul_add_bias_into_gemm",  # puts a Reshape before and after every Linear on three axes
    "fuse_qkv",  # one node for three modules: sensitivity and reports could not name them any more
]


def _upgraded(original: ir.Model, model: OnnxModel, check: _Check, out: Path, notes: list[str]) -> ir.Model:
    """The model at :data:`OPSET`, so that passes and backends meet one form of each operator."""
    if model.opset >= OPSET or io.external_files(model.path):
        return original
    try:
        converted = onnx.version_converter.convert_version(io.read_proto(model.path), OPSET)
        candidate = ir.from_proto(converted)
    except (onnx.version_converter.ConvertError, RuntimeError) as error:  # it lacks operators; fine as it is
        notes.append(f"kept at opset {model.opset}: {_line(error)}")
        return original
    _copy_scopes(original, candidate)
    _keep_axes(candidate, model)
    result = io.save(candidate, out)
    if not _same_interface(result, model) or not check.passes(result):
        notes.append(f"kept at opset {model.opset}: converted to {OPSET} it is another model")
        return original
    return candidate


def _simplified(original: ir.Model, model: OnnxModel, check: _Check, out: Path, notes: list[str]) -> ir.Model:
    """The model after onnxsim, with the module paths it drops; the original where that fails."""
    if io.external_files(model.path):
        notes.append("onnxsim left out: the weights are in external data")
        return original
    with _without_torch():
        import onnxsim

    proto = ir.to_proto(original)
    with silence(native=True):
        made = attempted(lambda: ir.from_proto(onnxsim.simplify(proto, skipped_optimizers=_SKIPPED)[0]))
    if isinstance(made, Exception):  # a failing simplifier must not fail the build
        notes.append(f"onnxsim failed: {_line(made)}")
        return original
    candidate: ir.Model = made
    _copy_scopes(original, candidate)
    _keep_axes(candidate, model)
    result = io.save(candidate, out)
    if not _same_interface(result, model):
        notes.append("onnxsim left out: it changed the model's inputs or outputs")
        return original
    if _weight_bytes(candidate) > 2 * _weight_bytes(original) + (16 << 20):
        notes.append("onnxsim left out: it more than doubled the weights")
        return original
    if not check.passes(result):
        notes.append("onnxsim left out: it changed what the model computes")
        return original
    return candidate


def _keep_axes(candidate: ir.Model, model: OnnxModel) -> None:
    """Open axes of outputs keep their names, in place; a size that was worked out stays."""
    for value, spec in zip(candidate.graph.outputs, model.outputs, strict=False):
        if value.shape is not None and len(value.shape) == len(spec.shape):
            dims = [d if isinstance(d, int) else s for d, s in zip(value.shape, spec.shape, strict=True)]
            value.shape = ir.Shape(dims)


def _same_interface(result: OnnxModel, model: OnnxModel) -> bool:
    """The same inputs, and the same outputs, of which axes that were open may have a size."""
    if result.inputs != model.inputs or len(result.outputs) != len(model.outputs):
        return False
    return all(
        (new.name, new.dtype, new.layout, len(new.shape)) == (old.name, old.dtype, old.layout, len(old.shape))
        and all(
            n == o or (isinstance(o, str) and isinstance(n, int))
            for n, o in zip(new.shape, old.shape, strict=True)
        )
        for new, old in zip(result.outputs, model.outputs, strict=True)
    )


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """onnxsim imports torch for an integration that is not used here: two seconds for an ONNX source."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to say: not to be imported
    try:
        yield
    finally:
        del sys.modules["torch"]


def _copy_scopes(original: ir.Model, simplified: ir.Model) -> None:
    """Give nodes their module paths back: by what they compute, by their name, by the weights that they alone
    read, and those between by their readers."""
    for before, after in zip(original.graph.inputs, simplified.graph.inputs, strict=False):
        after.metadata_props.update(before.metadata_props)
    by_output: dict[str, str] = {}
    by_name: dict[str, str] = {}
    by_weight: dict[str, str] = {}
    for node in ir.traversal.RecursiveGraphIterator(original.graph):
        scopes = node.metadata_props.get(io.SCOPES)
        if scopes:
            by_output |= {o.name: scopes for o in node.outputs if o.name}
            by_name[node.name or ""] = scopes
            weights = [v for v in node.inputs if v is not None and v.is_initializer() and len(v.uses()) == 1]
            by_weight |= {v.name: scopes for v in weights if v.name}
    for node in ir.traversal.RecursiveGraphIterator(simplified.graph):
        names = [o.name or "" for o in node.outputs]
        found = next((by_output[n] for n in names if n in by_output), by_name.get(node.name or ""))
        weights = [v for v in node.inputs if v is not None and v.is_initializer()]
        found = found or next((by_weight[v.name] for v in weights if v.name in by_weight), None)
        if found:
            node.metadata_props[io.SCOPES] = found
    for node in reversed(list(simplified.graph)):
        if io.SCOPES not in node.metadata_props:
            readers = {use.node.metadata_props.get(io.SCOPES) for o in node.outputs for use in o.uses()}
            if len(readers) == 1 and None not in readers:
                node.metadata_props[io.SCOPES] = str(next(iter(readers)))


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _weight_bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for g in model.graphs() for v in g.initializers.values() if v.const_value)


# --- checking -------------------------------------------------------------------------------------------


class _Check:
    """Compares models with the original on fixed inputs."""

    def __init__(self, model: OnnxModel, example: Mapping[str, Array] | None) -> None:
        self.worst: float | None = None
        self.notes: tuple[str, ...] = ()
        quantized = _is_quantized(model)
        self._limit = _QUANTIZED_LIMIT if quantized else _LIMIT
        # ONNX Runtime 1.27's own optimizer ends the process where it takes branches of an If in and fuses Q/DQ.
        self._optimized = not (quantized and _branches(model))
        self._cases: list[tuple[Mapping[str, Array], dict[str, Array]]] = []
        session = io.session(model.path, optimized=self._optimized)
        tried = [example] if example else []
        failure = ""
        for inputs in (*tried, *_random_inputs(model.inputs)):
            try:
                first, second = io.run(session, inputs), io.run(session, inputs)
            except io.runtime_errors() as error:  # random inputs need not be valid ones
                failure = _line(error)
                continue
            if _distance(first, second) == 0.0:
                self._cases.append((inputs, first))
                if len(self._cases) == 2:
                    break
        if not self._cases:
            self.notes = (
                f"optimized without a numeric check: {failure or 'the model draws random numbers'}",
            )

    def passes(self, candidate: OnnxModel) -> bool:
        """Whether ``candidate`` computes the same; remembers the distance when it does."""
        if not self._cases:
            return True
        failures: tuple[type[Exception], ...] = (SourceError, *io.runtime_errors())
        try:
            session = io.session(candidate.path, optimized=self._optimized)
            distance = max(_distance(expected, io.run(session, inputs)) for inputs, expected in self._cases)
        except failures:
            return False
        if distance > self._limit:
            return False
        self.worst = distance
        return True


def _branches(model: OnnxModel) -> bool:
    """Whether the graph has others inside."""
    return any(a.HasField("g") for n in io.read_proto(model.path).graph.node for a in n.attribute)


def _is_quantized(model: OnnxModel) -> bool:
    return any(
        n.op_type == "QuantizeLinear" or n.op_type.startswith("QLinear")
        for n in io.read_proto(model.path).graph.node
    )


def _random_inputs(specs: tuple[TensorSpec, ...]) -> Iterator[dict[str, Array]]:
    """Inputs that many models take: dynamic axes of 2, 8 and 1, small integers, unit normal floats."""
    for seed, size in enumerate((2, 8, 1, 32)):
        rng = np.random.default_rng(seed)
        values = sum(math.prod(d if isinstance(d, int) else size for d in s.shape) for s in specs)
        if values <= _MOST_VALUES:  # what a file declares may be more than any machine holds
            yield {s.name: _random(s, size, rng) for s in specs}


def _random(spec: TensorSpec, size: int, rng: np.random.Generator) -> Array:
    shape = [d if isinstance(d, int) else size for d in spec.shape]
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _distance(expected: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    if expected.keys() != got.keys():
        return float("inf")
    return max((_relative(expected[k], got[k]) for k in expected), default=0.0)


def _relative(a: Array, b: Array) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype.kind != "f":
        return float(np.mean(a != b)) if a.size else 0.0
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    x, y = (np.where(np.isfinite(v), v, 0).astype(np.float64) for v in (a, b))
    y = without_rounding(x, y)
    norm = float(np.linalg.norm(x))
    return float(np.linalg.norm(x - y)) / (norm if norm > 1e-6 else 1.0)
