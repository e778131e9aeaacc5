"""PyTorch → ONNX, checked against the module in ONNX Runtime.

In comes a module in evaluation mode with its example inputs. Out goes an ONNX file of which every output was compared
with the module's, on the example and on random inputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch.fx.experimental.proxy_tensor import make_fx

from edgekit.core import stops
from edgekit.core.files import disk_is_full
from edgekit.core.literal import literal
from edgekit.core.quiet import silence
from edgekit.errors import ExportError
from edgekit.graph import io
from edgekit.graph.export.account import Attempt, account
from edgekit.graph.export.behaviour import UnrepeatableError, examine
from edgekit.graph.export.check import EXAMPLE, axis_sizes, compare, first_line, resized, run_onnx
from edgekit.graph.export.decompositions import decomposed, misread
from edgekit.graph.export.functions import Replaced
from edgekit.graph.export.masks import mask_whole_rows
from edgekit.graph.nested import attempt, flatten, positions, unwrap
from edgekit.types import OnnxModel, TorchModel

OPSET = 20
"""Gelu is one operator from here on; ONNX Runtime, OpenVINO and TensorRT's parser all take it."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """How a module was exported. ``error`` is the largest relative L2 distance of any output, over
    ``checked`` inputs; ``notes`` are for the manifest, ``warnings`` for the user as well."""

    strategy: str
    torch_version: str
    opset: int
    error: float
    checked: int
    attempts: tuple[Attempt, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def export(model: TorchModel, out: Path, *, opset: int = OPSET) -> OnnxModel:
    """Write ``model`` to ``out`` as ONNX; see :func:`export_with_report`."""
    return export_with_report(model, out, opset=opset)[0]


def export_with_report(model: TorchModel, out: Path, *, opset: int = OPSET) -> tuple[OnnxModel, ExportReport]:
    """Write ``model`` to ``out`` as ONNX and compare both on the example and on random inputs.

    Inputs keep the names of the example inputs, outputs those of :func:`edgekit.graph.nested.flatten`; declared
    axes stay dynamic. Tries torch.export non-strict and strict, then the same with fixed shapes, then
    TorchScript tracing, then the trace of what forward computes, operator by operator.

    Raises :class:`ExportError` with every attempt's account, or when the ONNX computes something else.
    """
    behaviour = examine(model)
    _refuse_complex(behaviour.outputs)
    names = _output_names(behaviour.outputs, model.example_inputs)
    opset = max([opset, *(getattr(m, "onnx_opset", 0) for m in model.module.modules())])
    attempts: list[Attempt] = []
    first: BaseException | None = None
    for strategy, run in _strategies(model, names, opset, copies=behaviour.writes):
        blind = strategy.startswith("TorchScript") and not _scripted(model)
        if blind and any(_depends_on_values(a.error) for a in attempts):
            attempts.append(
                Attempt(strategy=strategy, error="not tried: a trace keeps one branch for all values")
            )
            continue
        try:
            with silence(native=strategy.startswith("TorchScript")), torch.no_grad():
                exported = run()
            _tidy(exported, model, names)
            written = io.save(exported, out)
            if model.dynamic_axes and "fixed" not in strategy:
                written = _mend_shapes(exported, model, written)
            error, checked, notes = compare(model, written)
        except (KeyboardInterrupt, MemoryError, UnrepeatableError):
            raise
        except _NotThisWayError:
            continue
        except Exception as failure:
            stops.check()  # what failed may be a library that was interrupted, and says something else
            if disk_is_full(failure):
                raise
            # Exporters raise anything; all of it goes into the account.
            attempts.append(Attempt(strategy=strategy, error=first_line(failure)))
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
            warnings=_left_out(behaviour.constants),
        )
    out.unlink(missing_ok=True)
    assert first is not None
    raise account(model, attempts, first) from first


def _refuse_complex(outputs: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in outputs.items():
        if tensor.is_complex():
            raise ExportError(
                f"the output {name!r} is complex ({tensor.dtype}), and runtimes give real numbers",
                hint="return torch.view_as_real of it, or its magnitude and its angle",
            )


def _depends_on_values(error: str) -> bool:
    return "data-dependent" in error or "DataDependent" in error


def _left_out(constants: tuple[str, ...]) -> tuple[str, ...]:
    if not constants:
        return ()
    said = ", ".join(constants[:5]) + (" …" if len(constants) > 5 else "")
    return (
        f"forward also returns numbers or texts, which are no outputs of a graph and are left out: {said}",
    )


def _output_names(outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Output names, made different from the inputs' (a graph has one name space)."""
    return tuple(f"{n}_out" if n in inputs else n for n in outputs)


_REPLACED = "operators replaced"


class _NotThisWayError(Exception):
    """No operator of the module has to be replaced (see :mod:`edgekit.graph.export.decompositions`), or one has to."""


