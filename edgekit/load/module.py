"""A module and example inputs, however they are given, to a :class:`TorchModel`.

What holds afterwards, and everything else relies on: the module is in evaluation mode on the CPU with
floats in float32, ``module(**example_inputs)`` works, and every example input is a tensor by name.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from edgekit.errors import FactoryError, SourceError
from edgekit.graph.nested import Adapter, call, template
from edgekit.load.usercode import guarded
from edgekit.types import TorchModel

_ADAPTED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)


def is_module(value: Any) -> bool:
    """Whether this is something that :func:`bind` takes as the module."""
    return isinstance(value, torch.nn.Module | torch.export.ExportedProgram)


def bind(module: Any, example: Any, *, what: str) -> TorchModel:
    """Put a module and its example inputs (tensor, tuple, list, dict; nested where the module wants it)
    into the form above, and run it once.

    Raises :class:`SourceError` when the inputs do not fit ``forward`` and
    :class:`~edgekit.errors.FactoryError` when the module raises.
    """
    module = prepare(module)
    args, kwargs = _arguments(module, _to_tensors(example), what)
    named, inputs = _names(module, args, kwargs, what)
    model = TorchModel(module=named, example_inputs=inputs)
    try:
        with guarded(f"{what}: the module, called with its example inputs,"):
            outputs = _call(named, inputs)
    except FactoryError as error:
        if (
            isinstance(example, Mapping) and args and isinstance(args[-1], Mapping)
        ):  # one dict was the last resort
            raise _unfit(module, example, what) from error
        raise
    if isinstance(outputs, str):
        raise SourceError(
            f"{what}: {outputs}", hint="let forward return tensors, or tuples, dicts or dataclasses of them"
        )
    if not outputs:
        raise SourceError(
            f"{what}: the module returns no tensor", hint="let forward return what the app needs"
        )
    return model


def complete(
    model: TorchModel,
    *,
    task: str = "",
    dynamic_axes: Mapping[str, Mapping[int, str]],
    labels: tuple[str, ...] = (),
    preprocessing: Mapping[str, Any] | None = None,
) -> TorchModel:
    """Add what the source says about a model; dynamic axes are checked against the example inputs."""
    for name, axes in dynamic_axes.items():
        if name not in model.example_inputs:
            raise SourceError(
                f"dynamic axes are declared for {name!r}, which is no input",
                hint=f"inputs: {', '.join(model.example_inputs)}",
            )
        rank = model.example_inputs[name].dim()
        for axis in axes:
            if not -rank <= axis < rank:
                raise SourceError(
                    f"{name!r} has {rank} axes, so axis {axis} cannot be dynamic", hint="count axes from 0"
                )
    positive = {
        name: {axis % model.example_inputs[name].dim(): label for axis, label in axes.items()}
        for name, axes in dynamic_axes.items()
    }
    return dataclasses.replace(
        model, task=task, dynamic_axes=positive, labels=labels, preprocessing=preprocessing or {}
    )


def prepare(module: Any) -> torch.nn.Module:
    """Evaluation mode, CPU, floats in float32; wrappers of training (DDP, ``torch.compile``) taken off."""
    if isinstance(module, torch.export.ExportedProgram):
        return module.module()
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(
            module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel
        ):
            inner = module.module
        if not isinstance(inner, torch.nn.Module):
            break
        module = inner
    try:
        module.eval()
    except NotImplementedError:  # torch.export's modules are frozen in one mode
        return module  # type: ignore[no-any-return]
    floats = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
    module.cpu()
    if floats & {torch.float16, torch.bfloat16, torch.float64}:
        module.float()
    return module  # type: ignore[no-any-return]


def _call(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor] | str:
    with torch.no_grad():
        result = module(**inputs)
    from edgekit.graph.nested import flatten

    try:
        return flatten(result)
    except TypeError as error:
        return str(error)


def _to_tensors(value: Any) -> Any:
    """Arrays to tensors, wide floats to float32, on the CPU; containers kept."""
    if isinstance(value, np.ndarray | np.generic):
        value = torch.from_numpy(np.array(value))
    if isinstance(value, torch.Tensor):
        wide = value.dtype in (torch.float64, torch.float16, torch.bfloat16)
        return value.detach().cpu().float() if wide else value.detach().cpu()
    if isinstance(value, Mapping):
        return {k: _to_tensors(v) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_to_tensors(v) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(_to_tensors(v) for v in value)
    return value


def _arguments(module: torch.nn.Module, example: Any, what: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Whether the example is positional or by name; a dict or list may also be one argument."""
    signature = inspect.signature(module.forward)
    choices: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    if isinstance(example, torch.Tensor):
        choices = [((example,), {})]
    elif isinstance(example, Mapping):
        choices = [*_by_name(signature, example), ((dict(example),), {})]
    elif isinstance(example, list | tuple):
        choices = [(tuple(example), {}), ((example,), {})]
    else:
        raise SourceError(
            f"{what}: the example inputs are a {type(example).__name__}",
            hint="give a tensor, a tuple of tensors by position, or a dict of tensors by name",
        )
    for args, kwargs in choices:
        if _fits(signature, args, kwargs):
            return args, kwargs
    raise _unfit(module, example, what)


