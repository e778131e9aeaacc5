"""How a number becomes binary decisions: buckets of magnitudes, and a tree over the buckets.

A magnitude's *bucket* is coded by a walk through an ordered binary tree whose shape follows the
histogram (about as many decisions as the entropy); then the sign; then the *low bits*, the position in
the bucket, of which the first is modelled and the rest are stored as they are.

Integers below ``direct`` have a bucket each; above, two buckets an octave. Floating-point numbers are
read as integers (sign, then exponent and mantissa as one magnitude): two buckets a binade as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgekit.entropy.rans import Ints
from edgekit.errors import ContainerError

MAX_BUCKETS = 1024


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """``low[b]`` is the smallest magnitude of bucket ``b``, ``width[b]`` its number of low bits."""

    low: Ints
    width: Ints

    @property
    def count(self) -> int:
        """Number of buckets."""
        return len(self.low)

    def of(self, magnitude: Ints) -> Ints:
        """The bucket of each magnitude."""
        return np.searchsorted(self.low, magnitude, side="right") - 1


def octaves(direct: int, top: int) -> Buckets:
    """Buckets for magnitudes up to ``top``: one each below ``direct`` (a power of two ≥ 2), two an octave above."""
    low, width = list(range(direct)), [0] * direct
    base = direct
    while low[-1] + (1 << width[-1]) <= top:
        half = base.bit_length() - 2
        low += [base, base + (1 << half)]
        width += [half, half]
        base *= 2
    while low[-1] > top:
        low.pop()
        width.pop()
    return Buckets(low=np.array(low, np.int64), width=np.array(width, np.int64))


def binades(shift: int, first: int, last: int) -> Buckets:
    """A bucket for zero, then one for each value of ``magnitude >> shift`` from ``first`` to ``last``."""
    head = np.arange(first, last + 1, dtype=np.int64) << shift
    low = np.concatenate([[0], head]) if first > 0 else head
    width = np.full(len(low), shift, np.int64)
    # Zero alone in its bucket: pruned weights then cost one decision.
    if first > 0:
        width[0] = 0
    return Buckets(low=low, width=width)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """An ordered binary tree over ``leaves`` buckets. Node 0 is the root.

    At node ``n`` the decision is ``bucket >= split[n]``; ``child[n, decision]`` is the next node, or
    ``-1 - bucket`` at a leaf.
    """

    leaves: int
    split: Ints
    child: Ints

    @classmethod
    def balanced(cls, histogram: Ints) -> Tree:
        """The weight-balanced tree: every node halves the weight as well as it can (within 2 decisions
        of the entropy, Rissanen 1973)."""
        # A 256th of an occurrence more: what never occurs has a place in the tree, too, deep down.
        total = np.concatenate([[0], np.cumsum(histogram.astype(np.int64) * 256 + 1)])

        def cut(first: int, last: int) -> int:
            middle = (total[first] + total[last]) / 2
            at = int(np.searchsorted(total[first : last + 1], middle)) + first
            if at > first and middle - total[at - 1] < total[at] - middle:
                at -= 1
            return min(max(at, first + 1), last - 1)

        return cls._build(len(histogram), cut)

    @classmethod
    def from_number(cls, leaves: int, number: int) -> Tree:
        """The tree that :meth:`number` describes. Raises ``ContainerError`` if it describes none."""

        def cut(first: int, last: int) -> int:
            nonlocal number
            number, at = divmod(number, last - first - 1)
            return first + 1 + at

        tree = cls._build(leaves, cut)
        if number:
            raise ContainerError(
                "the tree of a tensor is malformed", hint="the file is damaged: pack it again"
            )
        return tree

    @classmethod
    def _build(cls, leaves: int, cut: Callable[[int, int], int]) -> Tree:
        split = np.zeros(max(leaves - 1, 1), np.int64)
        child = np.full((max(leaves - 1, 1), 2), -1, np.int64)
        stack, used = [(0, leaves, -1, 0)], 0
        while stack:
            first, last, parent, side = stack.pop()
            if last - first == 1:
                number = -1 - first
            else:
                number, used = used, used + 1
                split[number] = at = cut(first, last)
                stack += [(at, last, number, 1), (first, at, number, 0)]
            if parent >= 0:
                child[parent, side] = number
        return cls(leaves=leaves, split=split, child=child)

    @property
    def nodes(self) -> int:
        """Number of inner nodes."""
        return self.leaves - 1

    def groups(self, depth: int) -> Ints:
        """Buckets cut into at most ``2 ** depth`` groups of about equal weight: the tree's upper part."""
        out = np.zeros(self.leaves, np.int64)
        if self.leaves == 1:
            return out
        cuts, level = [], [0]
        for _ in range(depth):
            cuts += [int(self.split[n]) for n in level]
            level = [int(c) for n in level for c in self.child[n] if c >= 0]
        out[cuts] = 1
        return np.cumsum(out)

    def number(self) -> int:
        """The shape as one integer of mixed radix: the splits in preorder, the root least significant."""
        digits: list[tuple[int, int]] = []
        stack = [(0, self.leaves, 0)]
        while stack:
            first, last, node = stack.pop()
            if last - first == 1:
                continue
            at = int(self.split[node])
            digits.append((at - first - 1, last - first - 1))
            stack += [(at, last, int(self.child[node, 1])), (first, at, int(self.child[node, 0]))]
        number = 0
        for digit, radix in reversed(digits):
            number = number * radix + digit
        return number
