"""What stands and falls together: one label for each entry of each dimension of each tensor.

Two entries with the same label are cut together. Operators join labels (a union-find); label 0 is what must
stay: inputs, outputs, positions, and what no rule can follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.structured.trace import Call, Trace

Ids: TypeAlias = NDArray[np.int64]
Dims: TypeAlias = tuple[Ids, ...]
Site: TypeAlias = tuple[object, ...]
"""Where there is a choice of what to cut (heads or their width): equal sites choose alike."""


class Labels:
    """The labels of a trace while rules walk over it.

    ``modes`` are the choices at sites that do not take the first; ``sites`` collects how many there are.
    ``macs`` are products: a factor and the dimensions whose sizes it is multiplied by. ``constants`` are
    sizes that the Python code of a module may hold: (scope, size, the labels that make it up).
    """

    def __init__(self, trace: Trace, modes: dict[Site, int]) -> None:
        self._parent: Ids = np.zeros(1, np.int64)
        self._count = 1
        self._inexact: list[Ids] = []
        self._dims: dict[int, Dims] = {}
        self.trace, self.modes = trace, modes
        self.sites: dict[Site, int] = {}
        self.macs: list[tuple[int, Dims]] = []
        self.constants: list[tuple[tuple[str, ...], int, Ids]] = []
        self.unknown: dict[str, int] = {}

    def fresh(self, count: int) -> Ids:
        """New labels."""
        begin, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            more = np.arange(len(self._parent), max(self._count, 2 * len(self._parent)), dtype=np.int64)
            self._parent = np.concatenate([self._parent, more])
        return np.arange(begin, self._count, dtype=np.int64)

    def find(self, ids: Ids) -> Ids:
        """The representatives."""
        parent = self._parent
        root = parent[ids]
        while True:
            above = parent[root]
            if np.array_equal(above, root):
                break
            root = above
        parent[ids] = root
        return root

    def unify(self, a: Ids, b: Ids) -> None:
        """Join labels pairwise (``b`` may broadcast). The smaller becomes the representative, so 0 stays 0."""
        while True:
            one, two = self.find(a), self.find(b)
            high, low = np.maximum(one, two), np.minimum(one, two)
            differ = high != low
            if not differ.any():
                return
            np.minimum.at(self._parent, high[differ], low[differ])

    def freeze(self, ids: Ids) -> None:
        """These entries stay."""
        if len(ids):
            self.unify(ids, fixed(1))

    def freeze_all(self, tensors: Iterable[int]) -> None:
        """All entries of all dimensions stay."""
        for ref in tensors:
            for ids in self.of(ref):
                self.freeze(ids)

    def is_free(self, ids: Ids) -> bool:
        """Whether any of these can be cut."""
        return bool(self.find(ids).any())

    def inexact(self, ids: Ids) -> None:
        """Cutting these is not the same as setting them to zero (a normalisation counts them)."""
        self._inexact.append(ids)

    def inexact_roots(self) -> Ids:
        """Representatives of all such labels."""
        return np.unique(self.find(np.concatenate([np.zeros(1, np.int64), *self._inexact])))

    def choose(self, site: Site, options: int) -> int:
        """Which of several ways to take at a site."""
        self.sites[site] = max(options, self.sites.get(site, 0))
        return self.modes.get(site, 0) % options

    def constant(self, call: Call, ids: Ids) -> None:
        """The size of this dimension may stand in the code of the modules around ``call``."""
        self.constants.append((call.scope, len(ids), ids))

    def size(self, ref: int) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.trace.sizes[ref]

    def of(self, ref: int) -> Dims:
        """The labels of a tensor; parameters get theirs when they are first asked for."""
        known = self._dims.get(ref)
        if known is None:
            shape = self.size(ref)
            named = ref in self.trace.tensors
            known = tuple(self.fresh(n) if named and n > 1 else np.zeros(n, np.int64) for n in shape)
            self._dims[ref] = known
        return known

    def used(self, ref: int) -> bool:
        """Whether any operator has read or made this tensor."""
        return ref in self._dims

    def set_fixed(self, tensors: Iterable[int]) -> None:
        """Results of which nothing can be cut."""
        for ref in tensors:
            self.set(ref, [fixed(n) for n in self.size(ref)])

    def set(self, ref: int, dims: Sequence[Ids]) -> None:
        """The labels of an operator's result."""
        shape = self.size(ref)
        assert tuple(map(len, dims)) == shape, f"{tuple(map(len, dims))} labels for a tensor of {shape}"
        self._dims[ref] = tuple(dims)


def fixed(count: int) -> Ids:
    """Labels of entries that stay."""
    return np.zeros(count, np.int64)
