"""PyTorch → ONNX, checked against the module in ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgekit import graph
from edgekit.errors import ExportError
from edgekit.nested import call, unwrap
from edgekit.store import disk_is_full
from edgekit.types import OnnxModel, TorchModel

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.types import Array

OPSET = 20
"""Gelu is one operator from here on; ONNX Runtime, OpenVINO and TensorRT's parser all take it."""

_RANDOM_INPUTS = 3
_LIMIT = 1e-3
"""Relative L2 distance of an output from the module's. Reordered float32 sums stay below 1e-5 in the
architectures measured; a wrong operator is above 1e-2."""
_QUANTIZED_LIMIT = 2e-2
"""The same for modules that round inside (fake quantization): one last bit may flip."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way of exporting that was tried, and the first line of what it said; empty when it worked."""

    strategy: str
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """How a module was exported. ``error`` is the largest relative L2 distance of any output, over
    ``checked`` inputs; ``notes`` are for the manifest."""

    strategy: str
    torch_version: str
    opset: int
    error: float
    checked: int
    attempts: tuple[Attempt, ...] = ()
    notes: tuple[str, ...] = ()


def export(model: TorchModel, out: Path, *, opset: int = OPSET) -> OnnxModel:
    """Write ``model`` to ``out`` as ONNX; see :func:`export_with_report`."""
    return export_with_report(model, out, opset=opset)[0]


def export_with_report(model: TorchModel, out: Path, *, opset: int = OPSET) -> tuple[OnnxModel, ExportReport]:
    """Write ``model`` to ``out`` as ONNX and compare both on the example and on random inputs.

    Inputs keep the names of the example inputs, outputs those of :func:`edgekit.nested.flatten`; declared
    axes stay dynamic. Tries torch.export non-strict and strict, then the same with fixed shapes, then
    TorchScript tracing.

    Raises :class:`ExportError` with every attempt's account, or when the ONNX computes something else.
    """
    reference = _reference(model)
    names = _output_names(reference, model.example_inputs)
    attempts: list[Attempt] = []
    first: BaseException | None = None
    for strategy, run in _strategies(model, names, opset):
        try:
            with _quiet():
                exported = run()
            _tidy(exported, model, names)
            written = graph.save(exported, out)
            if model.dynamic_axes and "fixed" not in strategy:
                written = _mend_shapes(exported, model, written)
            error, checked, notes = compare(model, written)
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception as failure:
            if disk_is_full(failure):
                raise
            # Exporters raise anything; all of it goes into the account.
            attempts.append(Attempt(strategy=strategy, error=_first_line(failure)))
            first = first or failure
            continue
        attempts.append(Attempt(strategy=strategy))
        if "fixed" in strategy and model.dynamic_axes:
            notes = (*notes, f"the declared dynamic axes could not be kept: {attempts[0].error}")
        return written, ExportReport(
            strategy=strategy,
            torch_version=str(torch.__version__),
            opset=written.opset,
            error=error,
            checked=checked,
            attempts=tuple(attempts),
            notes=notes,
        )
    out.unlink(missing_ok=True)
    assert first is not None
    raise _account(model, attempts, first) from first


def _reference(model: TorchModel) -> dict[str, torch.Tensor]:
    try:
        return call(model.module, model.example_inputs)
    except Exception as error:
        raise ExportError(
            f"the module raised on its example inputs: {_first_line(error)}",
            hint="fix forward or the example inputs",
        ) from error


