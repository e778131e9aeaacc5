"""The ranks of ``low-rank``: which layers are factored, how far, and what takes their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from edgekit.compress import constraints
from edgekit.compress.step import Context, Tensors
from edgekit.compress.steps import low_rank_factors, patterns
from edgekit.compress.steps.low_rank import LowRank
from edgekit.compress.steps.low_rank_factors import Cut, hollow
from edgekit.compress.steps.low_rank_moments import Factorable, InputMoments, observe
from edgekit.compress.training.teacher import taught
from edgekit.compress.training.train import fit
from edgekit.errors import ConfigError, SourceError


def apply(step: LowRank, model: nn.Module, context: Context) -> nn.Module:
    """Factor in place and return ``model``; the ranks are recorded.

    Raises ``SourceError`` if there is nothing to factor, ``ConfigError`` for a budget below what ranks
    of ``multiple`` take, ``UsageError`` if it is ``aware`` and there is no task.
    """
    targets = _targets(step, model)
    if step.aware:
        moments = observe(model, targets, context, step.batches, step=step.NAME)
    else:
        moments = {name: InputMoments() for name in targets}
    cuts = {
        name: low_rank_factors.factor(m, moments[name], method=_method(step, m), multiple=step.multiple)
        for name, m in targets.items()
    }
    whole = sum(p.numel() for p in model.parameters())
    chosen = budgeted(list(cuts.values()), whole, step.parameters) if step.parameters < 1 else ()
    ranks = chosen or [c.rank_for(step.energy) for c in cuts.values()]
    for (name, cut), rank in zip(cuts.items(), ranks, strict=True):
        if rank:
            _replace(model, name, cut.build(rank))
    context.record({name: torch.tensor(r) for (name, _), r in zip(cuts.items(), ranks, strict=True) if r})
    if step.training.epochs:
        fit(model, taught(step.NAME, step.training, context), step.training, seed=context.seed)
    return model.eval()


def restore(step: LowRank, model: nn.Module, tensors: Tensors) -> nn.Module:
    """The structure with the recorded ranks; weights are still to come."""
    for name, rank in tensors.items():
        module = model.get_submodule(name)
        _replace(model, name, hollow(module, int(rank), _method(step, module)))
    return model


def _targets(step: LowRank, model: nn.Module) -> dict[str, Factorable]:
    """Layers that can be factored and are asked for."""
    layers = factorable(model, embeddings=step.embeddings, convolutions=step.convolutions != "none")
    asked = patterns.split(step.layers)
    patterns.check(asked, tuple(layers), "factored")
    if asked:
        layers = {name: m for name, m in layers.items() if patterns.matches(name, asked)}
    if not layers:
        raise SourceError("the model has no layer to factor", hint="leave this step out")
    laid = [name for name, layer in layers.items() if constraints.of(layer)]
    constraints.refuse(
        laid,
        "low-rank puts dense factors in the place of weights whose zeros, values or integers a step before it chose",
        hint="put low-rank before that step, or name the layers to factor (layers=…)",
    )
    return layers


def rehearse(step: LowRank, model: nn.Module, context: Context) -> nn.Module:
    """What would be refused. The layers stay."""
    del context
    _targets(step, model)
    return model


def _method(step: LowRank, module: nn.Module) -> str:
    size = getattr(module, "kernel_size", ())
    return step.convolutions if any(k > 1 for k in size) else "svd"


def factorable(model: nn.Module, *, embeddings: bool, convolutions: bool) -> dict[str, Factorable]:
    """Layers that are called as modules and share their weights with nobody, by name."""
    users = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    inside = {
        f"{name}.{child}"
        for name, m in model.named_modules()
        if isinstance(m, nn.MultiheadAttention | nn.TransformerEncoderLayer)
        for child, _ in m.named_modules()
    }  # their fused paths read the weights of their children, and never call them
    layers: dict[str, Factorable] = {}
    for name, module in model.named_modules():
        if not name or name in inside:
            continue
        convolution = isinstance(module, nn.Conv2d | nn.Conv1d) and convolutions and _plain(module)
        embedding = isinstance(module, nn.Embedding) and embeddings
        if not (isinstance(module, nn.Linear) or convolution or embedding):
            continue
        weight = module._parameters.get("weight")
        if weight is None:  # integers: refused by name, if they are asked for
            layers[name] = cast("Factorable", module)
            continue
        if users[id(weight)] == 1 and min(weight.shape[:2]) > 1:
            layers[name] = cast("Factorable", module)
    return layers


def _plain(module: nn.modules.conv._ConvNd) -> bool:
    return module.groups == 1 and module.padding_mode == "zeros"


def budgeted(cuts: Sequence[Cut], whole: int, share: float) -> list[int]:
    """A rank for each layer (0: leave it) so that ``share`` of ``whole`` parameters remain, by the Lagrangian.

    Raises ``ConfigError`` if even the smallest ranks keep more.
    """
    fixed = whole - sum(c.parameters for c in cuts)
    room = share * whole - fixed

    def choice(multiplier: float) -> tuple[list[int], int]:
        ranks = [c.cheapest(multiplier) for c in cuts]
        return ranks, sum(c.size(r) for c, r in zip(cuts, ranks, strict=True))

    low, high = 0.0, 1e-12
    while choice(high)[1] > room:
        high *= 4
        if high > 1e6:
            least = (fixed + choice(high)[1]) / whole
            raise ConfigError(
                f"{share:.0%} of the parameters cannot be reached by low rank: the least is {least:.0%}",
                hint="raise parameters, or prune first",
            )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if choice(middle)[1] > room else (low, middle)
    return _filled(cuts, choice(high)[0], room)


def _filled(cuts: Sequence[Cut], ranks: list[int], room: float) -> list[int]:
    """Spend what the multiplier leaves over: raise the rank that gains the most energy a parameter, while it fits."""
    left = room - sum(c.size(r) for c, r in zip(cuts, ranks, strict=True))
    while True:
        best, gain = None, 0.0
        for i, (cut, rank) in enumerate(zip(cuts, ranks, strict=True)):
            higher = cut.next(rank)
            cost = cut.size(higher) - cut.size(rank)
            if higher != rank and cost <= left and (cut.lost(rank) - cut.lost(higher)) / max(1, cost) > gain:
                best, gain = (i, higher, cost), (cut.lost(rank) - cut.lost(higher)) / max(1, cost)
        if best is None:
            return ranks
        i, higher, cost = best
        ranks[i], left = higher, left - cost


def _replace(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent) if parent else model
    owner.register_module(last, module)  # numbered children of containers are registered by number, too
