"""Which units go: the least important ones, until the costs are met."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgekit.compress.structured.groups import Alive, Analysis, Group
from edgekit.compress.structured.importance import Scores
from edgekit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Costs that may remain (absolute numbers), and how the cut is spread.

    ``scope``: one ranking of all units, each divided by its group's mean, or the same share of each group.
    ``multiple``: channels that stay in a group are a multiple of this. ``most``: largest share of a group to cut.
    """

    macs: float
    parameters: float
    scope: str
    multiple: int
    most: float

    def met(self, analysis: Analysis, alive: Alive) -> bool:
        """Whether the costs are low enough."""
        cheap = analysis.count_parameters(alive) <= self.parameters
        return cheap and analysis.count_macs(alive) <= self.macs


def select(analysis: Analysis, groups: tuple[Group, ...], scores: Scores, goal: Goal) -> Alive:
    """The labels that stay: as many as the goal allows. Raises ``UsageError`` if it is out of reach."""
    keys = [_key(scores[g.units], goal.scope) for g in groups]
    # All ranks at which the selection changes; the costs fall with them, so that bisection finds the first that fits.
    levels = np.unique(np.concatenate([np.sort(k) for k in keys])) if keys else np.zeros(1)

    def at(level: int) -> Alive:  # level -1 cuts nothing
        alive = analysis.everything()
        for group, key in zip(groups, keys, strict=True):
            cut = int(np.count_nonzero(key <= levels[level])) if level >= 0 else 0
            count = len(key) - _keep(group, len(key) - cut, goal)
            alive[group.units[np.argsort(key, kind="stable")[:count]]] = False
        return alive

    low, high = -1, len(levels) - 1
    if not goal.met(analysis, at(high)):
        raise _unreachable(analysis, at(high))
    while low < high:
        middle = (low + high) // 2
        if goal.met(analysis, at(middle)):
            high = middle
        else:
            low = middle + 1
    return at(high)


def _key(scores: Scores, scope: str) -> Scores:
    if scope == "global":
        return scores / max(float(scores.mean()), 1e-30)
    key = np.empty(len(scores))
    key[np.argsort(scores, kind="stable")] = (np.arange(len(scores)) + 0.5) / len(scores)
    return key


def _keep(group: Group, wanted: int, goal: Goal) -> int:
    """Units to keep: at least as many as wanted, rounded so that their channels are a multiple."""
    count = len(group.units)
    step = goal.multiple // math.gcd(goal.multiple, group.width)
    least = max(1, wanted, math.ceil(count * (1 - goal.most) - 1e-9))
    return min(count, math.ceil(least / step) * step)


def _unreachable(analysis: Analysis, alive: Alive) -> UsageError:
    whole = analysis.everything()
    macs = analysis.count_macs(alive) / max(1, analysis.count_macs(whole))
    parameters = analysis.count_parameters(alive) / max(1, analysis.count_parameters(whole))
    return UsageError(
        f"cutting all that can be cut leaves {macs:.0%} of the MACs and {parameters:.0%} of the parameters",
        hint="ask for less, raise most, lower multiple, or allow widths=true (channels under a layer norm)",
    )