class _Flat(torch.nn.Module):
    """Positional tensors in, a tuple of tensors out: what every exporter can trace."""

    def __init__(self, model: TorchModel, *, copies: bool) -> None:
        super().__init__()
        self.module = model.module
        self.names = tuple(model.example_inputs)
        self.positions = positions(model.module, model.example_inputs)
        self.copies = copies
        self.training = False

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.copies:  # forward writes into them, and a graph's inputs are not to be written to
            tensors = tuple(tensor.clone() for tensor in tensors)
        count = self.positions
        named = dict(zip(self.names[count:], tensors[count:], strict=True))
        return tuple(flatten(self.module(*tensors[:count], **named)).values())


def _strategies(
    model: TorchModel, names: tuple[str, ...], opset: int, *, copies: bool
) -> Iterator[tuple[str, Callable[[], ir.Model]]]:
    module = _Flat(model, copies=copies)
    example = tuple(_traced(model).values())
    dynamic = (tuple(dict(model.dynamic_axes.get(n, {})) or None for n in model.example_inputs),)

    def dynamo(shapes: Any, strict: bool, program: Any = module) -> ir.Model:
        if strict and program is module:
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
        if program is module and made.exported_program and misread(made.exported_program):
            raise _NotThisWayError
        return made.model

    def replaced(shapes: Any) -> ir.Model:
        hints = _hints(shapes) if shapes else None
        with Replaced() as functions:
            traced = torch.export.export(module, example, dynamic_shapes=hints, strict=False)
        program = decomposed(traced) or (traced if functions.used else None)
        if program is None:
            raise _NotThisWayError
        return dynamo(None, True, program)

    def traced() -> ir.Model:
        trace = make_fx(module, tracing_mode="fake", _allow_non_fake_inputs=True)
        program = torch.export.export(trace(*example), example, strict=False)
        return dynamo(None, True, decomposed(program) or program)

    if model.dynamic_axes:
        yield "torch.export, dynamic axes", lambda: dynamo(dynamic, False)
        yield f"torch.export, dynamic axes, {_REPLACED}", lambda: replaced(dynamic)
        yield "torch.export strict, dynamic axes", lambda: dynamo(dynamic, True)
        yield "TorchScript, dynamic axes", lambda: _torchscript(module, model, names, opset, dynamic=True)
        yield "torch.export, fixed shapes", lambda: dynamo(None, False)
        yield f"torch.export, fixed shapes, {_REPLACED}", lambda: replaced(None)
        yield "operator by operator, fixed shapes", traced
        return
    yield "torch.export", lambda: dynamo(None, False)
    yield f"torch.export, {_REPLACED}", lambda: replaced(None)
    yield "torch.export strict", lambda: dynamo(None, True)
    yield "TorchScript", lambda: _torchscript(module, model, names, opset, dynamic=False)
    yield "operator by operator", traced  # gradients in forward, and other transforms of functions


def _traced(model: TorchModel) -> Mapping[str, torch.Tensor]:
    """The inputs to trace with: dynamic axes of 1 become 2, because a size of 1 broadcasts and gets baked in."""
    sizes = {name: max(2, size) for name, size in axis_sizes(model).items()}
    if sizes == axis_sizes(model):
        return model.example_inputs
    larger = resized(model, sizes)
    if isinstance(attempt(model.module, larger), Exception):  # it takes its example only: the check will tell
        return model.example_inputs
    return larger


def _hints(shapes: Any) -> Any:
    dynamic = torch.export.Dim.DYNAMIC
    return (tuple(dict.fromkeys(axes, dynamic) if axes else None for axes in shapes[0]),)


def _torchscript(
    module: torch.nn.Module, model: TorchModel, names: tuple[str, ...], opset: int, *, dynamic: bool
) -> ir.Model:
    if _scripted(model):
        module = _with_scripted_parts(module, tuple(_traced(model).values()))
    buffer = BytesIO()
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
    return ir.from_proto(onnx.load_from_string(buffer.getvalue()))


def _scripted(model: TorchModel) -> bool:
    """Whether a part of the module is TorchScript, which keeps its branches and loops in a graph."""
    return any(isinstance(module, torch.jit.ScriptModule) for module in model.module.modules())


