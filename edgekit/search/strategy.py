"""The search for a recipe under a budget: what is tried, in which order, and what is kept.

First every method alone: its strongest setting that holds the metric's limit is found by bisection, without training
and with; what came out is quantized for the other targets. A method that the network refuses at its first setting and
at its mildest is impossible here, and is never drawn again. Then combinations, in turns: what a model of the single
results guesses to be the smallest within the limit (:mod:`edgekit.search.surrogate`), or the best with one setting
changed; and what an estimator proposes that was told everything (:mod:`edgekit.search.parzen`). However short the time
is, no combination is tried before each method alone has held somewhere or was seen not to.

What a candidate costs is measured by the caller. Time is counted as the sum of the seconds that the results took, and
these are kept with them: the same seed and the same results give the same proposals and the same end, so a search that
is run again over its journal goes the same way, and ends the same way, without measuring anything twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgekit.compress.step import Scalar, Step
from edgekit.core import stops
from edgekit.errors import MissingExtraError, Stopped
from edgekit.search.budget import Budget
from edgekit.search.limits import Limits
from edgekit.search.space import Method, completed
from edgekit.search.surrogate import Surrogate
from edgekit.search.trials import Candidate, Journal, Trial, ranked

_SINGLE = 0.6
"""The share of the time in which methods are tried alone, and longer only until each has held at some setting;
combinations of what was found by then get the rest."""
_TURN = 4
"""One of so many combinations is the estimator's."""
_BESIDE = 3
"""So many of the best are changed in one setting when nothing more is guessed to be better."""
_NEAR = 1.2
"""A guessed size within this factor of the best is worth a build."""
_IDLE = 40
"""So many proposals in a row that were all tried before: the space is exhausted."""


class _Stop(Exception):  # noqa: N818 - not an error: the time is over
    pass


