"""The accuracy guard: the fewest layers that fall back to float until a budget holds on the real runtime."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekit.core import stops
from edgekit.errors import Stopped
from edgekit.quantize.options import QuantizeOptions
from edgekit.quantize.sensitivity import LayerSensitivity

FLOAT, INT16 = "float32", "int16"

Measure = Callable[[QuantizeOptions], float]
"""Builds the artifact with these options, runs it on the real runtime, gives the drop (0 is none)."""

Progress = Callable[[int, int, float], None]
"""Called with (evaluations done, evaluations that remain at most, best drop so far)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One artifact that was measured: the layers that were not INT8 in it, what they had instead (``float32`` or
    ``int16``), and its drop."""

    restored: tuple[str, ...]
    drop: float
    precision: str = FLOAT


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """The outcome. ``options`` give the best artifact; ``restored`` are its layers that are not INT8, and
    ``precision`` is what they are in.

    ``met``: the budget holds. ``finished`` is false where the search was interrupted: the result is the
    best so far. ``trail`` has every evaluation in order.
    """

    options: QuantizeOptions
    restored: tuple[LayerSensitivity, ...]
    drop: float
    met: bool
    finished: bool
    trail: tuple[Evaluation, ...]
    precision: str = FLOAT


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
    With ``int16`` layers get INT16 activations; where that does not hold the budget, float as without. Ctrl-C
    ends the search and keeps its best.
    """
    search = _Search(measure, ranking, budget, options, progress)
    finished = True
    try:
        search.run_all((INT16, FLOAT) if int16 else (FLOAT,))
    except KeyboardInterrupt as interrupt:
        finished = False
        if not search.trail or isinstance(interrupt, Stopped):
            raise
        stops.handled()
    return search.result(finished)


class _Search:
    def __init__(
        self,
        measure: Measure,
        ranking: Sequence[LayerSensitivity],
        budget: float,
        options: QuantizeOptions,
        progress: Progress | None,
    ) -> None:
        self.measure, self.ranking, self.budget = measure, tuple(ranking), budget
        self.options, self.progress = options, progress
        self.precision, self.later = FLOAT, 0
        self.known: dict[tuple[str, frozenset[str]], float] = {}
        self.trail: list[Evaluation] = []

    def run_all(self, precisions: Sequence[str]) -> None:
        """One precision after the other until one holds the budget."""
        for i, precision in enumerate(precisions):
            self.precision, self.later = precision, len(precisions) - i - 1
            self.run()
            if self.best().drop <= self.budget:
                return

    def run(self) -> None:
        """Find the prefix, then thin it out."""
        layers = len(self.ranking)
        steps = math.ceil(math.log2(layers + 1)) + 1
        if self.holds((), (2 * steps + layers) * (1 + self.later)) or not layers:
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
        names = tuple(s.node for s in restored)
        key = (self.precision if names else "", frozenset(names))
        if key not in self.known:
            self.known[key] = self.measure(self.with_restored(names, self.precision))
            precision = self.precision if names else FLOAT
            self.trail.append(Evaluation(restored=names, drop=self.known[key], precision=precision))
            if not restored and self.known[key] <= self.budget:
                remaining = 0
            if self.progress is not None:
                self.progress(len(self.trail), max(remaining, 0), self.best().drop)
        return self.known[key] <= self.budget

    def with_restored(self, names: tuple[str, ...], precision: str) -> QuantizeOptions:
        """The options with layers taken out of INT8."""
        if precision == INT16:
            return dataclasses.replace(self.options, int16=(*self.options.int16, *names))
        return dataclasses.replace(self.options, exclude=(*self.options.exclude, *names))

    def cost(self, names: Sequence[str]) -> tuple[int, int]:
        """Layers, then multiply-accumulates, that are not INT8."""
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
            options=self.with_restored(best.restored, best.precision),
            restored=restored,
            precision=best.precision,
            drop=best.drop,
            met=best.drop <= self.budget,
            finished=finished,
            trail=tuple(self.trail),
        )
