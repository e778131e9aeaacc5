"""A module and example inputs, in whatever form, to a :class:`TorchModel`.

What holds afterwards, and everything else relies on: the module is in evaluation mode on the CPU with
floats in float32, ``nested.call(module, example_inputs)`` works, and every example input is a tensor by name.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch

from edgekit.core.foreign import attempted
from edgekit.errors import FactoryError, SourceError
from edgekit.graph import nested
from edgekit.graph.float32 import Float32, asks_for_half, in_float32
from edgekit.graph.nested import Adapter, copied, flatten, invoke, template
from edgekit.load.usercode import guarded
from edgekit.types import Json, TorchModel

ModuleLike: TypeAlias = torch.nn.Module | torch.export.ExportedProgram
"""What :func:`bind` takes as the module."""

_Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_UNNAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)


def bind(module: ModuleLike, example: object, *, what: str) -> TorchModel:
    """Put a module and its example inputs (tensor, tuple, list, dict; nested where the module takes it so)
    into the form above, and run it once.

    Raises :class:`SourceError` when the inputs do not fit ``forward`` and
    :class:`~edgekit.errors.FactoryError` when the module raises.
    """
    notes = (*_mode(module), *_observing(module))
    module = prepare(module)
    args, kwargs = _arguments(module, _to_tensors(example), what)
    named, inputs = _named(module, args, kwargs, what)
    try:
        with guarded(f"{what}: the module, called with its example inputs,"), torch.no_grad():
            result, half = _first_run(named, inputs)
            if half:
                named = Float32(named)
                result = invoke(named, copied(inputs))
    except FactoryError as error:
        # A dict as the one argument was the last resort: its keys were meant as names, which do not fit.
        if isinstance(example, Mapping) and args and isinstance(args[-1], Mapping):
            raise _unfit(module, example, what) from error
        raise
    try:
        outputs = flatten(result)
    except TypeError as error:
        raise SourceError(
            f"{what}: {error}", hint="let forward return tensors, or tuples, dicts or dataclasses of them"
        ) from error
    if not outputs:
        raise SourceError(
            f"{what}: the module returns no tensor", hint="let forward return what the app needs"
        )
    return TorchModel(module=named, example_inputs=inputs, notes=notes)


def _first_run(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[object, bool]:
    """What the module returns, and whether it computes in 16 bits on its way."""
    ran = attempted(lambda: asks_for_half(lambda: invoke(module, copied(inputs))))
    # A compiled part may not run while it is watched.
    return _unwatched(module, inputs) if isinstance(ran, Exception) else ran


def _unwatched(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[object, bool]:
    """The same, in float32 where it fails: it may ask for 16 bits by name, and its weights are float32 by now."""
    try:
        return invoke(module, copied(inputs)), False
    except RuntimeError as error:
        if _compiled_part(module):
            raise
        try:
            with in_float32():
                return invoke(module, copied(inputs)), True
        except RuntimeError:
            raise error from None


def _compiled_part(module: torch.nn.Module) -> bool:
    return any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())


def complete(
    model: TorchModel,
    *,
    task: str = "",
    dynamic_axes: Mapping[str, Mapping[int, str]],
    labels: tuple[str, ...] = (),
    preprocessing: Mapping[str, Json] | None = None,
    postprocessing: Mapping[str, Json] | None = None,
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
        model,
        task=task,
        dynamic_axes=positive,
        labels=labels,
        preprocessing=preprocessing or {},
        postprocessing=postprocessing or {},
    )


def prepare(module: ModuleLike) -> torch.nn.Module:
    """Evaluation mode, CPU, floats in float32; wrappers of training (DDP, ``torch.compile``) taken off."""
    if isinstance(module, torch.export.ExportedProgram):
        return module.module()
    while (inner := _wrapped(module)) is not None:
        module = inner
    try:
        module.eval()
    except NotImplementedError:  # torch.export's modules are frozen in one mode
        return module
    for part in module.modules():
        if callable(
            stop := getattr(part, "disable_observer", None)
        ):  # torch.ao's fake quantization learns on, else
            stop()
    floats = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
    module.cpu()
    if floats & {torch.float16, torch.bfloat16, torch.float64}:
        module.float()
    return module


def _mode(module: ModuleLike) -> tuple[str, ...]:
    """Said of a module that comes in training mode, where that makes a difference."""
    if isinstance(module, torch.export.ExportedProgram) or not module.training:
        return ()
    kinds = {type(m).__name__ for m in module.modules() if m.training and isinstance(m, _TRAINED_OTHERWISE)}
    if not kinds:
        return ()
    return (
        f"the module came in training mode, and is built in evaluation mode ({', '.join(sorted(kinds))})",
    )


def _observing(module: ModuleLike) -> tuple[str, ...]:
    """Said of torch.ao's fake quantization that goes on measuring ranges: those of now are built."""
    if isinstance(module, torch.export.ExportedProgram):
        return ()
    for path, part in module.named_modules():
        switch = getattr(part, "observer_enabled", None)
        if isinstance(switch, torch.Tensor) and bool(switch.any()):
            return (
                f"{path} measures ranges in every call: built with those of now, as after torch.ao's disable_observer",
            )
    return ()