def _output_names(outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Output names, made different from the inputs' (a graph has one name space)."""
    return tuple(f"{n}_out" if n in inputs else n for n in outputs)


class _Flat(torch.nn.Module):
    """Positional tensors in, a tuple of tensors out: what every exporter can trace."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.module = model.module
        self.names = tuple(model.example_inputs)
        self.training = False

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from edgekit.nested import flatten

        return tuple(flatten(self.module(**dict(zip(self.names, tensors, strict=True)))).values())


def _strategies(
    model: TorchModel, names: tuple[str, ...], opset: int
) -> Iterator[tuple[str, Callable[[], ir.Model]]]:
    module = _Flat(model)
    example = tuple(_traced(model).values())
    dynamic = (tuple(dict(model.dynamic_axes.get(n, {})) or None for n in model.example_inputs),)

    def dynamo(shapes: Any, strict: bool) -> ir.Model:
        program: Any = module
        if strict:
            hints = _hints(shapes) if shapes else None
            program = torch.export.export(module, example, dynamic_shapes=hints, strict=True)
        made = torch.onnx.export(
            program,
            () if strict else example,
            input_names=list(model.example_inputs),
            output_names=list(names),
            opset_version=opset,
            dynamo=True,
            dynamic_shapes=None if strict else shapes,
            verbose=False,
        )
        assert made is not None
        return made.model

    if model.dynamic_axes:
        yield "torch.export, dynamic axes", lambda: dynamo(dynamic, False)
        yield "torch.export strict, dynamic axes", lambda: dynamo(dynamic, True)
        yield "TorchScript, dynamic axes", lambda: _torchscript(module, model, names, opset, dynamic=True)
        yield "torch.export, fixed shapes", lambda: dynamo(None, False)
        return
    yield "torch.export", lambda: dynamo(None, False)
    yield "torch.export strict", lambda: dynamo(None, True)
    yield "TorchScript", lambda: _torchscript(module, model, names, opset, dynamic=False)


def _traced(model: TorchModel) -> Mapping[str, torch.Tensor]:
    """The inputs to trace with: dynamic axes of 1 become 2, because a size of 1 broadcasts and gets baked in."""
    sizes = {name: max(2, size) for name, size in _sizes(model).items()}
    if sizes == _sizes(model):
        return model.example_inputs
    larger = _resized(model, sizes)
    try:
        call(model.module, larger)
    except Exception:  # noqa: BLE001 - the module takes its example only; the check will tell what that means
        return model.example_inputs
    return larger


def _hints(shapes: Any) -> Any:
    dynamic = torch.export.Dim.DYNAMIC
    return (tuple(dict.fromkeys(axes, dynamic) if axes else None for axes in shapes[0]),)


def _torchscript(
    module: torch.nn.Module, model: TorchModel, names: tuple[str, ...], opset: int, *, dynamic: bool
) -> ir.Model:
    import onnx_ir

    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        tuple(_traced(model).values()),
        buffer,  # type: ignore[arg-type]
        input_names=list(model.example_inputs),
        output_names=list(names),
        opset_version=min(opset, 20),
        dynamo=False,
        dynamic_axes={n: dict(a) for n, a in model.dynamic_axes.items()} if dynamic else None,
    )
    import onnx

    return onnx_ir.from_proto(onnx.load_from_string(buffer.getvalue()))


def _tidy(exported: ir.Model, model: TorchModel, names: tuple[str, ...]) -> None:
    """Names as promised, adapters out of the module paths, no stack traces, symbolic axes as declared."""
    prefix = "module." * (unwrap(model.module)[1] + 1)
    graph.strip_metadata(exported)
    for subgraph in exported.graphs():
        for value in list(subgraph.initializers.values()):
            if value.name and value.name.startswith(prefix):
                value.name = value.name.removeprefix(prefix)
        for node in subgraph:
            if graph.SCOPES in node.metadata_props:
                node.metadata_props[graph.SCOPES] = _without(prefix, node.metadata_props[graph.SCOPES])
    for value, name in zip(exported.graph.outputs, names, strict=True):
        value.name = name
    for value in exported.graph.inputs:
        axes = model.dynamic_axes.get(value.name or "", {})
        shape = value.shape
        if shape is not None and not shape.frozen:
            for axis, label in axes.items():
                if not isinstance(shape[axis], int):
                    shape[axis] = label


def _mend_shapes(exported: ir.Model, model: TorchModel, written: OnnxModel) -> OnnxModel:
    """Forget shapes that tracing baked in: exporters annotate some dynamic sizes with the example's.

    Inner shapes are inferred anew from the inputs by the runtimes; an output's dimension that changes
    with the inputs gets the name of the axis that it follows.
    """
    import onnx_ir

    for node in onnx_ir.traversal.RecursiveGraphIterator(exported.graph):
        for value in node.outputs:
            if not value.is_graph_output() and value.shape is not None:
                value.shape = None
    sizes = _sizes(model)
    other = {name: size + 1 + i for i, (name, size) in enumerate(sizes.items())}
    session = graph.session(written.path)
    try:
        first = _run(session, model.example_inputs, _EXAMPLE)
        second = _run(session, _resized(model, other), "other sizes")
    except ExportError:
        return graph.save(exported, written.path)
    for value in exported.graph.outputs:
        before, after = first[value.name or ""].shape, second[value.name or ""].shape
        if value.shape is None or len(before) != len(after):
            continue
        dims = list(value.shape)
        for axis, (one, two) in enumerate(zip(before, after, strict=True)):
            follows = next((n for n in sizes if (sizes[n], other[n]) == (one, two)), None)
            if one != two and isinstance(dims[axis], int):
                dims[axis] = onnx_ir.SymbolicDim(follows or f"{value.name}_axis{axis}")
            elif one != two and follows:
                dims[axis] = onnx_ir.SymbolicDim(follows)
        value.shape = onnx_ir.Shape(dims)
    return graph.save(exported, written.path)


def _without(prefix: str, scopes: str) -> str:
    import ast

    outer = prefix.rstrip(".")
    kept = [
        s.removeprefix(prefix)
        for s in ast.literal_eval(scopes)
        if s and not (outer + ".").startswith(s + ".")
    ]
    return repr(["", *kept])


# --- checking -------------------------------------------------------------------------------------------


def compare(model: TorchModel, exported: OnnxModel) -> tuple[float, int, tuple[str, ...]]:
    """Run module and ONNX on the example, on random inputs, and with other sizes of the dynamic axes.

    Gives the largest relative L2 distance, the number of inputs compared, and notes. Raises
    :class:`ExportError` when the distance is more than rounding explains.
    """
    session = graph.session(exported.path)
    limit = _QUANTIZED_LIMIT if _rounds(exported) else _LIMIT
    worst, checked, notes = 0.0, 0, []
    for which, inputs in _inputs(model):
        try:
            expected, again = call(model.module, inputs), call(model.module, inputs)
        except Exception as error:
            if which == _EXAMPLE:
                raise
            notes.append(f"the module does not take {which}: {_first_line(error)}")
            continue
        if not all(_same(a, b) for a, b in zip(expected.values(), again.values(), strict=True)):
            notes.append(
                "the module gives different outputs for one input (it draws random numbers): not compared"
            )
            break
        if which != _EXAMPLE and not _finite(expected):
            notes.append(f"the module overflows on {which}: not compared")
            continue
        results = _run(session, inputs, which)
        for (name, tensor), got in zip(expected.items(), results.values(), strict=True):
            distance = _distance(name, tensor.detach().numpy(), got)
            worst = max(worst, distance)
            if distance > limit:
                raise ExportError(
                    f"the ONNX computes something else: {name!r} is {distance:.2g} away (relative L2) on {which}",
                    hint="look for control flow that depends on values, and random or in-place operations in forward",
                )
        checked += 1
    return worst, checked, tuple(dict.fromkeys(notes))


def _run(session: Any, inputs: Mapping[str, torch.Tensor], which: str) -> dict[str, Array]:
    try:
        return graph.run(session, {k: v.detach().numpy() for k, v in inputs.items()})
    except Exception as error:
        raise ExportError(
            f"the ONNX fails on {which}: {_first_line(error)}", hint="the module takes them"
        ) from error


_EXAMPLE = "the example inputs"


def _inputs(model: TorchModel) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """The example, random inputs like it, and the example at other sizes of the dynamic axes."""
    yield _EXAMPLE, {k: v.clone() for k, v in model.example_inputs.items()}
    for seed in range(1, _RANDOM_INPUTS + 1):
        generator = torch.Generator().manual_seed(seed)
        yield (
            f"random inputs (seed {seed})",
            {k: _random_like(v, generator) for k, v in model.example_inputs.items()},
        )
    sizes = _sizes(model)
    larger = {name: size + 1 + i for i, (name, size) in enumerate(sizes.items())}
    smaller = {name: max(1, size - 1) for name, size in sizes.items()}
    for variant in (larger, smaller):
        if variant != sizes:
            said = ", ".join(f"{n} = {s}" for n, s in variant.items())
            yield f"inputs with {said}", _resized(model, variant)


def _sizes(model: TorchModel) -> dict[str, int]:
    """The example's size of every dynamic axis by the axis' name."""
    return {
        label: model.example_inputs[name].shape[axis]
        for name, axes in model.dynamic_axes.items()
        for axis, label in axes.items()
    }


def _resized(model: TorchModel, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """The example inputs with other sizes of the dynamic axes: repeated or cut, so that values stay valid."""
    resized = {}
    for name, tensor in model.example_inputs.items():
        for axis, label in model.dynamic_axes.get(name, {}).items():
            index = torch.arange(sizes[label]) % max(1, tensor.shape[axis])
            tensor = tensor.index_select(axis, index)
        resized[name] = tensor.contiguous()
    return resized


def _finite(outputs: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in outputs.values() if t.is_floating_point())


def _random_like(example: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values of the example's kind: its mean and spread, its range for integers, its share of True."""
    if example.numel() == 0:
        return example.clone()
    if example.dtype == torch.bool:
        return torch.rand(example.shape, generator=generator) < example.float().mean()
    if example.is_floating_point():
        spread = float(example.std()) if example.numel() > 1 else 0.0
        noise = torch.randn(example.shape, generator=generator) * (spread or 1.0) + float(example.mean())
        return noise.clamp(float(example.min()) - spread, float(example.max()) + spread) if spread else noise
    low, high = int(example.min()), int(example.max())
    return torch.randint(low, high + 1, example.shape, generator=generator, dtype=example.dtype)


def _distance(name: str, expected: Array, got: Array) -> float:
    """Relative L2 distance; for integers and booleans the share of elements that differ, halved by none."""
    if expected.shape != got.shape:
        raise ExportError(
            f"the ONNX gives {name!r} the shape {got.shape}, the module {expected.shape}",
            hint="the shape depends on values or on Python state: make it depend on the inputs' shapes only",
        )
    if expected.size == 0:
        return 0.0
    if expected.dtype.kind not in "fc":
        return float(np.mean(expected != got))
    a, b = expected.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(a)
    norm = float(np.linalg.norm(a[finite]))
    difference = float(np.linalg.norm(a[finite] - b[finite]))
    # An output that is all (nearly) zero has no scale of its own: measure against one.
    return difference / norm if norm > 1e-6 * np.sqrt(finite.sum() or 1) else difference


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point())


