"""One forward pass as a list of ATen operators, with the module that each of them runs in.

The pass really runs (below autograd, by a dispatch mode), so Python control flow, data-dependent shapes and
whatever else ``torch.export`` refuses do not matter. Recurrent layers are one call each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from edgekit.compress.hooks import removed
from edgekit.compress.step import forward

RECURRENT = "recurrent"


@dataclass(frozen=True)
class Ref:
    """A tensor of the trace."""

    id: int


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operator: ``args`` and ``out`` are nested as in PyTorch, with a :class:`Ref` for each tensor.

    ``scope`` are the paths of the modules that were running, outermost first.
    """

    op: str
    args: tuple[Any, ...]
    out: Any
    scope: tuple[str, ...]
    pointwise: bool = False


@dataclass(kw_only=True)
class Trace:
    """``tensors`` names the parameters and buffers, ``sizes`` has the shape of every tensor."""

    calls: list[Call] = field(default_factory=list)
    sizes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    tensors: dict[int, str] = field(default_factory=dict)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


def record(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Trace:
    """Run ``model`` in evaluation mode and write down what it does."""
    recorder = _Recorder()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        recorder.trace.tensors.setdefault(recorder.ref(tensor).id, name)
    recorder.trace.inputs = tuple(recorder.ref(x).id for x in inputs.values())
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _scopes(model, recorder), recorder:
            result = forward(model, inputs)
    finally:
        model.train(was_training)
    outputs: list[int] = []
    _map(result, lambda t: outputs.append(recorder.ref(t).id))
    recorder.trace.outputs = tuple(outputs)
    return recorder.trace


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self.scope: list[str] = []
        self.paused = 0
        self._alive: dict[int, tuple[int, torch.Tensor]] = {}  # an id is only unique while its tensor lives

    def ref(self, tensor: torch.Tensor) -> Ref:
        number, _ = self._alive.setdefault(id(tensor), (len(self._alive), tensor))
        self.trace.sizes.setdefault(number, tuple(tensor.shape))
        return Ref(number)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        if not self.paused:
            call = Call(
                op=func.overloadpacket._qualified_op_name.replace("::", "."),
                args=_map(_bound(func, args, kwargs or {}), self.ref),
                out=_map(out, self.ref),
                scope=tuple(self.scope),
                pointwise=torch.Tag.pointwise in func.tags,
            )
            self.trace.calls.append(call)
        return out


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """All arguments in the order of the operator's schema, defaults filled in."""
    rest = func._schema.arguments[len(args) :]
    return (*args, *(kwargs.get(a.name, a.default_value if a.has_default_value() else None) for a in rest))


def _map(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: _map(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_map(v, change) for v in value)
    if hasattr(value, "__dataclass_fields__"):
        return tuple(_map(getattr(value, name), change) for name in value.__dataclass_fields__)
    return value


@contextmanager
def _scopes(model: torch.nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep ``recorder.scope`` up to date, and make a recurrent layer one call."""
    handles = []
    for name, module in model.named_modules():
        enter, leave = _hooks(recorder, name, isinstance(module, torch.nn.RNNBase))
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        # always: where a module raises and its caller goes on, the scope must not stay open
        handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
    with removed(handles):
        yield


def _hooks(recorder: _Recorder, name: str, whole: bool) -> tuple[Callable[..., None], Callable[..., None]]:
    def enter(*_: object) -> None:
        recorder.scope.append(name)
        recorder.paused += whole

    def leave(module: torch.nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        recorder.paused -= whole
        if whole and out is not None:
            weights = {n: recorder.ref(p) for n, p in module.named_parameters()}
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
            x, state = (bound.arguments.get(n) for n in ("input", "hx"))
            facts = (module.hidden_size, module.bidirectional)
            recorder.trace.calls.append(
                Call(
                    op=RECURRENT,
                    args=(_map(x, recorder.ref), _map(state, recorder.ref), weights, *facts),
                    out=_map(out, recorder.ref),
                    scope=tuple(recorder.scope),
                )
            )
        recorder.scope.pop()

    return enter, leave
