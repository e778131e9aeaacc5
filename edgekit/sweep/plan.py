"""What ``sweep.toml`` says: the axes of the grid, the options of all cells, limits.

The file may come from anybody. Whoever names it on the command line runs the project that it lies in, and nothing
else: paths and code outside of its folder need ``--trust``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from edgekit.artifact import limits as gate_limits
from edgekit.compress import recipes
from edgekit.core import cache, config, files, toml
from edgekit.core.config import Options
from edgekit.core.declared import declared_options, find
from edgekit.core.structure import structure
from edgekit.errors import ConfigError, EdgekitError, UnknownNameError, UntrustedSourceError
from edgekit.load import usercode
from edgekit.search import budget as budgets
from edgekit.search import limits as search_limits

MOST_CELLS = 100_000
_MOST_WORKERS = 4096
_FIXED = ("out", "target", "recipe", "device", "trust")
"""Options that are an axis of the grid, or the command line's to say."""
_OPTIONAL = ("recipes", "variants", "devices")
_AXES = ("sources", "targets", *_OPTIONAL)
_EXAMPLE = 'write sources = ["model.py:factory"] and targets = ["tflite-int8"]'
_DATA = ("calib", "eval", "train", "task")
"""Options whose whole text names code or files."""


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One source: its SOURCE text, a short name, and options that this source alone has (its data, say)."""

    source: str
    name: str = ""
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SearchRow:
    """A search for a recipe: what ``edgekit compress --budget`` takes. No limit of time: what comes out would depend on
    the machine. ``epochs``: how long a candidate may train, at most; ``steps``: those that may be chosen (none: all);
    ``workers``: processes that measure candidates, on which the outcome does not depend."""

    budget: str
    trials: int = 40
    seed: int = 0
    epochs: float | None = None
    steps: tuple[str, ...] = ()
    workers: int = 1


@dataclass(frozen=True, kw_only=True)
class RecipeRow:
    """One recipe, a file or steps on a line (empty: none), or a search for one, for each source and target; and its
    options (a task, training data)."""

    recipe: str = ""
    search: SearchRow | None = None
    name: str = ""
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VariantRow:
    """One set of options that every source, recipe and target is built with."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LimitRow:
    """What cells may take.

    Attributes:
        memory: of each process of a cell, like ``8GB`` (empty: what is free when the sweep begins).
        threads: of each cell. The order of sums depends on it, so it is part of what a cell is.
        timeout: seconds of a cell.
        retries: how often a cell is tried again whose runtime, tool, device or machine failed.
    """

    memory: str = ""
    threads: int = 1
    timeout: int | None = None
    retries: int = 1


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """How artifacts are timed, where they are: fresh processes, seconds each, how long to wait for a busy device."""

    processes: int = 5
    seconds: float = 0.3
    wait: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A whole file. ``devices``: where cells run and are gated (``""``: here, for any device)."""

    sources: tuple[SourceRow, ...]
    targets: tuple[str, ...]
    recipes: tuple[RecipeRow, ...] = (RecipeRow(),)
    variants: tuple[VariantRow, ...] = (VariantRow(name=""),)
    devices: tuple[str, ...] = ("",)
    options: Mapping[str, object] = field(default_factory=dict)
    limits: LimitRow = LimitRow()
    bench: BenchRow | None = None


def read(path: Path, *, trust: bool = False) -> Sweep:
    """The sweep in ``path``, every row checked for what can be checked without work.

    Raises :class:`ConfigError` and its kin with the place of what is wrong, :class:`UntrustedSourceError` for code or
    files outside of the file's folder without ``trust``.
    """
    document = toml.read(path)
    known = tuple(f.name for f in fields(Sweep))
    for key, value in document.items():
        if key not in known:  # before what it was meant for is missed
            raise UnknownNameError("key", key, known, where=str(path))
        if key in _AXES and isinstance(value, list) and not value:
            raise ConfigError(
                f"{path} names no {key}: the sweep has no cells",
                hint=f"write at least one row of {key}, or leave the key out"
                if key in _OPTIONAL
                else _EXAMPLE,
            )
    for key, column in (("sources", "source"), ("recipes", "recipe")):
        if key in document:
            document[key] = _rows(document[key], column, f"{path}: {key}")
    for key in ("targets", "devices"):
        if isinstance(document.get(key), str):
            document[key] = [document[key]]
    if "sources" not in document or not document.get("targets"):
        raise ConfigError(
            f"{path} names no {'sources' if 'sources' not in document else 'targets'}",
            hint=_EXAMPLE,
        )
    sweep = structure(Sweep, document, where=str(path))
    _check(sweep, path)
    if not trust:
        for what, text in _named(sweep):
            _refuse_elsewhere(text, path, what)
        for row in sweep.recipes:  # a file of the folder, or steps on a line, by now
            for text in _sources(row.recipe, path.resolve().parent):
                _refuse_elsewhere(text, path, f"source in the recipe {row.recipe}")
        _refuse_projects(path.resolve().parent)
    return sweep


def _refuse_projects(folder: Path) -> None:
    """The options that every cell gets from the folder's own edgekit.toml or pyproject.toml come with the sweep."""
    for name, value in config.of_project(folder).items():
        for text in leading(name, value):
            _refuse_elsewhere(text, folder / config.FILE, name)