def _rounds(exported: OnnxModel) -> bool:
    ops = {n.op_type for n in graph.read_proto(exported.path).graph.node}
    return bool(ops & {"QuantizeLinear", "DequantizeLinear", "Round"})


# --- account of a failure -------------------------------------------------------------------------------


def _account(model: TorchModel, attempts: list[Attempt], first: BaseException) -> ExportError:
    place, operator = _culprit(model, first)
    where = f" (module {place})" if place else ""
    what = f"operator {operator}" if operator else "the module"
    tried = "\n".join(f"  {a.strategy}: {a.error}" for a in attempts)
    hint = (
        f"replace {operator} in {place or 'forward'} by operators that ONNX has"
        if operator
        else "make forward traceable: no branches on tensor values, no calls out of PyTorch; or start from an ONNX file"
    )
    return ExportError(f"{what}{where} cannot be exported to ONNX. Tried:\n{tried}", hint=hint)


def _culprit(model: TorchModel, error: BaseException) -> tuple[str, str]:
    """The module path and operator that a chain of exporter errors speaks of, as far as it does."""
    chain: list[str] = []
    link: BaseException | None = error
    while link is not None and len(chain) < 10:
        chain.append(str(link))
        link = link.__cause__ or link.__context__
    text = "\n".join(chain)
    operator = re.search(r"(?:aten|prims|quantized|torchvision|[a-z_]\w*)(?:::|\.ops\.)[\w:.]+", text)
    operators = [
        m for m in re.findall(r"\b([a-z]\w*::\w+(?:\.\w+)?)", text) if not m.startswith(("std::", "c10::"))
    ]
    name = operators[0] if operators else (operator.group(0) if operator else "")
    inner = unwrap(model.module)[0]
    known = {n for n, _ in inner.named_modules() if n}
    quoted = re.findall(r"L__self___([\w.]+)|'([\w.]+)'", text)
    for candidate in (c for pair in quoted for c in pair if c):
        path = candidate.removeprefix("module.").removeprefix("module_")
        if path in known:
            return path, name
    return "", name


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None and type(error).__module__.startswith("torch.onnx"):
        error = error.__cause__
    text = getattr(error, "message", None) or str(error)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(text).splitlines()]
    line = next((li for li in lines if li), "")
    return f"{type(error).__name__}: {line[:300]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No exporter chatter: it prints, warns and logs about what concerns its developers."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
