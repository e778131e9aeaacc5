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
            error, checked, notes = compare(model, written)
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception as failure:  # noqa: BLE001 - exporters raise anything; all of it goes into the account
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
            f"the module raised on its example inputs: {_first_line(error)}", hint="fix forward or the example inputs"
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
    example = tuple(model.example_inputs.values())
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
        tuple(model.example_inputs.values()),
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


def _without(prefix: str, scopes: str) -> str:
    import ast

    outer = prefix.rstrip(".")
    kept = [s.removeprefix(prefix) for s in ast.literal_eval(scopes) if s and not (outer + ".").startswith(s + ".")]
    return repr(["", *kept])


# --- checking -------------------------------------------------------------------------------------------


def compare(model: TorchModel, exported: OnnxModel) -> tuple[float, int, tuple[str, ...]]:
    """Run module and ONNX on the example and on random inputs.

    Gives the largest relative L2 distance, the number of inputs compared, and notes. Raises
    :class:`ExportError` when the distance is more than rounding explains.
    """
    session = graph.session(exported.path)
    limit = _QUANTIZED_LIMIT if _rounds(exported) else _LIMIT
    worst, checked, notes = 0.0, 0, []
    for index, inputs in enumerate(_inputs(model)):
        try:
            expected, again = call(model.module, inputs), call(model.module, inputs)
        except Exception as error:
            if index == 0:
                raise
            notes.append(f"random input {index} is none that the module takes: {_first_line(error)}")
            continue
        if not all(_same(a, b) for a, b in zip(expected.values(), again.values(), strict=True)):
            notes.append("the module gives different outputs for one input (it draws random numbers): not compared")
            break
        if not all(np.isfinite(t.detach().numpy()).all() for t in expected.values() if t.is_floating_point()) and index:
            notes.append(f"random input {index} makes the module overflow: not compared")
            continue
        results = graph.run(session, {k: v.detach().numpy() for k, v in inputs.items()})
        for (name, tensor), got in zip(expected.items(), results.values(), strict=True):
            distance = _distance(name, tensor.detach().numpy(), got)
            worst = max(worst, distance)
            if distance > limit:
                which = "the example inputs" if index == 0 else f"random inputs (seed {index})"
                raise ExportError(
                    f"the ONNX computes something else: {name!r} is {distance:.2g} away (relative L2) on {which}",
                    hint="look for control flow that depends on values, and random or in-place operations in forward",
                )
        checked += 1
    return worst, checked, tuple(dict.fromkeys(notes))


def _inputs(model: TorchModel) -> Iterator[dict[str, torch.Tensor]]:
    yield {k: v.clone() for k, v in model.example_inputs.items()}
    for seed in range(1, _RANDOM_INPUTS + 1):
        generator = torch.Generator().manual_seed(seed)
        yield {k: _random_like(v, generator) for k, v in model.example_inputs.items()}


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
    operators = [m for m in re.findall(r"\b([a-z]\w*::\w+(?:\.\w+)?)", text) if not m.startswith(("std::", "c10::"))]
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
