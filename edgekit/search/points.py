"""Candidates of a search, what was measured of them, and the journal that keeps it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.compress.step import Step, spell
from edgekit.errors import GateFailedError
from edgekit.search.budget import Budget


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
    """What a candidate costs: ``drop`` of the metric (0 to 1) and the ``margin`` by which the true drop may be
    larger, ``size`` in bytes as shipped (``exact`` or estimated; from the files when they were ``built``, else from
    the weights), ``latency_ms`` where a budget asks for it, the ``seconds`` it took to find out. ``error`` says why
    it cannot be had at all."""

    line: str
    target: str
    drop: float
    size: int
    margin: float = 0.0
    exact: bool = False
    built: bool = False
    latency_ms: float | None = None
    seconds: float = 0.0
    error: str = ""

    @property
    def bound(self) -> float:
        """The drop that a budget is held to."""
        return self.drop + self.margin

    @property
    def name(self) -> str:
        """Recipe and target, for messages."""
        return f"{self.line or 'nothing'} → {self.target}"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long to search: seconds, and number of candidates. Those in the journal count, with the time that they
    took. ``epochs`` is how long one candidate may train; ``None`` lets the time decide. ``steps`` names the steps that
    may be chosen; empty for all."""

    seconds: float = math.inf
    trials: int = 1000
    seed: int = 0
    epochs: float | None = None
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What was found out before the first candidate: how many ``epochs`` one may train and at which ``rate``, and
    the ``seconds`` that this took."""

    epochs: float = 0.0
    rate: float = 1e-3
    seconds: float = 0.0


class Journal:
    """Results as they come, one JSON line each: what a later run of the same search need not measure again.

    ``header`` is what results depend on; ``prepare`` is asked once in a search's life. ``kept`` is a second place
    to look for the journal, and to leave it in the end.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], prepare: Callable[[], Setup], kept: Path | None = None
    ) -> None:
        self.path, self._kept = path, kept
        self.known: dict[tuple[str, str], Point] = {}
        found = next((p for p in (path, kept) if p is not None and self._read(p, header)), None)
        if found is None:
            self.setup = prepare()
        path.parent.mkdir(parents=True, exist_ok=True)
        if found != path and path.is_file():
            path.replace(path.with_suffix(".old.jsonl"))
        self._write(header)  # as a whole: a last line that was cut off is gone

    def _read(self, path: Path, header: Mapping[str, Any]) -> bool:
        """Take over what ``path`` holds of the same search."""
        rows = _rows(path)
        first = dict(rows[0]) if rows and isinstance(rows[0], dict) else {}
        setup = first.pop("setup", None)
        if setup is None or first != header:
            return False
        try:
            self.setup = Setup(**setup)
            points = [Point(**row) for row in rows[1:]]
        except TypeError:  # another version's
            return False
        self.known = {(p.line, p.target): p for p in points}
        return True

    def _write(self, header: Mapping[str, Any]) -> None:
        rows = [{**header, "setup": dataclasses.asdict(self.setup)}]
        rows += [dataclasses.asdict(p) for p in self.known.values()]
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(r, sort_keys=True) + "\n" for r in rows), encoding="utf-8")
        part.replace(self.path)

    def add(self, point: Point) -> None:
        """Keep one result."""
        self.known[point.line, point.target] = point
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(point), sort_keys=True) + "\n")

    def keep(self) -> None:
        """Leave a copy in the second place."""
        if self._kept is not None:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            part = self._kept.with_suffix(".part")
            part.write_bytes(self.path.read_bytes())
            part.replace(self._kept)


def _rows(path: Path) -> list[Any]:
    """The journal's lines; a last one that was cut off by a kill is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def ranked(results: Iterable[tuple[Candidate, Point]], budget: Budget) -> list[tuple[Candidate, Point]]:
    """Those within the budget, the best first: the smallest where the drop is limited, else the least drop."""
    held = [(c, p) for c, p in results if not p.error and budget.holds(p.bound, p.size, p.latency_ms)]
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
    message = getattr(error, "message", str(error))
    return Point(
        line=candidate.line,
        target=candidate.target,
        drop=1.0,
        size=1 << 62,
        seconds=round(seconds, 2),
        error=message or type(error).__name__,
    )


def no_candidate(budget: Budget, points: Sequence[Point], rejected: Sequence[str]) -> GateFailedError:
    """Nothing that was tried holds the budget."""
    near = front(points)[:3]
    told = "; ".join(
        f"{p.name}: {p.size:,} bytes, drop {100 * p.drop:.2f} pt ± {100 * p.margin:.2f}" for p in near
    )
    hint = "loosen a limit, search longer (--time), or let steps train (--train)"
    if budget.drop is not None and any(p.drop <= budget.drop < p.bound for p in points):
        hint += "; with more evaluation samples the margin for chance becomes smaller"
    return GateFailedError(
        f"none of {len(points)} candidates holds {budget}"
        + (f". The nearest: {told}" if told else "")
        + "".join(f"\n  not confirmed: {line}" for line in rejected[:5]),
        hint=hint,
        gates=("budget",),
    )
