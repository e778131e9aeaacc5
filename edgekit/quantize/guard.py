"""The accuracy guard: the fewest layers that leave integers until a budget holds on the real runtime."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekit.quantize.options import QuantizeOptions
from edgekit.quantize.sensitivity import LayerSensitivity

Measure = Callable[[QuantizeOptions], float]
"""Builds the artifact with these options, runs it on the real runtime, gives the drop (0 is none)."""

Progress = Callable[[int, int, float], None]
"""Called with (evaluations done, evaluations that remain at most, best drop so far)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One artifact that was measured: the layers that were not INT8 in it, and its drop."""

    restored: tuple[str, ...]
    drop: float


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """The outcome. ``options`` give the best artifact; ``restored`` are its layers in float (or INT16).

    ``met``: the budget holds. ``finished`` is false where the search was interrupted: the result is the
    best so far. ``trail`` has every evaluation in order.
    """

    options: QuantizeOptions
    restored: tuple[LayerSensitivity, ...]
    drop: float
    met: bool
    finished: bool
    trail: tuple[Evaluation, ...]


def guard(
    measure: Measure,
    ranking: Sequence[LayerSensitivity],
    budget: float,
    options: QuantizeOptions,
    *,
    int16: bool = False,
    progress: Progress | None = None,
) -> Guarded:
    """Restore layers until ``measure(options) <= budget``, then give back those that were not needed.

    ``ranking`` is :func:`edgekit.quantize.sensitivity`'s. First the shortest harmful-first prefix that
    suffices, by doubling and bisection; then, the most expensive first, each restored layer is tried in
    integers again. At most about 2 log2(n) + k evaluations for n layers of which k are restored.
    With ``int16`` layers get INT16 activations instead of float. Ctrl-C ends the search and keeps its best.
    """
    search = _Search(measure, ranking, budget, options, int16, progress)
    finished = True
    try:
        search.run()
    except KeyboardInterrupt:
        finished = False
        if not search.trail:
            raise
    return search.result(finished)


class _Search:
    def __init__(
        self,
        measure: Measure,
        ranking: Sequence[LayerSensitivity],
        budget: float,
        options: QuantizeOptions,
        int16: bool,
        progress: Progress | None,
    ) -> None:
        self.measure, self.ranking, self.budget = measure, tuple(ranking), budget
        self.options, self.int16, self.progress = options, int16, progress
        self.known: dict[frozenset[str], float] = {}
        self.trail: list[Evaluation] = []

    def run(self) -> None:
        """Find the prefix, then thin it out."""
        layers = len(self.ranking)
        steps = math.ceil(math.log2(layers + 1)) + 1
        if self.holds((), 2 * steps + layers) or not layers:
            return
        short, long, doublings = 0, 1, 1
        while not self.holds(self.ranking[:long], 2 * steps - doublings + layers):
            if long == layers:
                return
            short, long, doublings = long, min(2 * long, layers), doublings + 1
        while long - short > 1:
            middle = (short + long) // 2
            left = math.ceil(math.log2(long - short)) + long
            short, long = (short, middle) if self.holds(self.ranking[:middle], left) else (middle, long)
        self.thin(list(self.ranking[:long]))

    def thin(self, kept: list[LayerSensitivity]) -> None:
        """Give back layers one at a time; the last of the prefix is known to be needed."""
        candidates = sorted(kept[:-1], key=lambda s: (-s.macs, s.noise))
        for i, layer in enumerate(candidates):
            without = [s for s in kept if s is not layer]
            if self.holds(without, len(candidates) - i - 1):
                kept = without

    def holds(self, restored: Sequence[LayerSensitivity], remaining: int) -> bool:
        """Whether the budget holds with these layers restored; every set is measured once."""
        key = frozenset(s.node for s in restored)
        if key not in self.known:
            self.known[key] = self.measure(self.with_restored(restored))
            self.trail.append(Evaluation(restored=tuple(s.node for s in restored), drop=self.known[key]))
            if not restored and self.known[key] <= self.budget:
                remaining = 0
            if self.progress is not None:
                self.progress(len(self.trail), max(remaining, 0), self.best().drop)
        return self.known[key] <= self.budget

    def with_restored(self, restored: Sequence[LayerSensitivity]) -> QuantizeOptions:
        """The options with layers taken out of INT8."""
        names = tuple(s.node for s in restored)
        if self.int16:
            return dataclasses.replace(self.options, int16=(*self.options.int16, *names))
        return dataclasses.replace(self.options, exclude=(*self.options.exclude, *names))

    def cost(self, names: Sequence[str]) -> tuple[int, int]:
        """Layers, then multiply-accumulates, that leave INT8."""
        macs = {s.node: s.macs for s in self.ranking}
        return len(names), sum(macs[n] for n in names)

    def best(self) -> Evaluation:
        """The cheapest that holds the budget, else the one of least drop."""
        good = [e for e in self.trail if e.drop <= self.budget]
        if good:
            return min(good, key=lambda e: self.cost(e.restored))
        return min(self.trail, key=lambda e: (e.drop, *self.cost(e.restored)))

    def result(self, finished: bool) -> Guarded:
        """The best evaluation as the outcome."""
        best = self.best()
        restored = tuple(s for s in self.ranking if s.node in set(best.restored))
        return Guarded(
            options=self.with_restored(restored),
            restored=restored,
            drop=best.drop,
            met=best.drop <= self.budget,
            finished=finished,
            trail=tuple(self.trail),
        )
