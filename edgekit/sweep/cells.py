"""The grid: cells with names, and the complete content that tells one from another."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.compress import recipes
from edgekit.core import dependency, files, settings, targets, versions
from edgekit.core.config import Options
from edgekit.core.dependency import Dependency
from edgekit.core.store import canonical_json
from edgekit.devices import catalogue
from edgekit.errors import ConfigError
from edgekit.load import usercode
from edgekit.sweep.plan import BenchRow, LimitRow, RecipeRow, SearchRow, Sweep, leading, values
from edgekit.types import Device, Target

_LONGEST = 40


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One build: a source, a recipe, a target, options, and the device where it runs and is gated (empty: here).

    ``name`` is a folder's name, and that of the cell in every report; ``options`` are complete: no file and no
    variable of the environment says more where the cell runs.
    """

    name: str
    source: str
    recipe: str
    variant: str
    target: Target
    device: str
    options: Options
    threads: int = 1
    bench: BenchRow | None = None
    place: Device | None = None
    recipe_content: str = ""
    search: SearchRow | None = None

    @property
    def compression(self) -> str:
        """Its recipe, or what is searched for one, on a line; empty for none."""
        return self.recipe or ("" if self.search is None else f"search: {self.search.budget}")

    @functools.cached_property
    def key(self) -> str:
        """sha256 of everything that is known of the cell before it runs; what its code reads is found out there."""
        fixed = replace(self.options, out=Path("build"), timeout=None, memory="")
        parts = {
            "source": self.source,
            "recipe": (self.recipe, self.recipe_content),
            "search": None if self.search is None else replace(self.search, workers=1),
            "target": self.target,
            "options": {k: v for k, v in vars(fixed).items() if k != "out"},
            "device": self.place,
            "threads": self.threads,
            "bench": self.bench,
            "edgekit": versions.code(),
            "environment": versions.environment(),
        }
        return hashlib.sha256(canonical_json(parts)).hexdigest()

    @functools.cached_property
    def shared(self) -> tuple[str, ...]:
        """What it prepares together with others, the most common first: the source's export, the recipe's result, the
        calibration."""
        parts = [
            self.source,
            self.compression,
            canonical_json(_prepared_by(self.options)).decode(),
            self.device,
        ]
        return tuple(hashlib.sha256("\0".join(parts[:n]).encode()).hexdigest() for n in (1, 2, 4))

    def named_files(self) -> tuple[Dependency, ...]:
        """The files that it names, as they are now: a cell that failed for want of one is tried again with it."""
        texts = [self.source.removeprefix("hf:")]
        for name, value in vars(self.options).items():
            texts += leading(name, value)
        found: list[Dependency] = []
        for text in filter(None, texts):
            parts = usercode.split(text)
            path = str(Path(parts[0] if parts else text).absolute())
            if (parts is None or path.endswith(".py")) and "\0" not in path:
                found.append(dependency.of_path(path))
        return tuple(found)


def _prepared_by(options: Options) -> Mapping[str, object]:
    names = (
        "calib",
        "eval",
        "samples",
        "shape",
        "bind",
        "sequence_length",
        "preprocessing",
        "postprocessing",
        "task",
        "train",
        "processes",
    )
    return {name: getattr(options, name) for name in names}


def cells(sweep: Sweep, *, trust: bool = False) -> tuple[Cell, ...]:
    """Every cell of the grid; the working folder is the sweep's. Cells that prepare the same stand beside each other.

    Raises :class:`UnknownNameError` for a target or device that there is not, :class:`ConfigError` for two cells that
    are one and for settings that a target does not take.
    """
    chosen = targets.select(sweep.targets)
    places = {name: catalogue.device(name) if name else None for name in sweep.devices}
    base = Options.load()
    found: dict[str, Cell] = {}
    for source, recipe, variant in itertools.product(sweep.sources, sweep.recipes, sweep.variants):
        changes: dict[str, object] = {}
        for row in (sweep.options, source.options, recipe.options, variant.options):
            typed = values(row, where="the sweep")
            tables = {n: {**_table(changes, n), **_table(typed, n)} for n in ("set", "limit")}
            changes |= typed | {n: merged for n, merged in tables.items() if merged}
        content = _recipe(recipe.recipe)
        for device, target in itertools.product(sweep.devices, chosen):
            cell = Cell(
                name="",
                source=source.source,
                recipe=recipe.recipe,
                variant=variant.name,
                target=target,
                device=device,
                options=_options(base, changes, recipe.recipe, device, target, sweep.limits, trust),
                threads=sweep.limits.threads,
                bench=sweep.bench,
                place=places[device],
                recipe_content=content,
                search=recipe.search,
            )
            settings.check((target,), cell.options.set)
            words = (source.name or _short(source.source), recipe.name or _short_recipe(recipe))
            named = replace(cell, name=_name(cell, words))
            if named.name in found:
                raise ConfigError(
                    f"the cell {named.name} is there twice",
                    hint="two rows of an axis say the same, or have one name: leave one out",
                )
            found[named.name] = named
    return tuple(found.values())


def _table(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}


def _options(
    base: Options,
    changes: Mapping[str, object],
    recipe: str,
    device: str,
    target: Target,
    limits: LimitRow,
    trust: bool,
) -> Options:
    given: dict[str, object] = {"timeout": limits.timeout, "memory": limits.memory, **changes}
    given |= {"target": (target.name,), "recipe": recipe, "device": device, "trust": trust}
    return replace(base, **given)  # type: ignore[arg-type]  # checked by Options


def _recipe(text: str) -> str:
    """The sha256 of the recipe's file; nothing where there is none, which its cells say."""
    path = Path(text)
    try:
        if not recipes.may_be_file(text) or not path.is_file():
            return ""
    except OSError:  # a name that no file can have: said by the cell
        return ""
    return hashlib.sha256(files.read(path, most=16 << 20)).hexdigest()


def _short_recipe(row: RecipeRow) -> str:
    return "search" if row.search is not None else _short(row.recipe)


def _short(text: str) -> str:
    """What people call a source or a recipe: the factory, the file's stem, the steps' names."""
    parts = usercode.split(text)
    if parts is not None:
        return parts[1]
    if "(" in text:
        return "+".join(re.findall(r"([a-z_0-9]+)\(", text)) or "recipe"
    return Path(text).stem


def _name(cell: Cell, words: Sequence[str]) -> str:
    """Words for people, and a digest of the coordinates, so that two cells never share a folder."""
    coordinates = [cell.source, cell.compression, cell.variant, cell.target.name, cell.device]
    mark = hashlib.sha256(canonical_json(coordinates)).hexdigest()[:6]
    parts = [*words, cell.variant, cell.target.name, cell.device]
    text = "-".join(re.sub(r"[^A-Za-z0-9._+]+", "-", p)[:_LONGEST].strip("-.") for p in parts if p)
    return f"{text}-{mark}".lstrip(".-")
