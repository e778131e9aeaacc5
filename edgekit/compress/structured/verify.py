"""Cut, run, compare: a cut model must compute what the whole model does with the same units set to zero.

Where it does not (the user's ``forward`` has a size written into it), attributes are tried one by one, and
groups one by one; those for which nothing works are left alone, and named.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from edgekit.compress.step import forward
from edgekit.compress.structured.cut import Attribute, Plan, apply, followers, plan
from edgekit.compress.structured.groups import Alive, Analysis, Group
from edgekit.core.foreign import attempted
from edgekit.graph.nested import flatten

TOLERANCE = 1e-3
"""Largest difference, relative to the largest output. The same sums in another order; float32."""
_TRIES = 24
_NOTHING = 1e-4

Outputs = dict[str, torch.Tensor]


class Checker:
    """Cuts one model on trial. ``leave`` collects the attributes that have to keep their values."""

    def __init__(
        self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], analysis: Analysis
    ) -> None:
        self.model, self.inputs, self.analysis = model, inputs, analysis
        self.leave: frozenset[Attribute] = frozenset()
        self._hopeless: set[tuple[tuple[type, str], ...]] = set()

    def failing(self, groups: tuple[Group, ...]) -> tuple[Group, ...]:
        """The groups of which nothing can be cut; learns which attributes have to stay."""
        if not groups or self.works(self._probe(groups)):
            return ()
        if len(groups) == 1:
            return () if self._mend(groups[0]) else groups
        half = len(groups) // 2
        left = self.failing(groups[:half])
        right = self.failing(groups[half:])
        bad = {id(g) for g in (*left, *right)}
        good = tuple(g for g in groups if id(g) not in bad)
        if self.works(self._probe(good)):
            return tuple(g for g in groups if id(g) in bad)
        return groups  # each works alone, all together do not

    def works(self, alive: Alive) -> bool:
        """Whether cutting gives the masked model's outputs.

        Units that are not exact are left out of this comparison; with them, outputs must be finite.
        """
        rough = [g.units for g in self.analysis.groups if not g.exact and not alive[g.units].all()]
        if rough:
            strict = alive.copy()
            strict[np.concatenate(rough)] = True
            if not self._same(plan(self.model, self.analysis, strict, self.leave), strict):
                return False
        return self._same(plan(self.model, self.analysis, alive, self.leave), alive)

    def refine(self, alive: Alive) -> None:
        """Where attributes of a module have equal values (``inner_dim`` and ``d_model``), change those that matter.

        One that can keep its value while another takes the new one keeps it.
        """
        modules = dict(self.model.named_modules())
        follow = {k: v for k, v in followers(self.model, self.analysis, alive).items() if k not in self.leave}
        equal: dict[tuple[str, object], list[str]] = {}
        for path, name in follow:
            equal.setdefault((path, getattr(modules[path], name)), []).append(name)
        trials: dict[tuple[type, str], set[Attribute]] = {}
        for (path, _), names in equal.items():
            for name in names if len(names) > 1 else ():
                trials.setdefault((type(modules[path]), name), set()).add((path, name))
        known = {(type(modules[path]), name) for path, name in self.leave}
        for key in sorted(trials, key=lambda k: k not in known):
            leave = self.leave | trials[key]
            others = all(self._others(a, equal, modules) for a in trials[key])
            if others and self._same(plan(self.model, self.analysis, alive, leave), alive):
                self.leave = leave

    def _others(
        self,
        attribute: Attribute,
        equal: Mapping[tuple[str, object], list[str]],
        modules: Mapping[str, torch.nn.Module],
    ) -> bool:
        """Whether another attribute of this value would still follow."""
        path, name = attribute
        names = equal[path, getattr(modules[path], name)]
        return any(n != name and (path, n) not in self.leave for n in names)

    def _probe(self, groups: tuple[Group, ...]) -> Alive:
        """A part of each group cut, another for each so that sizes do not agree by chance."""
        alive = self.analysis.everything()
        for group in groups:
            alive[group.units[:: 2 if len(group.units) < 6 else 3]] = False
        return alive

    def _mend(self, group: Group) -> bool:
        alive = self._probe((group,))
        candidates = sorted(followers(self.model, self.analysis, alive))
        kinds = tuple(sorted(((type(self.model.get_submodule(p)), n) for p, n in candidates), key=str))
        if kinds in self._hopeless:  # the same layer elsewhere in the model
            return False
        subsets = itertools.chain.from_iterable(
            itertools.combinations(candidates, n) for n in range(1, len(candidates) + 1)
        )
        for subset in itertools.islice(subsets, _TRIES):
            leave = self.leave | frozenset(subset)
            if self._same(plan(self.model, self.analysis, alive, leave), alive):
                self.leave = leave
                return True
        self._hopeless.add(kinds)
        return False

    def _same(self, cut: Plan, alive: Alive) -> bool:
        exact = not any(not g.exact and not alive[g.units].all() for g in self.analysis.groups)
        with _lively(self.model):
            with masked(self.model, self.analysis, alive):
                expected = outputs(self.model, self.inputs)
            undo = apply(self.model, cut)
            try:
                found = attempted(lambda: outputs(self.model, self.inputs))
            finally:
                undo()
        if isinstance(found, Exception):  # a size does not fit
            return False
        if not exact:  # a norm sees fewer channels: the numbers differ, as they should
            return shapes(expected) == shapes(found)
        return close(expected, found)


@contextmanager
def _lively(model: torch.nn.Module) -> Iterator[None]:
    """Random numbers in parameters that are (nearly) zero, for a while.

    Behind a head or a layer scale that starts at zero, any two models would agree.
    """
    random = torch.Generator().manual_seed(0)
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for p in model.parameters():
            if p.is_floating_point() and p.numel() and float(p.detach().abs().max()) < _NOTHING:
                before.append((p, p.data))
                p.data = 0.1 * torch.randn(p.shape, generator=random).to(p)
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


@contextmanager
def masked(model: torch.nn.Module, analysis: Analysis, alive: Alive) -> Iterator[None]:
    """The parameters of what is not ``alive`` set to zero, for a while."""
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    parameters: dict[str, torch.Tensor] = dict(model.named_parameters())
    try:
        for (name, dim), kept in analysis.kept(alive).items():
            if name in parameters:
                tensor = parameters[name]
                before.append((tensor, tensor.data))
                gone = torch.from_numpy(np.setdiff1d(np.arange(tensor.shape[dim]), kept))
                tensor.data = tensor.data.index_fill(dim, gone.to(tensor.device), 0.0)
        yield
    finally:
        for tensor, data in reversed(before):
            tensor.data = data


def outputs(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Outputs:
    """What ``model`` gives in evaluation mode, by name."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return dict(flatten(forward(model, inputs)))
    finally:
        model.train(was_training)


def close(a: Outputs, b: Outputs) -> bool:
    """Equal within :data:`TOLERANCE`."""
    return shapes(a) == shapes(b) and all(_error(a[n], b[n]) <= TOLERANCE for n in a)


def shapes(x: Outputs) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Shapes by name, and whether all values are finite."""
    return {n: (tuple(t.shape), bool(torch.isfinite(t).all())) for n, t in x.items()}


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    if not a.is_floating_point():
        return float((a != b).double().mean()) if a.numel() else 0.0
    scale = float(a.abs().max()) if a.numel() else 0.0
    return float((a - b).abs().max()) / max(scale, 1e-6) if a.numel() else 0.0
