"""The search for a recipe under a budget: what is tried, in which order, and what is kept.

First every method alone: its strongest setting that holds the metric's limit is found by bisection, with and
without training, each target as it is. Then combinations: neighbours of the best single ones, after them what a
multi-objective Parzen estimator (Bergstra et al. 2011, as in Optuna) proposes from all results so far. What a
candidate costs is measured by the caller; the same seed and the same results give the same proposals, so a search
that is run again over its journal goes the same way without measuring twice.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.compress.budget import Budget
from edgekit.compress.space import Method
from edgekit.compress.step import Scalar, Step, spell
from edgekit.errors import GateFailedError, MissingExtraError

if TYPE_CHECKING:
    import optuna

_SINGLE = 0.6
"""The share of the time in which methods are tried alone; combinations of what was found by then get the rest."""

_QUANTIZED = 2
"""So many of the smallest single methods are tried on the other targets; the rest as parts of combinations."""

_IDLE = 40
"""So many proposals in a row that were all tried before: the space is exhausted."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Steps and the target that their result is shipped as."""

    steps: tuple[Step, ...]
    target: str

    @property
    def line(self) -> str:
        """The steps on one line."""
        return ";".join(spell(s) for s in self.steps)


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a candidate costs: ``drop`` of the metric (0 to 1), ``size`` in bytes as shipped (``exact`` or
    estimated; from the files when they were ``built``, else from the weights), ``latency_ms`` where a budget asks
    for it, the ``seconds`` it took to find out. ``error`` says why it cannot be had at all."""

    line: str
    target: str
    drop: float
    size: int
    exact: bool = False
    built: bool = False
    latency_ms: float | None = None
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long to search: seconds, and number of candidates (those in the journal count)."""

    seconds: float = 600.0
    trials: int = 1000
    seed: int = 0


class Journal:
    """Results as they come, one JSON line each: what a later run of the same search need not measure again.

    ``header`` is what results depend on; ``longest`` tells how many epochs a candidate may train, and is asked
    once in a search's life.
    """

    def __init__(self, path: Path, header: dict[str, Any], longest: Callable[[], float]) -> None:
        self.path = path
        self.known: dict[tuple[str, str], Point] = {}
        rows = _rows(path)
        first = dict(rows[0]) if rows and isinstance(rows[0], dict) else {}
        epochs = first.pop("epochs", None)
        if epochs is not None and first == header:
            self.epochs = float(epochs)
            for row in rows[1:]:
                point = Point(**row)
                self.known[point.line, point.target] = point
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if rows:
            path.replace(path.with_suffix(".old.jsonl"))
        self.epochs = longest()
        header = header | {"epochs": self.epochs}
        path.write_text(json.dumps(header, sort_keys=True) + "\n", encoding="utf-8")

    def add(self, point: Point) -> None:
        """Keep one result."""
        self.known[point.line, point.target] = point
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(point), sort_keys=True) + "\n")