def _rows(rows: object, column: str, where: str) -> list[object]:
    """A bare text stands for a row with nothing else."""
    if isinstance(rows, str):
        rows = [rows]
    if not isinstance(rows, list):
        raise ConfigError(f"{where} is no list", hint=f"write a list of texts, or [[{where.split()[-1]}]]")
    return [{column: row} if isinstance(row, str) else row for row in rows]


def _check(sweep: Sweep, path: Path) -> None:
    for place, options in _options(sweep):
        for name in options:
            find(Options, name, where=f"{path}: {place}")
            if name in _FIXED:
                raise ConfigError(f"{path}: {place}: {name} is not one of a cell's options", hint=_hint(name))
        typed = values(options, where=f"{path}: {place}")
        gate_limits.parse(typed.get("limit", {}), where=f"{path}: {place}: limit")  # type: ignore[arg-type]
        if memory := typed.get("memory"):
            cache.parse_memory(str(memory), what=f"{path}: {place}: memory")
    limits, bench = sweep.limits, sweep.bench
    if limits.memory:
        cache.parse_memory(limits.memory, what=f"{path}: limits: memory")
    numbers = {
        "limits: threads": (limits.threads, 1, 1024),
        "limits: retries": (limits.retries, 0, 20),
        "limits: timeout": (1 if limits.timeout is None else limits.timeout, 1, 10**7),
        "bench: processes": (1 if bench is None else bench.processes, 1, 1000),
        "bench: seconds": (1 if bench is None else bench.seconds, 0.01, 3600),
        "bench: wait": (1 if bench is None else bench.wait, 0, 10**6),
    }
    for place, (value, low, high) in numbers.items():
        if not low <= value <= high:  # a NaN is neither
            raise ConfigError(f"{path}: {place} is {value}", hint=f"from {low} to {high:,}")
    for number, row in enumerate(sweep.recipes, 1):
        _check_search(row, f"{path}: recipes, row {number}")
    names = [row.name for row in sweep.variants]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two variants have one name", hint="give each a name of its own")
    axes = (sweep.sources, sweep.recipes, sweep.targets, sweep.variants, sweep.devices)
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > MOST_CELLS:
        raise ConfigError(f"{path} has {count:,} cells", hint=f"a sweep has {MOST_CELLS:,} at most")
    for _, text in _named(sweep):
        if any(not c.isprintable() for c in text):
            raise ConfigError(f"{path}: {text[:60]!r} has characters that no name has", hint="correct it")