def _with_scripted_parts(module: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> torch.nn.Module:
    """The trace of ``module``, its scripted parts as they are. What would keep one branch for all values raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced: torch.nn.Module = torch.jit.trace(  # type: ignore[no-untyped-call]
            module, example, check_trace=False
        )
    return traced


def _tidy(exported: ir.Model, model: TorchModel, names: tuple[str, ...]) -> None:
    """Names as promised, adapters out of the module paths, no stack traces, symbolic axes as declared."""
    prefix = "module." * (unwrap(model.module)[1] + 1)
    io.strip_metadata(exported)
    for subgraph in exported.graphs():
        for value in list(subgraph.initializers.values()):
            if value.name and value.name.startswith(prefix):
                value.name = value.name.removeprefix(prefix)
        for node in subgraph:
            if io.SCOPES in node.metadata_props:
                node.metadata_props[io.SCOPES] = _without(prefix, node.metadata_props[io.SCOPES])
            elif node.name and node.name.startswith("/"):
                node.metadata_props[io.SCOPES] = _without(prefix, _scopes_of_name(node.name))
            owner = _owner(node)
            if owner and io.module_path(node) != owner:  # the exporter names a folded batch norm instead
                node.metadata_props[io.SCOPES] = repr(["", owner, node.name or node.op_type])
    _name_integers(exported)
    mask_whole_rows(exported)
    for value, name in zip(exported.graph.outputs, names, strict=True):
        value.name = name
    for value in exported.graph.inputs:
        axes = model.dynamic_axes.get(value.name or "", {})
        shape = value.shape
        if shape is not None and not shape.frozen:
            for axis, label in axes.items():
                if not isinstance(shape[axis], int):
                    shape[axis] = label


_PARAMETRIZED = ".parametrizations.weight.original"


def _name_integers(exported: ir.Model) -> None:
    """Integer weights (see ``compress/steps/qat_layers.py``) under their layer's name, 4-bit ones as what they are."""
    for node in list(exported.graph):
        scale = node.inputs[1] if node.op_type == "DequantizeLinear" else None
        stored = node.inputs[0] if scale is not None else None
        if scale is None or stored is None or f"{_PARAMETRIZED}1" not in (scale.name or ""):
            continue
        name = (scale.name or "").partition(_PARAMETRIZED)[0] + ".weight"
        cast = stored.producer()
        wide = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
        if cast is not None and wide is not None and wide.const_value is not None:  # too large for the folder
            array = wide.const_value.numpy().astype(ml_dtypes.int4)
            stored = ir.Value(name=f"{name}_quantized", const_value=ir.tensor(array))
            stored.shape, stored.type = wide.shape, ir.TensorType(ir.DataType.INT4)
            exported.graph.register_initializer(stored)
            node.replace_input_with(0, stored)
        stored.name, scale.name, node.outputs[0].name = f"{name}_quantized", f"{name}_scale", name
    RemoveUnusedNodesPass()(exported)


def _mend_shapes(exported: ir.Model, model: TorchModel, written: OnnxModel) -> OnnxModel:
    """Forget shapes that tracing baked in: exporters annotate some dynamic sizes with the example's.

    Inner shapes are inferred anew from the inputs by the runtimes; an output's dimension that changes
    with the inputs gets the name of the axis that it follows.
    """
    for node in ir.traversal.RecursiveGraphIterator(exported.graph):
        for value in node.outputs:
            if not value.is_graph_output() and value.shape is not None:
                value.shape = None
    sizes = axis_sizes(model)
    other = {name: size + 1 + i for i, (name, size) in enumerate(sizes.items())}
    session = io.session(written.path)
    try:
        first = run_onnx(session, model.example_inputs, EXAMPLE)
        second = run_onnx(session, resized(model, other), "other sizes")
    except ExportError:
        return io.save(exported, written.path)
    for value in exported.graph.outputs:
        before, after = first[value.name or ""].shape, second[value.name or ""].shape
        if value.shape is None or len(before) != len(after):
            continue
        dims = list(value.shape)
        for axis, (one, two) in enumerate(zip(before, after, strict=True)):
            follows = next((n for n in sizes if (sizes[n], other[n]) == (one, two)), None)
            if one != two:
                dims[axis] = ir.SymbolicDim(follows or f"{value.name}_axis{axis}")
            elif not isinstance(dims[axis], int) and not str(dims[axis]).isidentifier():
                dims[axis] = ir.SymbolicDim(f"{value.name}_axis{axis}")
        value.shape = ir.Shape(dims)
    return io.save(exported, written.path)


def _owner(node: ir.Node) -> str:
    """The module whose ``weight`` a convolution or Gemm reads."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.inputs) < 2:
        return ""
    weight = node.inputs[1]
    name = (weight.name or "") if weight is not None and weight.is_initializer() else ""
    return name.removesuffix(".weight") if name.endswith(".weight") else ""


def _scopes_of_name(name: str) -> str:
    """TorchScript's exporter keeps the module path in the node's name: ``/body/body.0/conv/Conv``."""
    path, before, scopes = "", "", [""]
    for part in name.strip("/").split("/")[:-1]:
        if before and part.startswith(f"{before}."):  # a member of a Sequential repeats its parent's name
            path = path.removesuffix(before) + part
        else:
            path = f"{path}.{part}" if path else part
        before = part
        scopes.append(path)
    return repr([*scopes, name])


def _without(prefix: str, scopes: str) -> str:
    outer = prefix.rstrip(".")
    kept = [
        s.removeprefix(prefix)
        for s in cast("list[str]", literal(scopes))
        if s and not (outer + ".").startswith(s + ".")
    ]
    return repr(["", *kept])
