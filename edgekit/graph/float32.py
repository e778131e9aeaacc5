"""Modules whose forward asks for float16 or bfloat16: computed in float32, as everything else is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from edgekit.graph.nested import Adapter, invoke

_HALF = (torch.float16, torch.bfloat16)
_CASTS = (torch.Tensor.half, torch.Tensor.bfloat16)


class Float32(Adapter):
    """A module without its autocast and its casts to 16 bits: what they save is the target's to decide."""

    def __init__(self, module: torch.nn.Module) -> None:
        torch.nn.Module.__init__(self)
        self.module = module
        self.training = False

    def forward(self, **inputs: torch.Tensor) -> Any:
        """Call the module with every 16-bit float replaced by float32."""
        with in_float32():
            return invoke(self.module, inputs)


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Let what runs inside ask for float16 and bfloat16, and get float32."""
    with _without_autocast([]), _Replaced():
        yield


def asks_for_half(run: Callable[[], Any]) -> tuple[Any, bool]:
    """``run``'s result, and whether it asked for float16 or bfloat16 on its way."""
    entered: list[bool] = []
    watch = _Watched()
    with _without_autocast(entered, keep=True), watch:
        result = run()
    return result, any(entered) or watch.asked


class _Replaced(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        func = torch.Tensor.float if func in _CASTS else func
        given = {k: _wide(v) for k, v in (kwargs or {}).items()}
        return func(*(_wide(a) for a in args), **given)


class _Watched(TorchFunctionMode):
    asked = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        values = (*args, *(kwargs or {}).values())
        self.asked |= func in _CASTS or any(_is_half(v) for v in values)
        return func(*args, **(kwargs or {}))


def _is_half(value: object) -> bool:
    return isinstance(value, torch.dtype) and value in _HALF


def _wide(value: Any) -> Any:
    return torch.float32 if _is_half(value) else value


@contextlib.contextmanager
def _without_autocast(entered: list[bool], *, keep: bool = False) -> Iterator[None]:
    """``torch.autocast`` does nothing inside, or as ever with ``keep``; whether it was on is noted in ``entered``."""
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

    def noted(self: torch.autocast) -> Any:
        entered.append(bool(self._enabled))
        return enter(self) if keep else self  # type: ignore[no-untyped-call]

    def left(self: torch.autocast, *args: Any) -> Any:
        return leave(self, *args) if keep else False

    torch.autocast.__enter__, torch.autocast.__exit__ = noted, left  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__, torch.autocast.__exit__ = enter, leave  # type: ignore[method-assign]
