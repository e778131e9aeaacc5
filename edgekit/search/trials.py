"""Candidates of a search, the trials that measured them, and the journal that keeps those."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.compress.step import Step, spell
from edgekit.core import files
from edgekit.core.structure import structure
from edgekit.errors import EdgekitError, GateFailedError, UsageError
from edgekit.search.budget import SIZES, Budget, Sizes

_ENDLESS = 1 << 62
"""Bytes of what cannot be had: larger than anything, and an integer in JSON."""

_MOST_BYTES = 64 << 20


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
class Trial:
    """What a candidate costs: ``drop`` of the metric (0 to 1) and the ``margin`` by which the true drop may be
    larger, bytes coded into an ``.ekz`` (``size``, ``exact`` or estimated), as a ``file`` on the device and as a
    store's ``download`` (from the files when they were ``built``, else from the weights), ``latency_ms`` where a
    budget asks for it, the ``seconds`` it took to find out. ``error`` says why it cannot be had at all."""

    line: str
    target: str
    drop: float
    size: int
    file: int = 0
    download: int = 0
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
    def sizes(self) -> Sizes:
        """All three."""
        return Sizes(ekz=self.size, file=self.file, download=self.download)

    def within(self, budget: Budget) -> bool:
        """Whether it can be had and holds all limits."""
        return not self.error and budget.holds(self.bound, self.sizes, self.latency_ms)

    @property
    def name(self) -> str:
        """Recipe and target, for messages."""
        return f"{self.line or 'nothing'} → {self.target}"


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
    to look for the journal, and to leave it in the end. Each line carries a sha256 of itself and of the one before:
    what follows a line that was cut off or changed is measured again, and ``doubted`` counts it.
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, object],
        prepare: Callable[[], Setup],
        kept: Path | None = None,
    ) -> None:
        self.path, self._kept, self._muted = path, kept, False
        self.doubted, self._last = 0, ""
        self.known: dict[tuple[str, str], Trial] = {}
        source = next((p for p in (path, kept) if p is not None and self._read(p, header)), None)
        if source is None:
            self.setup = prepare()
        path.parent.mkdir(parents=True, exist_ok=True)
        if source != path and path.is_file():
            path.replace(path.with_suffix(".old.jsonl"))
        rows = [{**header, "setup": dataclasses.asdict(self.setup)}]
        rows += [dataclasses.asdict(t) for t in self.known.values()]
        self._last = ""
        text = b"".join(map(self._line, rows))
        files.write(path, text)  # as a whole: a last line that was cut off is gone

    def _line(self, row: Mapping[str, object]) -> bytes:
        self._last = _mark(row, self._last)
        return json.dumps({**row, "sha256": self._last}, sort_keys=True).encode() + b"\n"

    def _read(self, path: Path, header: Mapping[str, object]) -> bool:
        """Take over what ``path`` holds of the same search."""
        rows, doubted = _rows(path)
        first = dict(rows[0]) if rows else {}
        setup = first.pop("setup", None)
        if setup is None or first != header:
            return False
        try:
            self.setup = structure(Setup, setup, where=str(path))
            trials = [structure(Trial, row, where=str(path)) for row in rows[1:]]
        except UsageError:  # another version's
            return False
        self.known = {(t.line, t.target): t for t in trials}
        self.doubted = doubted
        return True

    def add(self, trial: Trial) -> None:
        """Keep one result."""
        self.known[trial.line, trial.target] = trial
        if self._muted:
            return
        with files.opened(self.path, append=True) as file:
            file.write(self._line(dataclasses.asdict(trial)))

    def mute(self) -> None:
        """Write nothing from here on."""
        self._muted = True

    def keep(self) -> None:
        """Leave a copy in the second place."""
        if self._kept is not None:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            files.write(self._kept, self.path.read_bytes())


def _mark(row: Mapping[str, object], before: str) -> str:
    text = json.dumps(row, sort_keys=True)
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()


def _rows(path: Path) -> tuple[list[dict[str, object]], int]:
    """The journal's lines as they were written, and how many whole ones follow that are not: a last one that was cut
    off by a kill is left out."""
    rows: list[dict[str, object]] = []
    before = ""
    lines = files.read(path, most=_MOST_BYTES).splitlines() if path.is_file() else []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or row.pop("sha256", None) != _mark(row, before):
            break
        before = _mark(row, before)
        rows.append(row)
    cut_off = len(lines) - len(rows) == 1 and not lines[-1].endswith(b"}")
    return rows, 0 if cut_off else len(lines) - len(rows)


def ranked(results: Iterable[tuple[Candidate, Trial]], budget: Budget) -> list[tuple[Candidate, Trial]]:
    """Those within the budget, the best first: the smallest where the drop is limited, else the least drop."""
    within = [(c, t) for c, t in results if t.within(budget)]

    def size(trial: Trial) -> tuple[int, int]:
        # Zeros leave the file as large as it was: of equal ones the one that codes best.
        return budget.smallest(trial.sizes), trial.size

    if budget.drop is None and any(getattr(budget, name) is not None for name in SIZES):
        return sorted(within, key=lambda r: (r[1].drop, *size(r[1]), r[1].line))
    return sorted(within, key=lambda r: (*size(r[1]), r[1].drop, r[1].line))


def front(trials: Iterable[Trial]) -> list[Trial]:
    """The Pareto front: trials that no other beats in all sizes and in the drop (and latency, where it was measured),
    the smallest ``.ekz`` first."""
    able = [t for t in trials if not t.error]

    def beats(a: Trial, b: Trial) -> bool:
        one, other = _costs(a), _costs(b)
        return all(x <= y for x, y in zip(one, other, strict=True)) and one != other

    best = [t for t in able if not any(beats(other, t) for other in able)]
    return sorted(best, key=lambda t: (t.size, t.drop, t.line))


def _costs(trial: Trial) -> tuple[float, ...]:
    return (trial.size, trial.file, trial.download, trial.drop, trial.latency_ms or 0.0)


def refused(candidate: Candidate, error: EdgekitError, seconds: float) -> Trial:
    """The trial of a candidate that a step or a target refuses."""
    return Trial(
        line=candidate.line,
        target=candidate.target,
        drop=1.0,
        size=_ENDLESS,
        file=_ENDLESS,
        download=_ENDLESS,
        seconds=round(seconds, 2),
        error=error.message or type(error).__name__,
    )


def no_candidate(
    budget: Budget, trials: Sequence[Trial], rejected: Sequence[str], more: Sequence[str], few: str = ""
) -> GateFailedError:
    """Nothing that was tried holds the budget. ``more``: what else the search could be given, for the hint; ``few``:
    that the evaluation samples are too few for it."""
    able = sorted((t for t in trials if not t.error), key=lambda t: (_missed(t, budget), t.line, t.target))
    nearest = "; ".join(_against(t, budget) for t in able[:3])
    ways = ["loosen a limit", *(f"give it {m}" for m in more)]
    hint = " or ".join(filter(None, (", ".join(ways[:-1]), ways[-1])))
    if few:
        hint = f"{few}; or {hint}"
    elif budget.drop is not None and any(t.drop <= budget.drop < t.bound for t in trials):
        hint += "; with more evaluation samples the margin for chance becomes smaller"
    return GateFailedError(
        f"none of {len(trials)} candidates holds {budget}"
        + (f". The nearest: {nearest}" if nearest else "")
        + "".join(f"\n  not confirmed: {line}" for line in rejected[:5]),
        hint=hint,
        gates=("budget",),
    )


def _missed(trial: Trial, budget: Budget) -> tuple[float, float]:
    """By how much a trial misses the limit that it misses most, and all of them together, relative to them."""
    over = [max(x, 0.0) for x in budget.excess(trial.bound, trial.sizes, trial.latency_ms)]
    return max(over, default=0.0), sum(over)


def _against(trial: Trial, budget: Budget) -> str:
    """A trial in the figures that the budget limits; the size that counts where it limits none."""
    limited = [name for name in SIZES if getattr(budget, name) is not None] or [budget.counted]
    figures = [f"{name} {getattr(trial.sizes, name):,} bytes" for name in limited]
    figures.append(f"drop {100 * trial.drop:.2f} pt ± {100 * trial.margin:.2f}")
    if budget.latency_ms is not None and trial.latency_ms is not None:
        figures.append(f"latency {trial.latency_ms:.2f} ms")
    return f"{trial.name}: {', '.join(figures)}"