def _rows(path: Path) -> list[Any]:
    """The journal's lines; a last one that was cut off by a kill is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


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
    ) -> None:
        self.methods, self.targets, self.budget, self.limits = methods, targets, budget, limits
        self.journal = journal
        self.points: dict[tuple[str, str], tuple[Candidate, Point]] = {}
        self.interrupted = False
        self._deadline = math.inf

    def run(
        self, evaluate: Callable[[Candidate], Point], show: Callable[[Point, Search], None]
    ) -> list[tuple[Candidate, Point]]:
        """Search until the time or the trials are used up, the space is, or Ctrl-C; all results, in order."""
        self._evaluate, self._show = evaluate, show
        self._deadline = time.monotonic() + self.limits.seconds
        try:
            for target in self.targets:
                self._try(Candidate(steps=(), target=target))
            best = self._alone()
            self._together(best)
        except _Stop:
            pass
        except KeyboardInterrupt:
            self.interrupted = True
        return list(self.points.values())

    @property
    def seconds_left(self) -> float:
        """Until the time is over."""
        return max(0.0, self._deadline - time.monotonic())

    def _try(self, candidate: Candidate) -> Point:
        key = (candidate.line, candidate.target)
        if key in self.points:
            return self.points[key][1]
        if len(self.points) >= self.limits.trials:
            raise _Stop
        point = self.journal.known.get(key)
        if point is None:
            if time.monotonic() >= self._deadline:
                raise _Stop
            point = self._evaluate(candidate)
            self.journal.add(point)
        self.points[key] = (candidate, point)
        self._show(point, self)
        return point

    def _alone(self) -> list[_Single]:
        """Every method alone, in turns, so that each has been tried when the time is over early."""
        singles = [_Single(method=m, chosen=v) for m in self.methods for v in m.variants()]
        turns = [self._bisect(single) for single in singles]
        while turns and self.seconds_left > (1 - _SINGLE) * self.limits.seconds:
            turns = [turn for turn in turns if next(turn, _DONE) is not _DONE]
        able = [s for s in singles if s.best >= 0]
        for single in sorted(able, key=self._size)[:_QUANTIZED]:
            for target in self.targets[1:]:
                self._try(Candidate(steps=(single.step(single.best),), target=target))
        return able

    def _size(self, single: _Single) -> int:
        return self._try(Candidate(steps=(single.step(single.best),), target=self.targets[0])).size

    def _bisect(self, single: _Single) -> Generator[None]:
        """The strongest setting within the metric's limit; without a limit, a few over the range."""
        count = len(single.method.strengths)
        if self.budget.drop is None:
            for at in sorted({count // 4, count // 2, (3 * count) // 4, count - 1}):
                point = self._try(Candidate(steps=(single.step(at),), target=self.targets[0]))
                single.best = at if not point.error else single.best
                yield
            return
        low, high = -1, count
        while high - low > 1:
            middle = (low + high) // 2
            point = self._try(Candidate(steps=(single.step(middle),), target=self.targets[0]))
            if point.error or point.drop > self.budget.drop + 1e-9:
                high = middle
            else:
                single.best = low = middle
            yield

    def _together(self, singles: list[_Single]) -> None:
        study = self._study()
        for candidate, point in self.points.values():
            self._told(study, candidate, point)
        for settings in self._neighbours(singles):
            study.enqueue_trial(settings, skip_if_exists=True)
        idle = 0
        while idle < _IDLE:
            trial = study.ask()
            candidate = self._proposed(trial)
            known = (candidate.line, candidate.target) in self.points
            point = self._try(candidate)
            self._finish(study, trial, point)
            idle = idle + 1 if known else 0

    def _neighbours(self, singles: list[_Single]) -> Iterable[dict[str, Any]]:
        """All methods together, then pairs: each at its own best, and one and two strengths milder."""
        plain: dict[str, _Single] = {}
        for single in singles:  # a later variant trains: it is stronger
            if single.method.name not in plain or single.best >= plain[single.method.name].best:
                plain[single.method.name] = single
        chosen = list(plain.values())
        pairs = [(a, b) for i, a in enumerate(chosen) for b in chosen[i + 1 :]]
        groups = [*([tuple(chosen)] if len(chosen) > 2 else []), *pairs]
        for milder in (1, 0, 2):
            for group in groups:
                for target in self.targets:
                    settings: dict[str, Any] = {f"use {m.name}": False for m in self.methods}
                    for single in group:
                        settings |= _settings(single.method, max(0, single.best - milder), single.chosen)
                    yield settings | {"target": target}

    def _study(self) -> optuna.Study:
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError("optuna (search under a budget)", "compress") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=self.limits.seed, n_startup_trials=5)
        return optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)

    def _proposed(self, trial: optuna.Trial) -> Candidate:
        target = trial.suggest_categorical("target", list(self.targets))
        steps = []
        for m in self.methods:
            if trial.suggest_categorical(f"use {m.name}", [False, True]):
                at = trial.suggest_int(m.name, 0, len(m.strengths) - 1)
                chosen: dict[str, Any] = {
                    k: trial.suggest_categorical(f"{m.name} {k}", list(v)) for k, v in m.choices.items()
                }
                steps.append(m.step(at, chosen))
        return Candidate(steps=tuple(steps), target=target)

    def _told(self, study: optuna.Study, candidate: Candidate, point: Point) -> None:
        """A result that the study did not ask for."""
        named = {s.NAME: s for s in candidate.steps}
        settings: dict[str, Any] = {"target": candidate.target}
        for m in self.methods:
            settings |= {f"use {m.name}": m.name in named}
            if m.name in named:
                from edgekit.compress.step import options

                flat = options(named[m.name])
                settings |= _settings(m, m.strengths.index(flat[m.strength]), {k: flat[k] for k in m.choices})
        study.enqueue_trial(settings)
        trial = study.ask()
        self._proposed(trial)
        self._finish(study, trial, point)

    def _finish(self, study: optuna.Study, trial: optuna.Trial, point: Point) -> None:
        import optuna

        for number, excess in enumerate(self.budget.excess(point.drop, point.size, point.latency_ms)):
            trial.set_constraint(f"limit {number}", excess)
        state = optuna.trial.TrialState.FAIL if point.error else optuna.trial.TrialState.COMPLETE
        study.tell(trial, None if point.error else [float(point.size), point.drop], state=state)


