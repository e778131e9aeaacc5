"""The analysis of a model: which groups of channels, heads, units … can be cut, and what they cost.

A *unit* is a set of (parameter, dimension, indices) that can only be cut together: one channel with its
batch norm and the weights that read it, one attention head. Units that sit in the same dimensions of the same
parameters form a *group*: within one, units are alike and compete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.compress.structured import rules_norm, rules_shape
from edgekit.compress.structured.labels import Ids, Labels, Site
from edgekit.compress.structured.rules import walk
from edgekit.compress.structured.trace import Trace, record

del rules_norm, rules_shape  # they register themselves

Place = tuple[str, int]
"""A parameter's or buffer's name and one of its dimensions."""
Alive = NDArray[np.bool_]
"""For every label whether it stays."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Units that compete. ``units`` are their labels, ``width`` the channels that one of them has at least.

    ``exact``: cutting a unit computes the same as setting its parameters to zero.
    """

    units: Ids
    places: tuple[Place, ...]
    width: int
    exact: bool

    @property
    def name(self) -> str:
        """Where the units come from: the first parameter that has them as outputs, else the first at all."""
        made = [name for name, dim in self.places if dim == 0 and name.endswith("weight")]
        return made[0] if made else self.places[0][0]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """``places`` has the labels of every dimension of every parameter and buffer that the pass used."""

    places: Mapping[Place, Ids]
    groups: tuple[Group, ...]
    macs: tuple[tuple[int, tuple[Ids, ...]], ...]
    constants: tuple[tuple[tuple[str, ...], int, Ids], ...]
    labels: int
    parameters: Mapping[str, int]
    unknown: Mapping[str, int]

    def everything(self) -> Alive:
        """Nothing cut."""
        return np.ones(self.labels, np.bool_)

    def kept(self, alive: Alive) -> dict[Place, Ids]:
        """The indices that stay, of dimensions that lose some."""
        masks = {place: alive[ids] for place, ids in self.places.items()}
        return {place: np.flatnonzero(mask) for place, mask in masks.items() if not mask.all()}

    def count_macs(self, alive: Alive) -> int:
        """Multiply-accumulates of the example's forward pass."""
        total = 0
        for factor, dims in self.macs:
            for ids in dims:
                factor *= int(np.count_nonzero(alive[ids]))
            total += factor
        return total

    def count_parameters(self, alive: Alive) -> int:
        """Entries of all parameters."""
        sizes: dict[str, int] = {}
        for (name, dim), ids in self.places.items():
            if name in self.parameters:
                left = int(np.count_nonzero(alive[ids]))
                sizes[name] = sizes.get(name, 1) * left if dim else left
        unused = sum(n for name, n in self.parameters.items() if name not in sizes)
        return unused + sum(sizes.values())


def analyse(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], *, inexact: bool = False) -> Analysis:
    """Run ``model`` once and find its groups.

    Where there is a choice (whole heads, or the width of all heads; whole groups of a convolution, or
    channels of each) what covers most of the parameters is taken, the first among equals. ``inexact``
    includes units over which a normalisation computes statistics.
    """
    trace = record(model, inputs)
    numel = {name: p.numel() for name, p in model.named_parameters()}
    modes: dict[Site, int] = {}
    # One choice after the other: a choice may open sites that were not there before.
    best = _analyse(trace, numel, modes, inexact)
    while True:
        tried = False
        for site, count in best[1].sites.items():
            if site in modes:
                continue
            modes[site], tried = 0, True
            for option in range(1, count):
                other = _analyse(trace, numel, modes | {site: option}, inexact)
                if other[2] > best[2] * 1.001:
                    best, modes[site] = other, option
        if not tried or len(modes) > 64:
            return best[0]


def _analyse(
    trace: Trace, numel: Mapping[str, int], modes: Mapping[Site, int], inexact: bool
) -> tuple[Analysis, Labels, float]:
    labels = Labels(trace, dict(modes))
    walk(labels)
    find = labels.find
    places = {
        (name, dim): find(ids)
        for ref, name in trace.tensors.items()
        if labels.used(ref)  # what the pass does not use is not known, so it stays
        for dim, ids in enumerate(labels.of(ref))
    }
    macs = tuple((factor, tuple(find(ids) for ids in dims)) for factor, dims in labels.macs)
    constants = tuple((scope, size, find(ids)) for scope, size, ids in labels.constants)
    groups = tuple(
        g for g in _groups(places, numel, labels.inexact_roots()) if (inexact or g.exact) and len(g.units) > 1
    )
    count = int(labels.fresh(1)[0])
    analysis = Analysis(
        places=places,
        groups=groups,
        macs=macs,
        constants=constants,
        labels=count,
        parameters=numel,
        unknown=labels.unknown,
    )
    return analysis, labels, _covered(analysis)


def _groups(places: Mapping[Place, Ids], numel: Mapping[str, int], inexact: Ids) -> list[Group]:
    """Units by the places and numbers in which they appear."""
    names = list(places)
    number = np.concatenate([np.full(len(ids), i) for i, ids in enumerate(places.values())])
    label = np.concatenate(list(places.values()))
    pairs, counts = np.unique(np.stack([label, number]), axis=1, return_counts=True)
    found: dict[tuple[tuple[int, int], ...], list[int]] = {}
    starts = np.flatnonzero(np.r_[True, pairs[0, 1:] != pairs[0, :-1]])
    for begin, end in zip(starts, [*starts[1:], pairs.shape[1]], strict=True):
        unit = int(pairs[0, begin])
        if unit:
            key = tuple(zip(pairs[1, begin:end].tolist(), counts[begin:end].tolist(), strict=True))
            found.setdefault(key, []).append(unit)
    out = []
    bad = set(inexact.tolist())
    for key, units in found.items():
        where = tuple(names[i] for i, _ in key)
        if any(name in numel for name, _ in where):
            width = min(n for i, n in key if names[i][0] in numel)
            exact = not bad.intersection(units)
            out.append(Group(units=np.array(units, np.int64), places=where, width=width, exact=exact))
    return out


def _covered(analysis: Analysis) -> float:
    """Entries of parameters in dimensions that can be cut, a little more for each dimension of one."""
    free = np.zeros(analysis.labels, np.bool_)
    for group in analysis.groups:
        free[group.units] = True
    shares: dict[str, list[float]] = {}
    for (name, _), ids in analysis.places.items():
        if name in analysis.parameters:
            shares.setdefault(name, []).append(float(free[ids].mean()) if len(ids) else 0.0)
    return sum(analysis.parameters[n] * (max(s, default=0) + 0.1 * sum(s)) for n, s in shares.items())