_TRAINED_OTHERWISE = (
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.modules.dropout._DropoutNd,
    torch.nn.RReLU,
)


def _wrapped(module: torch.nn.Module) -> torch.nn.Module | None:
    """The module inside of a wrapper; ``None`` for any other."""
    inner: object = getattr(module, "_orig_mod", None)  # torch.compile's
    if inner is None and isinstance(
        module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel
    ):
        inner = module.module
    return inner if isinstance(inner, torch.nn.Module) else None


def _to_tensors(value: object) -> object:
    """Arrays to tensors, wide floats to float32, on the CPU; containers stay."""
    if isinstance(value, np.ndarray | np.generic):
        value = torch.from_numpy(np.array(value))
    if isinstance(value, torch.Tensor):
        wide = value.dtype in (torch.float64, torch.float16, torch.bfloat16)
        return value.detach().cpu().float() if wide else value.detach().cpu()
    if isinstance(value, Mapping):
        return {k: _to_tensors(v) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):  # a named tuple
        return value._make(_to_tensors(v) for v in value)
    if isinstance(value, list | tuple):
        return type(value)(_to_tensors(v) for v in value)
    return value


def _arguments(module: torch.nn.Module, example: object, what: str) -> _Arguments:
    """Whether the example is positional or by name; a dict or list may also be one argument."""
    signature = nested.signature(module)
    if isinstance(example, torch.Tensor):
        choices: list[_Arguments] = [((example,), {})]
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


def _unfit(module: torch.nn.Module, example: object, what: str) -> SourceError:
    count = len(example) if isinstance(example, list | tuple) else 1
    form = ", ".join(map(str, example)) if isinstance(example, Mapping) else f"{count} by position"
    return SourceError(
        f"{what}: the example inputs ({form}) do not fit forward{nested.signature(module)}",
        hint="give every parameter without a default, as a tuple by position or as a dict by name",
    )


def _by_name(signature: inspect.Signature, example: Mapping[object, object]) -> list[_Arguments]:
    """The call that gives every parameter its namesake, positional-only ones by position."""
    named = {k: v for k, v in example.items() if isinstance(k, str)}
    if len(named) < len(example):
        return []
    only = [n for n, p in signature.parameters.items() if p.kind is inspect.Parameter.POSITIONAL_ONLY]
    args = tuple(named.pop(n) for n in only if n in named)
    return [(args, named)]


def _fits(signature: inspect.Signature, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _named(
    module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object], what: str
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Tensors by parameter name; an :class:`Adapter` where plain keywords are not enough."""
    signature = nested.signature(module)
    bound = signature.bind(*args, **kwargs).arguments
    plain: dict[str, object] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            plain.update(value)
        elif kind not in _UNNAMED:
            plain[name] = value
    inputs = {name: value for name, value in plain.items() if isinstance(value, torch.Tensor)}
    if len(inputs) < len(plain) or any(signature.parameters[n].kind in _UNNAMED for n in bound):
        (slots, named_slots), inputs = _adapted(signature, bound)
        module = Adapter(module, slots, named_slots)
        if not any(isinstance(m, torch.fx.GraphModule) for m in module.modules()):
            module.eval()  # a graph of torch.export is frozen in its mode, and refuses
    if not inputs:
        raise SourceError(f"{what}: the example inputs hold no tensor", hint="give at least one tensor")
    return module, inputs


def _adapted(
    signature: inspect.Signature, bound: Mapping[str, object]
) -> tuple[_Arguments, dict[str, torch.Tensor]]:
    """The arguments with a slot in place of every tensor, and the tensors by name."""
    args: list[object] = []
    kwargs: dict[str, object] = {}
    inputs: dict[str, torch.Tensor] = {}
    for name, argument in bound.items():
        kind = signature.parameters[name].kind
        named = argument if kind is inspect.Parameter.VAR_KEYWORD else {name: argument}
        assert isinstance(named, Mapping)
        for key, value in named.items():
            form, tensors = template(value, key)
            if clash := inputs.keys() & tensors.keys():
                raise SourceError(
                    f"two inputs are named {min(clash)!r}", hint="rename one of forward's parameters"
                )
            inputs |= tensors
            if kind is inspect.Parameter.VAR_POSITIONAL:
                args.extend(form)
            elif kind in _POSITIONAL:
                args.append(form)
            else:
                kwargs[key] = form
    return (tuple(args), kwargs), inputs
