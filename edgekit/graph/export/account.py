"""A readable account of a failed export: which module, which operator, what every attempt said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgekit.errors import EdgekitError, ExportError
from edgekit.graph.nested import call, unwrap
from edgekit.types import TorchModel


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way of exporting that was tried, and the first line of what it said; empty when it worked."""

    strategy: str
    error: str = ""


def account(model: TorchModel, attempts: Sequence[Attempt], first: BaseException) -> ExportError:
    """The error to raise when every attempt has failed; ``first`` is what the first one raised."""
    operator = _operator(first)
    place, line = frame(model, first)
    if not place and operator:
        place = _module_that_calls(model, operator)
    where = (f" in module {place}" if place else "") + (f" ({line})" if line else "")
    what = f"operator {operator}" if operator else f"the {type(unwrap(model.module)[0]).__name__}"
    tried = "\n".join(f"  {a.strategy}: {a.error}" for a in attempts)
    return ExportError(
        f"{what}{where} cannot be exported to ONNX. Tried:\n{tried}", hint=_hint(model, operator, first)
    )


_BY_VALUE = {"GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException"}
"""What torch.export raises where a shape or a branch depends on what is in a tensor."""

_HALF = (torch.float16, torch.bfloat16)


def _hint(model: TorchModel, operator: str, first: BaseException) -> str:
    """What to do: by what was raised and by what forward computes with, never by a message's words."""
    if packed := _packed(model):
        return (
            f"{packed} is a module of torch.ao with packed INT8 weights, which no exporter reads: give the float "
            "module and build an INT8 target with --calib; for quantization-aware training use the step qat"
        )
    kinds = {type(link).__name__ for link in _chain(first)}
    if kinds & _BY_VALUE:
        return (
            "let no branch, loop or shape depend on values: torch.where chooses between two results, "
            "torch.cond between two branches; or start from an ONNX file"
        )
    complex_at = _first_with(model, lambda t: t.is_complex())
    half_at = _first_with(model, lambda t: t.dtype in _HALF)
    if half_at:
        return f"forward computes in 16-bit floats ({half_at}), which ONNX Runtime lacks: use float32"
    if complex_at and (operator or not isinstance(first, EdgekitError)):
        return (
            f"forward computes with complex numbers ({complex_at}), of which the exporter knows few operators: "
            "compute with real and imaginary parts (torch.view_as_real); or start from an ONNX file"
        )
    if operator:
        return f"replace {operator} by operators that ONNX has, or start from an ONNX file"
    if isinstance(first, ExportError):
        return first.hint
    if isinstance(first, EdgekitError):
        return (
            f"the exporter of torch {torch.__version__} wrote a graph that is not valid, the module is not to blame: "
            "rewrite what the message names, or start from an ONNX file"
        )
    return "forward calls what torch.export cannot follow: the first message names it; or start from an ONNX file"


def _packed(model: TorchModel) -> str:
    """The path of the first module that torch.ao has quantized."""
    for path, module in unwrap(model.module)[0].named_modules():
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            return path or type(module).__name__
    return ""


def _first_with(model: TorchModel, holds: Callable[[torch.Tensor], bool]) -> str:
    """The first operator of a forward pass of which a result is so, with its module; empty where none is."""

    def produces(_: Any, result: Any) -> bool:
        tensors = result if isinstance(result, tuple | list) else (result,)
        return any(isinstance(t, torch.Tensor) and holds(t) for t in tensors)

    place, name = caller(model, lambda _: True, produces)
    return f"{name} in module {place}" if place else name


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(10):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def _operator(error: BaseException) -> str:
    """The operator that an exporter says it lacks; empty when it complains of something else."""
    for link in _chain(error):
        if "DispatchError" in type(link).__name__ or "UnsupportedOperator" in type(link).__name__:
            said = str(link).partition("for")[2] or str(link)
            found = re.search(r"(?:torch\.ops\.)?(\w+)(?:::|\.)(\w+)(?:\.\w+)?", said)
            if found:
                return f"{found.group(1)}::{found.group(2)}"
    return ""


def frame(model: TorchModel, error: BaseException) -> tuple[str, str]:
    """The innermost of the user's modules that was running, and where in their file."""
    paths = {id(m): n for n, m in unwrap(model.module)[0].named_modules()}
    place, line = "", ""
    for link in _chain(error):
        trace = link.__traceback__
        while trace is not None:
            code, owner = trace.tb_frame.f_code, trace.tb_frame.f_locals.get("self")
            if id(owner) in paths and "site-packages" not in code.co_filename:
                place, line = paths[id(owner)], f"{code.co_filename}:{trace.tb_lineno}"
            trace = trace.tb_next
        if line:
            break
    return place, line


def _module_that_calls(model: TorchModel, operator: str) -> str:
    wanted = operator.rpartition("::")[2]
    return caller(model, lambda called: wanted in called.name())[0]


def caller(
    model: TorchModel, matches: Callable[[Any], bool], gives: Callable[[Any, Any], bool] = lambda *_: True
) -> tuple[str, str]:
    """Run the module once and see where an ATen operator that ``matches`` is called, with a result that it ``gives``:
    the module's path and the operator's name; empty where none is."""
    from torch.utils._python_dispatch import TorchDispatchMode

    stack: list[str] = [""]
    found: list[tuple[str, str]] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        supports_higher_order_operators = True

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if matches(func) and gives(func, result):
                found.append((stack[-1], func.name()))
            return result

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    def leave(*_: Any) -> None:
        stack.pop()

    hooks: list[Any] = []
    for name, module in unwrap(model.module)[0].named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            continue
        hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        with Watch():  # type: ignore[no-untyped-call]
            call(model.module, model.example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ("", "")
