"""What ``sweep.toml`` says: the axes of the grid, the options of all cells, limits.

The file may come from anybody. Whoever names it on the command line runs the project that it lies in, and nothing
else: paths and code outside of its folder need ``--trust``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from edgekit.core import cache, files, toml
from edgekit.core.config import Options
from edgekit.core.declared import declared_options, find
from edgekit.core.structure import structure
from edgekit.errors import ConfigError, UnknownNameError, UntrustedSourceError
from edgekit.load import usercode

MOST_CELLS = 100_000
_MOST_WORKERS = 4096
_FIXED = ("out", "target", "recipe", "device", "trust")
"""Options that are an axis of the grid, or the command line's to say."""
_DATA = ("calib", "eval", "train", "metric", "task")
"""Options that may name code or files."""


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One source: its SOURCE text, a short name, and options that this source alone has (its data, say)."""

    source: str
    name: str = ""
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RecipeRow:
    """One recipe, a file or steps on a line (empty: none), and its options (a task, training data)."""

    recipe: str = ""
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
    for key in document:
        if key not in known:  # before what it was meant for is missed
            raise UnknownNameError("key", key, known, where=str(path))
    for key, column in (("sources", "source"), ("recipes", "recipe")):
        document[key] = _rows(document.get(key, []), column, f"{path}: {key}")
        if not document[key]:
            del document[key]
    for key in ("targets", "devices"):
        if isinstance(document.get(key), str):
            document[key] = [document[key]]
    if "sources" not in document or not document.get("targets"):
        raise ConfigError(
            f"{path} names no {'sources' if 'sources' not in document else 'targets'}",
            hint='write sources = ["model.py:factory"] and targets = ["tflite-int8"]',
        )
    sweep = structure(Sweep, document, where=str(path))
    _check(sweep, path)
    if not trust:
        for what, text in _named(sweep):
            _refuse_elsewhere(text, path, what)
    return sweep


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
        values(options, where=f"{path}: {place}")
    limits, bench = sweep.limits, sweep.bench
    if limits.memory:
        cache.parse_size(limits.memory, what=f"{path}: limits: memory")
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
    yield from (("recipe", row.recipe) for row in sweep.recipes if row.recipe and "(" not in row.recipe)
    for _, options in _options(sweep):
        for name in _DATA:
            if isinstance(text := options.get(name), str) and text:
                yield name, text
        bound = options.get("bind", {})
        for text in bound.values() if isinstance(bound, Mapping) else ():
            if isinstance(text, str):
                yield "bind", text


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