_DONE = object()


@dataclass
class _Single:
    """One method alone; ``best`` is the strongest setting that holds, -1 for none."""

    method: Method
    chosen: dict[str, Scalar]
    best: int = -1

    def step(self, at: int) -> Step:
        return self.method.step(at, self.chosen)


def _settings(method: Method, at: int, chosen: dict[str, Scalar]) -> dict[str, Any]:
    names = {f"{method.name} {k}": v for k, v in chosen.items()}
    return {f"use {method.name}": True, method.name: at, **names}


def ranked(results: Iterable[tuple[Candidate, Point]], budget: Budget) -> list[tuple[Candidate, Point]]:
    """Those within the budget, the best first: the smallest where the drop is limited, else the least drop."""
    held = [(c, p) for c, p in results if not p.error and budget.holds(p.drop, p.size, p.latency_ms)]
    if budget.drop is None and budget.size is not None:
        return sorted(held, key=lambda r: (r[1].drop, r[1].size, r[1].line))
    return sorted(held, key=lambda r: (r[1].size, r[1].drop, r[1].line))


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in size and drop (and latency, where it was measured), smallest first."""
    able = [p for p in points if not p.error]

    def beats(a: Point, b: Point) -> bool:
        mine, other = _costs(a), _costs(b)
        return all(x <= y for x, y in zip(mine, other, strict=True)) and mine != other

    kept = [p for p in able if not any(beats(q, p) for q in able)]
    return sorted(kept, key=lambda p: (p.size, p.drop, p.line))


def _costs(point: Point) -> tuple[float, ...]:
    return (point.size, point.drop, point.latency_ms or 0.0)


def refused(candidate: Candidate, error: Exception, seconds: float) -> Point:
    """The result of a candidate that a step or a target refuses."""
    message = getattr(error, "message", str(error)) if isinstance(error, Exception) else ""
    return Point(
        line=candidate.line, target=candidate.target, drop=1.0, size=1 << 62, seconds=seconds, error=message
    )


def no_candidate(budget: Budget, points: Sequence[Point], rejected: Sequence[str]) -> GateFailedError:
    """Nothing that was tried holds the budget."""
    near = front(points)[:3]
    told = "; ".join(
        f"{p.line or 'nothing'} as {p.target}: {p.size:,} bytes, drop {100 * p.drop:.2f} pt" for p in near
    )
    return GateFailedError(
        f"none of {len(points)} candidates holds {budget}"
        + (f". The nearest: {told}" if told else "")
        + "".join(f"\n  not confirmed: {line}" for line in rejected[:5]),
        hint="loosen a limit, search longer (--time), or let steps train (--train)",
        gates=("budget",),
    )
