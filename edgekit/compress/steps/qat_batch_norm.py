"""Batch norms behind layers: found by running the model, folded by its weights, believed when it computes the same.

Folding before training is the usual way. Behind quantized weights with a scale a channel it is exact as well:
``γ/σ`` goes into the scales and the integers stay (Jacob et al. 2018, section 3.2, without their correction).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekit.compress.steps.qat_layers import channel_axis, spread

Pairs = Mapping[str, str]
"""The batch norm behind a layer, by the layer's name."""

_SAME = 1e-3  # of the largest output


def pairs(
    model: nn.Module, layers: Iterable[str], run: Callable[[nn.Module], torch.Tensor]
) -> dict[str, str]:
    """Which batch norms can be folded into which of ``layers``.

    ``run`` gives the outputs of a model on some inputs, as one vector: what was found is tried on a copy, and a
    pair with which the copy computes something else is left out.
    """
    found = _behind(model, list(layers), run)
    reference = run(model)

    def same(tried: Pairs) -> bool:
        trial = copy.deepcopy(model)
        fold(trial, tried)
        distance = (run(trial) - reference).abs().max()
        return bool(distance <= _SAME * reference.abs().max().clamp_min(1e-6))

    if not found or same(found):
        return found
    return {layer: norm for layer, norm in found.items() if same({layer: norm})}


def _behind(model: nn.Module, layers: list[str], run: Callable[[nn.Module], Any]) -> dict[str, str]:
    """Layer → batch norm where the one reads the very tensor that the other wrote, and both ran once."""
    wrote: dict[int, list[str]] = {}
    kept: list[Any] = []  # as long as a tensor lives, no other has its id
    read: dict[str, list[int]] = {}
    names = {m: n for n, m in model.named_modules() if isinstance(m, _BatchNorm) or n in set(layers)}

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        kept.append((args, output))
        name = names[module]
        if isinstance(module, _BatchNorm):
            read.setdefault(name, []).append(id(args[0]) if args else 0)
        else:
            wrote.setdefault(id(output), []).append(name)

    handles = [m.register_forward_hook(hook) for m in names]
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    calls: dict[str, int] = {}
    for name in (n for writers in wrote.values() for n in writers):
        calls[name] = calls.get(name, 0) + 1
    out: dict[str, str] = {}
    for norm, seen in read.items():
        writers = wrote.get(seen[0], [])
        if (
            len(seen) == 1
            and len(writers) == 1
            and calls[writers[0]] == 1
            and _foldable(model, writers[0], norm)
        ):
            out[writers[0]] = norm
    return out


def _foldable(model: nn.Module, layer: str, norm: str) -> bool:
    batch_norm, module = model.get_submodule(norm), model.get_submodule(layer)
    return getattr(batch_norm, "running_var", None) is not None and channel_axis(module) is not None


def fold(model: nn.Module, found: Pairs) -> None:
    """Fold batch norms into float weights, in place."""
    for layer, norm in found.items():
        module = model.get_submodule(layer)
        factor, shift = _affine(model.get_submodule(norm))
        weight = module.get_parameter("weight")
        with torch.no_grad():
            weight.mul_(spread(factor, channel_axis(module), weight.dim()))
        _bias(module, factor, shift)
        drop(model, norm)


def fold_stored(model: nn.Module, found: Pairs) -> None:
    """Fold batch norms into the scales of integer weights, in place. A negative factor turns the integers' sign."""
    for layer, norm in found.items():
        module = model.get_submodule(layer)
        factor, shift = _affine(model.get_submodule(norm))
        values = module.get_parameter("parametrizations.weight.original0")
        scale = module.get_parameter("parametrizations.weight.original1")
        axis = channel_axis(module)
        with torch.no_grad():
            values.mul_(spread(torch.sign(factor).to(values.dtype), axis, values.dim()))
            scale.mul_(torch.where(factor == 0, torch.ones_like(factor), factor.abs()))
        _bias(module, factor, shift)
        drop(model, norm)


def _affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch norm in evaluation mode does: ``factor * x + shift``."""
    assert isinstance(norm, _BatchNorm)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    with torch.no_grad():
        factor = (variance.double() + norm.eps).rsqrt()
        factor = factor * norm.weight.double() if norm.affine else factor
        shift = -mean.double() * factor
        shift = shift + norm.bias.double() if norm.affine else shift
    return factor.to(mean.dtype), shift.to(mean.dtype)


def _bias(module: nn.Module, factor: torch.Tensor, shift: torch.Tensor) -> None:
    old = module.bias
    bias = shift if old is None else shift + old.detach() * factor  # type: ignore[operator]
    if isinstance(old, nn.Parameter):
        old.data.copy_(bias)
    else:
        module.register_parameter("bias", nn.Parameter(bias.clone()))


def drop(model: nn.Module, norm: str) -> None:
    """Put nothing in a batch norm's place."""
    parent, _, name = norm.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())


def add_bias(module: nn.Module) -> None:
    """A bias for a layer without one: what folding leaves, before it is loaded."""
    if not isinstance(module.bias, nn.Parameter):
        weight = module.get_parameter("weight")
        axis = channel_axis(module) or 0
        module.register_parameter("bias", nn.Parameter(weight.new_zeros(weight.shape[axis])))


def hold_statistics(model: nn.Module) -> list[Any]:
    """Keep batch norms in evaluation mode whatever the training loop says; handles to let go of them."""

    def still(module: nn.Module, _: Any) -> None:
        module.training = False

    return [m.register_forward_pre_hook(still) for m in model.modules() if isinstance(m, _BatchNorm)]