def _unfit(module: torch.nn.Module, example: Any, what: str) -> SourceError:
    count = len(example) if isinstance(example, list | tuple) else 1
    given = ", ".join(map(str, example)) if isinstance(example, Mapping) else f"{count} by position"
    return SourceError(
        f"{what}: the example inputs ({given}) do not fit forward{inspect.signature(module.forward)}",
        hint="give every parameter without a default, as a tuple by position or as a dict by name",
    )


def _by_name(
    signature: inspect.Signature, example: Mapping[Any, Any]
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The call that gives every parameter its namesake, positional-only ones by position."""
    if not all(isinstance(k, str) for k in example):
        return []
    only = {n for n, p in signature.parameters.items() if p.kind is inspect.Parameter.POSITIONAL_ONLY}
    args = tuple(example[n] for n in signature.parameters if n in only and n in example)
    return [(args, {k: v for k, v in example.items() if k not in only})]


def _fits(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _names(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], what: str
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Tensors by parameter name; an :class:`Adapter` where plain keywords are not enough."""
    signature = inspect.signature(module.forward)
    bound = signature.bind(*args, **kwargs).arguments
    plain: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if name not in bound:
            continue
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            plain.update(bound[name])
        elif parameter.kind not in _ADAPTED:
            plain[name] = bound[name]
    positional = any(p.kind in _ADAPTED and n in bound for n, p in signature.parameters.items())
    if not positional and all(isinstance(v, torch.Tensor) for v in plain.values()):
        inputs = dict(plain)
    else:
        form, inputs = _adapted(signature, bound)
        module = Adapter(module, *form)
        module.eval() if not _is_frozen(module) else None
    if not inputs:
        raise SourceError(f"{what}: the example inputs hold no tensor", hint="give at least one tensor")
    return module, inputs


def _adapted(
    signature: inspect.Signature, bound: Mapping[str, Any]
) -> tuple[tuple[tuple[Any, ...], dict[str, Any]], dict[str, torch.Tensor]]:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    inputs: dict[str, torch.Tensor] = {}
    for name, parameter in signature.parameters.items():
        if name not in bound:
            continue
        members = (
            bound[name].items() if parameter.kind is inspect.Parameter.VAR_KEYWORD else [(name, bound[name])]
        )
        for key, value in members:
            form, found = template(value, key)
            if clash := inputs.keys() & found.keys():
                raise SourceError(
                    f"two inputs are named {min(clash)!r}", hint="rename one of forward's parameters"
                )
            inputs |= found
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                args.extend(form)
            elif parameter.kind in (
                inspect.Parameter.POSITIONAL_ONLY,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
            ):
                args.append(form)
            else:
                kwargs[key] = form
    return (tuple(args), kwargs), inputs


def _is_frozen(module: torch.nn.Module) -> bool:
    return any(isinstance(m, torch.fx.GraphModule) for m in module.modules())


def outputs_of(model: TorchModel) -> dict[str, torch.Tensor]:
    """The module's outputs on its example inputs, by name."""
    return call(model.module, model.example_inputs)
