"""Which nodes the installed ONNX Runtime can run on its CPU provider, asked of its own table of kernels.

A session stops at the first node without a kernel; the table answers for all of them at once, and without
loading the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnx_ir.traversal import RecursiveGraphIterator

from edgekit.errors import UnsupportedNode, UnsupportedOperatorsError
from edgekit.graph import io
from edgekit.types import Target

_BUILT_IN = frozenset({"Constant"})
"""Operators that the runtime replaces when it loads a model."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel: the versions of its operator that it covers, and the tensors it takes by type variable."""

    first: int
    last: int
    types: Mapping[str, frozenset[str]]


_Kernels = Mapping[tuple[str, str], Sequence[Kernel]]


def refuse_unsupported(model: ir.Model, target: Target) -> None:
    """Raise :class:`UnsupportedOperatorsError` with every node of ``model`` that has no kernel."""
    ShapeInferencePass()(model)
    kernels = cpu_kernels()
    missing = [
        UnsupportedNode(
            op=f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            node=node.name or "?",
            reason=reason,
            module_path=io.module_path(node),
        )
        for node in RecursiveGraphIterator(model.graph)
        if (reason := why_unsupported(node, model, kernels))
    ]
    if missing:
        raise UnsupportedOperatorsError(target.name, missing)


def cpu_kernels() -> _Kernels:
    """The CPU provider's kernels by (domain, operator)."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from onnxruntime.capi import _pybind_state as runtime

    table: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in runtime.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            first, last = kernel.version_range
            types = {
                v: frozenset(allowed) for v, allowed in kernel.type_constraints.items() if _tensors(allowed)
            }
            entry = Kernel(first=first, last=last, types=types)
            table.setdefault((kernel.domain, kernel.op_name), []).append(entry)
    return table


def _tensors(types: Iterable[str]) -> bool:
    """Sequences and optionals are not judged: inference calls them tensors of their elements."""
    return all(name.startswith("tensor(") for name in types)


def why_unsupported(node: ir.Node, model: ir.Model, kernels: _Kernels) -> str:
    """Empty when a kernel, a function body in the model or one in the standard covers the node."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    if node.op_identifier() in model.functions or (domain == "" and node.op_type in _BUILT_IN):
        return ""
    registered = kernels.get((domain, node.op_type), ())
    if domain != "":
        return "" if registered else f"ONNX Runtime's CPU provider has no kernel for it in domain {domain!r}"
    opset = model.opset_imports.get("", 1)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return f"not an operator of ONNX opset {opset}"
    if schema.has_function or schema.has_context_dependent_function:  # type: ignore[attr-defined]
        return ""
    fitting = [kernel for kernel in registered if kernel.first <= schema.since_version <= kernel.last]
    if not fitting:
        return f"ONNX Runtime's CPU provider has no kernel for version {schema.since_version} of it"
    types = _types(node, schema)
    if any(_takes(kernel, types) for kernel in fitting):
        return ""
    shown = ", ".join(sorted(set(types.values())))
    return f"ONNX Runtime's CPU provider has no kernel of it for {shown}"


def _types(node: ir.Node, schema: onnx.defs.OpSchema) -> dict[str, str]:
    """Type variable → type of the tensors bound to it, where it is known."""
    types: dict[str, str] = {}
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            if value is not None and isinstance(value.type, ir.TensorType) and formals:
                formal = formals[min(index, len(formals) - 1)]
                for name in (formal.type_str, formal.name):
                    types.setdefault(name, f"tensor({value.type.dtype.name.lower()})")
    return types


def _takes(kernel: Kernel, types: Mapping[str, str]) -> bool:
    """Whether every known type is among the kernel's; float16 is: the runtime puts casts around float32."""
    return all(
        _allowed(types[variable], allowed) for variable, allowed in kernel.types.items() if variable in types
    )


def _allowed(dtype: str, allowed: Iterable[str]) -> bool:
    names = set(allowed)
    return dtype in names or (dtype == "tensor(float16)" and "tensor(float)" in names)