class Search:
    """One search. ``evaluate`` measures a candidate, ``show`` is told of each result."""

    def __init__(
        self,
        methods: Sequence[Method],
        targets: Sequence[str],
        budget: Budget,
        limits: Limits,
        journal: Journal,
        *,
        folds: bool = False,
    ) -> None:
        self.methods, self.targets, self.budget, self.limits = methods, targets, budget, limits
        self._folds = folds
        self.journal = journal
        self.trials: dict[tuple[str, str], tuple[Candidate, Trial]] = {}
        self.interrupted = False
        self.exhausted = False
        self.spent = journal.setup.seconds
        self._surrogate = Surrogate(methods, targets, budget)

    def run(
        self, evaluate: Callable[[Candidate], Trial], show: Callable[[Trial, Search], None]
    ) -> list[tuple[Candidate, Trial]]:
        """Search until the time or the trials are used up, the space is, or Ctrl-C; all results, in order."""
        self._evaluate, self._show = evaluate, show
        self._ended: Callable[[], None] = lambda: None
        try:
            for target in self.targets:
                self._try(Candidate(steps=(), target=target))
            self._alone()
            self._elsewhere()
            self._together()
            self.exhausted = True
        except _Stop:
            pass
        except Stopped:
            raise
        except KeyboardInterrupt:
            self.interrupted = True
            stops.handled()
        finally:
            self._ended()
        return list(self.trials.values())

    def pretend(self, evaluate: Callable[[Candidate], Trial], ended: Callable[[], None]) -> None:
        """From here on nothing is measured, shown or written down: ``evaluate`` says what comes out. ``ended`` is
        called when the search is over, whatever ended it."""
        self._evaluate, self._ended = evaluate, ended
        self._show = lambda _trial, _search: None
        self.journal.mute()

    @property
    def seconds_left(self) -> float:
        """Until the time is over."""
        return max(0.0, self.limits.seconds - self.spent)

    @property
    def share(self) -> float:
        """How much of the search is done, by time or by candidates."""
        by_time = self.spent / self.limits.seconds if math.isfinite(self.limits.seconds) else 0.0
        return max(by_time, len(self.trials) / self.limits.trials)

    @property
    def best(self) -> Trial | None:
        """The best so far that holds the budget."""
        within = ranked(self.trials.values(), self.budget)
        return within[0][1] if within else None

    def _candidate(self, steps: Sequence[Step], target: str) -> Candidate:
        return Candidate(steps=completed(steps, folds=self._folds), target=target)

    def _try(self, candidate: Candidate) -> Trial:
        key = (candidate.line, candidate.target)
        if key in self.trials:
            return self.trials[key][1]
        if len(self.trials) >= self.limits.trials or self.spent >= self.limits.seconds:
            raise _Stop
        trial = self.journal.known.get(key)
        if trial is None:
            trial = self._evaluate(candidate)
            self.journal.add(trial)
        self.spent += trial.seconds  # also those of the journal: the same search ends at the same place
        self.trials[key] = (candidate, trial)
        self._surrogate.learn(candidate, trial)
        self._show(trial, self)
        return trial

    def _alone(self) -> None:
        """Every method alone, in turns, so that each has been tried when the time is over early."""
        strongest: dict[str, int] = {}
        for trained in (False, True):
            singles = [
                _Single(method=m, chosen=v, best=strongest.get(m.name, -1))
                for m in self.methods
                for v in m.variants()
                if m.trains(v) == trained and not m.aid
            ]
            turns = [(self._bisect(single), single) for single in singles]
            while turns:
                turns = [(t, s) for t, s in turns if self.share < _SINGLE or not (s.tried and s.best >= 0)]
                turns = [(t, s) for t, s in turns if next(t, _DONE) is not _DONE]
            # Training begins at what held without it: it does not make that worse.
            strongest = {s.method.name: s.best for s in singles}
            self._leave_out()

    def _leave_out(self) -> None:
        """Forget the methods that the network refused whenever they were tried alone."""
        own = {m.name for m in self.methods}
        possible: dict[str, bool] = {}
        for known, trial in self.trials.values():
            names = [s.NAME for s in known.steps if s.NAME in own]
            if len(names) == 1:
                possible[names[0]] = possible.get(names[0], False) or not trial.error
        self.methods = [m for m in self.methods if possible.get(m.name, True)]

    def _bisect(self, single: _Single) -> Generator[None]:
        """The strongest setting within the metric's limit; without a limit, a few over the range.

        ``single.best`` is one that is taken to hold. Nothing more is tried where the first setting and the mildest are
        refused.
        """
        count = len(single.method.strengths)
        if self.budget.drop is None:
            for at in sorted({count // 4, count // 2, (3 * count) // 4, count - 1}):
                trial = self._alone_at(single, at)
                single.best = single.best if trial.error else at
                yield
                if trial.error and self._alone_at(single, 0).error:
                    return
            return
        low, high = single.best, count
        while high - low > 1:
            middle = (low + high) // 2
            trial = self._alone_at(single, middle)
            if trial.error and low < 0 and self._alone_at(single, 0).error:
                return
            if trial.error or trial.bound > self.budget.drop + 1e-9:  # rounding of a share of samples
                high = middle
            else:
                single.best = low = middle
            yield

    def _alone_at(self, single: _Single, at: int) -> Trial:
        trial = self._try(self._candidate((single.step(at),), self.targets[0]))
        single.tried = True
        return trial

    def _elsewhere(self) -> None:
        """The smallest of each method on the other targets, as long as it may come near the best."""
        smallest: dict[str, tuple[Candidate, Trial]] = {}
        for candidate, trial in ranked(self.trials.values(), self.budget):
            own = [s.NAME for s in candidate.steps if s.NAME in {m.name for m in self.methods}]
            if len(own) == 1 and candidate.target == self.targets[0]:
                smallest.setdefault(own[0], (candidate, trial))
        guesses = sorted(
            (self._surrogate.elsewhere(trial, name, target), name, target)
            for name, (_, trial) in smallest.items()
            for target in self.targets[1:]
        )
        for size, name, target in guesses:
            if self.best is not None and size < _NEAR * self.budget.smallest(self.best.sizes):
                self._try(Candidate(steps=smallest[name][0].steps, target=target))

    def _together(self) -> None:
        """Combinations until the time is over or nothing new is proposed."""
        try:
            from edgekit.search.parzen import Estimator
        except ImportError as error:
            raise MissingExtraError("optuna (search under a budget)", "compress") from error
        estimator = Estimator(self.methods, self.targets, self.budget, self.limits.seed)
        for candidate, trial in self.trials.values():
            estimator.learn(candidate, trial)
        idle = turn = 0
        while idle < _IDLE:
            turn += 1
            proposed = None
            if turn % _TURN:
                size = math.inf if self.best is None else self.budget.smallest(self.best.sizes)
                proposed = self._surrogate.propose(self.trials, size, self.seconds_left, self._candidate)
                proposed = proposed or self._beside()
            if proposed is not None:
                estimator.learn(proposed, self._try(proposed))
                idle = 0
                continue
            asked, steps, target = estimator.propose()
            candidate = self._candidate(steps, target)
            # Told as failed without a build: the estimator proposes less of it.
            hopeless = self._surrogate.refuses(candidate)
            idle = idle + 1 if hopeless or (candidate.line, candidate.target) in self.trials else 0
            estimator.finish(asked, None if hopeless else self._try(candidate))

    def _beside(self) -> Candidate | None:
        """The best few with one setting changed: stronger by one, another choice, another target."""
        named = {m.name: m for m in self.methods}
        for candidate, _ in ranked(self.trials.values(), self.budget)[:_BESIDE]:
            for steps, target in self._changed(candidate, named):
                changed = self._candidate(steps, target)
                if (changed.line, changed.target) not in self.trials:
                    return changed
        return None

    def _changed(
        self, candidate: Candidate, named: Mapping[str, Method]
    ) -> Iterator[tuple[tuple[Step, ...], str]]:
        own = [s for s in candidate.steps if s.NAME in named]
        for number, step in enumerate(own):
            method = named[step.NAME]
            at, choices = method.place(step)
            others = [(at + 1, choices)] if at + 1 < len(method.strengths) else []
            others += [(at, choices | {k: v}) for k, values in method.choices.items() for v in values]
            for other in others:
                yield (*own[:number], method.step(*other), *own[number + 1 :]), candidate.target
        for target in self.targets if own else ():
            yield tuple(own), target


_DONE = object()


@dataclass
class _Single:
    """One method alone; ``best`` is the strongest setting that holds, -1 for none; ``tried``: whether any setting
    was."""

    method: Method
    chosen: dict[str, Scalar]
    best: int = -1
    tried: bool = False

    def step(self, at: int) -> Step:
        return self.method.step(at, self.chosen)
