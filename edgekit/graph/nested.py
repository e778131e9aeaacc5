"""Flat, named tensors out of whatever a module takes and returns.

Everything after ``load`` calls a module with tensors by name (:func:`call`, :func:`invoke`), and reads its
result as tensors by name. Real modules take lists and dicts, and return tuples, dataclasses and model
outputs: :func:`flatten` and :class:`Adapter` are the only places that know.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch

from edgekit.core.foreign import attempted

Outputs: TypeAlias = dict[str, torch.Tensor]
"""A module's result by name, as :func:`flatten` gives it."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a named tensor goes in the nested arguments of a module."""

    name: str


class Adapter(torch.nn.Module):
    """A module called by keyword tensors, in front of one that is called in some other way.

    ``args`` and ``kwargs`` are the wrapped module's arguments with a :class:`Slot` for every tensor;
    everything else in them (numbers, strings, ``None``) is passed as it is, so becomes a constant.
    """

    def __init__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        self._template = (args, dict(kwargs))

    def forward(self, **inputs: torch.Tensor) -> Any:
        """Call the wrapped module with the tensors in their slots."""
        args, kwargs = _fill(self._template, inputs)
        return self.module(*args, **kwargs)


def template(value: Any, prefix: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """Replace every tensor in ``value`` by a slot; gives the template and the tensors by name."""
    found: dict[str, torch.Tensor] = {}

    def visit(item: Any, name: str) -> Any:
        if isinstance(item, torch.Tensor):
            name = unique(name, found)
            found[name] = item
            return Slot(name)
        if isinstance(item, Mapping):
            return {k: visit(v, _join(name, k)) for k, v in item.items()}
        if isinstance(item, tuple) and hasattr(item, "_fields"):
            return type(item)(*(visit(v, _join(name, f)) for f, v in zip(item._fields, item, strict=True)))
        if isinstance(item, list | tuple):
            return type(item)(visit(v, _join(name, i)) for i, v in enumerate(item))
        return item

    return visit(value, prefix), found


def _fill(item: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(item, Slot):
        return tensors[item.name]
    if isinstance(item, Mapping):
        return {k: _fill(v, tensors) for k, v in item.items()}
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(_fill(v, tensors) for v in item))
    if isinstance(item, list | tuple):
        return type(item)(_fill(v, tensors) for v in item)
    return item


def flatten(value: Any, *, single: str = "output") -> dict[str, torch.Tensor]:
    """The tensors of a module's result by name, in order.

    One tensor is ``single``; the members of a tuple or list ``single_0`` …; mappings, dataclasses and
    named tuples give their own keys, nested ones joined with ``_``. ``None``, numbers and strings are
    left out. Raises :class:`TypeError`, naming the place, for any other object.
    """
    if isinstance(value, list | tuple) and not hasattr(value, "_fields") and len(value) == 1:
        value = value[0]
    named: dict[str, torch.Tensor] = {}
    for path, tensor in _leaves(value, ""):
        name = path or single
        named[unique(f"{single}_{name}" if name[0].isdigit() else name, named)] = tensor
    return named


def _leaves(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    for key, member in members(value, path):
        yield from _leaves(member, _join(path, key))


def members(value: Any, path: str = "") -> list[tuple[Any, Any]]:
    """The keys and values of one level of a nested result; empty for constants."""
    if isinstance(value, Mapping):
        return list(value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if value is None or isinstance(value, bool | int | float | complex | str):
        return []
    raise TypeError(f"{path or 'the result'} is a {type(value).__qualname__}, not a tensor")


def attempt(
    module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor] | Exception:
    """:func:`call`, or what the user's code raised in it."""
    return attempted(lambda: call(module, inputs))


def call(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run a module on copies of named tensors without gradients; its result as :func:`flatten` names it."""
    with torch.no_grad():
        outputs = flatten(invoke(module, copied(inputs)))
        return {name: tensor.detach() for name, tensor in outputs.items()}  # a parameter may be an output


def copied(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same values in tensors that forward may write into."""
    return {name: tensor.clone() for name, tensor in inputs.items()}


def invoke(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """Call a module with named tensors: by position where :func:`positions` says so, the others by name."""
    count = positions(module, inputs)
    values = list(inputs.items())
    return module(*(tensor for _, tensor in values[:count]), **dict(values[count:]))


def positions(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> int:
    """How many of ``inputs``, the first ones, are given by position.

    Users call modules by position, and a hook without ``with_kwargs`` sees no others: a module that has hooks gets
    all that its forward takes so; any other all by name, which makes no difference then.
    """
    if not (_compiled(module) or module._forward_pre_hooks or module._forward_hooks):
        return 0
    count = 0
    parameters = signature(module).parameters.items()
    for (name, parameter), given in zip(parameters, inputs, strict=False):
        if name != given or parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            break
        count += 1
    return count


def signature(module: torch.nn.Module) -> inspect.Signature:
    """What forward takes; TorchScript knows it by its own schema."""
    if not _compiled(module):
        return inspect.signature(module.forward)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward: Any = module.forward
    _, *arguments = forward.schema.arguments
    return inspect.Signature(
        [
            inspect.Parameter(
                a.name, kind, default=a.default_value if a.has_default_value() else inspect.Parameter.empty
            )
            for a in arguments
        ]
    )


def _compiled(module: torch.nn.Module) -> bool:
    """Whether it is TorchScript's: that takes names through the tracers of exporters as little as hooks do."""
    return isinstance(module, torch.jit.ScriptModule)


def constants(value: Any, path: str = "result") -> Iterator[tuple[str, Any]]:
    """Numbers and texts in a module's result, each with its place: :func:`flatten` leaves them out."""
    if isinstance(value, bool | int | float | complex | str):
        yield path, value
    elif not isinstance(value, torch.Tensor):
        for key, member in members(value):
            yield from constants(member, f"{path}[{key!r}]")


def unwrap(module: torch.nn.Module) -> tuple[torch.nn.Module, int]:
    """The user's own module and how many adapters were around it."""
    depth = 0
    while isinstance(module, Adapter):
        module, depth = module.module, depth + 1
    return module, depth


def unique(name: str, taken: Mapping[str, Any]) -> str:
    """``name``, or with the first free number behind it."""
    if name not in taken:
        return name
    return next(f"{name}_{i}" for i in range(1, len(taken) + 2) if f"{name}_{i}" not in taken)


def _join(path: str, key: Any) -> str:
    word = re.sub(r"\W+", "_", str(key))
    return f"{path}_{word}" if path else word
