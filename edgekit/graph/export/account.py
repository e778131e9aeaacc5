"""A readable account of a failed export: which module, which operator, what every attempt said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.errors import ExportError
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
    place, line = _frame(model, first)
    if not place and operator:
        place = _module_that_calls(model, operator)
    where = (f" in module {place}" if place else "") + (f" ({line})" if line else "")
    what = f"operator {operator}" if operator else f"the {type(unwrap(model.module)[0]).__name__}"
    tried = "\n".join(f"  {a.strategy}: {a.error}" for a in attempts)
    hint = (
        f"replace {operator} by operators that ONNX has, or start from an ONNX file"
        if operator
        else "make forward traceable: no branches on tensor values, no calls out of PyTorch; or start from an ONNX file"
    )
    return ExportError(f"{what}{where} cannot be exported to ONNX. Tried:\n{tried}", hint=hint)


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


def _frame(model: TorchModel, error: BaseException) -> tuple[str, str]:
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


def caller(model: TorchModel, matches: Callable[[Any], bool]) -> tuple[str, str]:
    """Run the module once and see where an ATen operator that ``matches`` is called: the module's path and the
    operator's name; empty where none is."""
    from torch.utils._python_dispatch import TorchDispatchMode

    stack: list[str] = [""]
    found: list[tuple[str, str]] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if matches(func):
                found.append((stack[-1], func.name()))
            return func(*args, **(kwargs or {}))

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    def leave(*_: Any) -> None:
        stack.pop()

    hooks: list[Any] = []
    for name, module in unwrap(model.module)[0].named_modules():
        hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        with Watch():  # type: ignore[no-untyped-call]
            call(model.module, model.example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ("", "")