def _check_search(row: RecipeRow, place: str) -> None:
    search = row.search
    if search is None:
        return
    if row.recipe:
        raise ConfigError(f"{place} has a recipe, and a search for one", hint="write two rows")
    try:
        budget = budgets.parse(search.budget)
        search_limits.step_names(",".join(search.steps))
    except EdgekitError as error:
        raise error.about(f"{place}: search")  # noqa: B904 - the same error
    if budget.latency_ms is not None:
        raise ConfigError(
            f"{place}: search: cells are timed when all are built, and a latency limit times each candidate",
            hint="limit a size (file<=1MB), or search with edgekit compress --budget",
        )
    for name, value, high in (("trials", search.trials, 10**5), ("workers", search.workers, 256)):
        if not 1 <= value <= high:
            raise ConfigError(f"{place}: search: {name} is {value}", hint=f"from 1 to {high:,}")
    if search.epochs is not None and not 0 < search.epochs <= 10**4:
        raise ConfigError(f"{place}: search: epochs is {search.epochs}", hint="above 0, to 10,000")
    if not 0 <= search.seed < 1 << 32:
        raise ConfigError(f"{place}: search: seed is {search.seed}", hint="from 0 to 4,294,967,295")


def _hint(name: str) -> str:
    if name == "trust":
        return "pass --trust on the command line, where it is yours to say"
    return f"name it beside sources and targets ({name}s = [...])" if name != "out" else "pass --out DIR"


def _options(sweep: Sweep) -> Iterator[tuple[str, Mapping[str, object]]]:
    yield "options", sweep.options
    for kind in ("sources", "recipes", "variants"):
        for number, row in enumerate(getattr(sweep, kind), 1):
            yield f"{kind}, row {number}", row.options


def values(options: Mapping[str, object], *, where: str) -> dict[str, object]:
    """Options as they are in TOML, in their own types. Raises :class:`ConfigError`."""
    table = declared_options(Options)
    return {name: table[name].from_toml(value, where=where) for name, value in options.items()}


def _named(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """Every text that may lead to a file or to code."""
    yield from (("source", row.source) for row in sweep.sources)
    yield from (("recipe", row.recipe) for row in sweep.recipes if recipes.may_be_file(row.recipe))
    for _, options in _options(sweep):
        for name, value in options.items():
            yield from ((name, text) for text in leading(name, value))


def _sources(recipe: str, folder: Path) -> tuple[str, ...]:
    """What a recipe's steps name as sources; of one that cannot be read nothing, which its cells say."""
    with contextlib.suppress(EdgekitError, OSError):
        file = folder / recipe
        there = recipes.may_be_file(recipe) and file.is_file()
        return recipes.read(str(file) if there else recipe).sources
    return ()


def leading(name: str, value: object) -> Iterator[str]:
    """The texts of the option ``name`` that lead to files or code, each as that reads it which opens it: a metric
    without the direction behind it, say."""
    from edgekit.pipeline import metric  # numpy comes with both
    from edgekit.preprocess import readers

    if name == "metric" and isinstance(value, str) and value:
        yield metric.named(value)[0]
    elif name in _DATA and isinstance(value, str) and value:
        yield value
    elif name == "bind" and isinstance(value, Mapping):
        yield from (text for text in value.values() if isinstance(text, str))
    elif name == "preprocessing" and isinstance(value, Mapping):
        yield from readers.named(value)


def _refuse_elsewhere(text: str, file: Path, what: str) -> None:
    """Code of a module that is installed, and anything outside of the folder, is not what the file's folder holds."""
    folder = file.resolve().parent
    parts = None if text.startswith("hf:") else usercode.split(text)
    if parts is not None and not parts[0].endswith(".py"):
        raise UntrustedSourceError(
            f"{file} names code of a module as its {what}: {text}",
            hint="write file.py:name, a file beside the sweep's, or read that code and pass --trust",
        )
    place = folder / (parts[0] if parts else text.removeprefix("hf:"))
    if not files.is_within(place, folder):
        raise UntrustedSourceError(
            f"{file} names a {what} outside of its folder: {text}",
            hint="move it there, or read what it is and pass --trust",
        )


def refuse_workers(workers: int) -> None:
    """Raise :class:`ConfigError` for a number of workers that no machine has."""
    if not 1 <= workers <= _MOST_WORKERS:
        raise ConfigError(f"--workers {workers}", hint=f"from 1 to {_MOST_WORKERS}")
