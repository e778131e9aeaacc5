"""Batch norms behind layers: found by running the model, folded by its weights, believed when it computes the same.

Folding before training is the usual way. Behind quantized weights with a scale a channel it is exact as well:
``γ/σ`` goes into the scales and the integers stay (Jacob et al. 2018, section 3.2, without their correction).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from edgekit.compress import constraints
from edgekit.compress.constraints import Values
from edgekit.compress.hooks import prunable, removed
from edgekit.compress.step import Context, Tensors, forward
from edgekit.compress.steps.fold import Fold
from edgekit.compress.steps.qat_layers import channel_axis, spread
from edgekit.graph.nested import flatten

Pairs = Mapping[str, str]
"""The batch norm behind a layer, by the layer's name."""

_SAME = 1e-3  # of the largest output


def apply(step: Fold, model: nn.Module, context: Context) -> nn.Module:
    """The step ``fold``: in place. Raises ``UsageError`` without example inputs."""
    pairs = foldable(model.eval(), context.needs_example(step.NAME))
    refuse_shared(model, pairs, step.NAME)
    fold(model, pairs)
    context.record({layer: encoded(norm) for layer, norm in pairs.items()})
    return model


def restore(_: Fold, model: nn.Module, tensors: Tensors) -> nn.Module:
    """The same batch norms out of a fresh module; their layers get a bias."""
    for layer, norm in tensors.items():
        take_in(model, layer, decoded(norm))
    return model.eval()


def rehearse(step: Fold, model: nn.Module, context: Context) -> nn.Module:
    """What would be refused. The norms stay."""
    rehearse_fold(model, context, step.NAME)
    return model


def rehearse_fold(model: nn.Module, context: Context, step: str) -> None:
    """Raises ``ComposeError`` if folding would take shared values apart, where that can be told from the example."""
    if constraints.having(prunable(model), Values) and context.example_inputs:
        refuse_shared(model, foldable(model.eval(), context.example_inputs), step)


def refuse_shared(model: nn.Module, pairs: Pairs, step: str) -> None:
    """Raises ``ComposeError`` where a fold would take shared values apart."""
    shared = constraints.having({n: model.get_submodule(n) for n in pairs}, Values)
    constraints.refuse(
        shared,
        f"{step} multiplies each channel by a factor of its own: the values that layers share would be many",
        hint="put fold before cluster",
    )


def foldable(model: nn.Module, inputs: Tensors) -> dict[str, str]:
    """The batch norm behind each layer that can take it up. ``model`` is in evaluation mode."""

    def run(module: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([t.float().flatten() for t in flatten(forward(module, inputs)).values()])

    return pairs(model, prunable(model), run)


def pairs(
    model: nn.Module, layers: Iterable[str], run: Callable[[nn.Module], torch.Tensor]
) -> dict[str, str]:
    """Which batch norms can be folded into which of ``layers``.

    ``run`` gives the outputs of a model on some inputs, as one vector: what was found is tried on a copy, and a
    pair with which the copy computes something else is left out.
    """
    behind = _behind(model, list(layers), run)
    reference = run(model)

    def same(tried: Pairs) -> bool:
        trial = copy.deepcopy(model)
        fold(trial, tried)
        distance = (run(trial) - reference).abs().max()
        return bool(distance <= _SAME * reference.abs().max().clamp_min(1e-6))

    if not behind or same(behind):
        return behind
    return {layer: norm for layer, norm in behind.items() if same({layer: norm})}


def _behind(model: nn.Module, layers: list[str], run: Callable[[nn.Module], torch.Tensor]) -> dict[str, str]:
    """Layer → batch norm where the one reads the very tensor that the other wrote, and both ran once."""
    writers: dict[int, list[str]] = {}  # by the id of the tensor
    reads: dict[str, list[int]] = {}
    alive: list[object] = []  # as long as a tensor lives, no other has its id
    names = {m: n for n, m in model.named_modules() if isinstance(m, _BatchNorm) or n in set(layers)}

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        alive.append((args, output))
        name = names[module]
        if isinstance(module, _BatchNorm):
            reads.setdefault(name, []).append(id(args[0]) if args else 0)
        else:
            writers.setdefault(id(output), []).append(name)

    with removed([m.register_forward_hook(hook) for m in names]):
        run(model)
    calls = Counter(name for layers in writers.values() for name in layers)
    out: dict[str, str] = {}
    for norm, read in reads.items():
        writer, *others = writers.get(read[0], [""])
        once = len(read) == 1 and not others and calls[writer] == 1
        if once and _foldable(model, writer, norm):
            out[writer] = norm
    return out


def _foldable(model: nn.Module, layer: str, norm: str) -> bool:
    batch_norm, module = model.get_submodule(norm), model.get_submodule(layer)
    return getattr(batch_norm, "running_var", None) is not None and channel_axis(module) is not None


def fold(model: nn.Module, pairs: Pairs) -> None:
    """Fold batch norms into float weights, in place."""
    for layer, norm in pairs.items():
        module = model.get_submodule(layer)
        factor, shift = _affine(model.get_submodule(norm))
        weight = module.get_parameter("weight")
        with torch.no_grad():
            weight.mul_(spread(factor, channel_axis(module), weight.dim()))
        _bias(module, factor, shift)
        drop(model, norm)


def fold_stored(model: nn.Module, pairs: Pairs) -> None:
    """Fold batch norms into the scales of integer weights, in place. A negative factor turns the integers' sign."""
    for layer, norm in pairs.items():
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


def take_in(model: nn.Module, layer: str, norm: str) -> None:
    """The structure that folding leaves, before the weights are loaded: a bias, and no batch norm."""
    module = model.get_submodule(layer)
    if not isinstance(module.bias, nn.Parameter):
        weight = module.get_parameter("weight")
        axis = channel_axis(module) or 0
        module.register_parameter("bias", nn.Parameter(weight.new_zeros(weight.shape[axis])))
    drop(model, norm)


def encoded(name: str) -> torch.Tensor:
    """A name as a tensor for the plan: its bytes."""
    return torch.tensor(list(name.encode()))


def decoded(name: torch.Tensor) -> str:
    """The inverse of :func:`encoded`."""
    return bytes(name.tolist()).decode()


def hold_statistics(model: nn.Module) -> list[RemovableHandle]:
    """Keep batch norms in evaluation mode whatever the training loop says; handles to let go of them."""

    def still(module: nn.Module, _: object) -> None:
        module.training = False

    return [m.register_forward_pre_hook(still) for m in model.modules() if isinstance(m, _BatchNorm)]
