"""Recipes as files and as one line.

A recipe file is TOML: one ``[[step]]`` table a step, in order, its options as they are called in the step's
dataclass; nested ones (``training``) in a table of their own. ``seed`` is the seed of everything random. An
optional ``[ship]`` table says what is made of the compressed model in the end: a target and whether its files
are coded losslessly. On one line: ``prune(sparsity=0.9);cluster(values=8)``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.compress.registry import default_options, from_options, parse, registry
from edgekit.compress.step import Scalar, Step, options, spell
from edgekit.core import files, toml
from edgekit.core.structure import structure
from edgekit.errors import ConfigError, UnknownNameError

_MOST_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Ship:
    """What is made of the compressed model: ``target`` is a row of the catalogue, ``method`` the range method
    of its quantization, ``pack`` whether its files are coded into an ``.ekz`` container."""

    target: str
    method: str = "auto"
    pack: bool = True


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Steps in order, the seed, and what is shipped."""

    steps: tuple[Step, ...]
    seed: int = 0
    ship: Ship | None = None

    @property
    def line(self) -> str:
        """On one line, defaults left out."""
        return ";".join(spell(s) for s in self.steps)

    @property
    def sources(self) -> tuple[str, ...]:
        """What its steps name as SOURCE."""
        found = (str(options(s).get(name, "")) for s in self.steps for name in s.SOURCES)
        return tuple(filter(None, found))

    @property
    def trains(self) -> bool:
        """Whether any step trains, and so needs a task."""
        return any(k.endswith("epochs") and v for s in self.steps for k, v in options(s).items())


def read(text: str, *, seed: int | None = None) -> Recipe:
    """The recipe that ``text`` is (one line) or names (a file).

    Raises ``ConfigError``, ``UnknownNameError`` for a step or option that does not exist, and ``UsageError``
    when a file is missing.
    """
    path = Path(text)
    if may_be_file(text) and (path.suffix == ".toml" or path.is_file()):
        recipe = _from_file(path)
    else:
        parts = tuple(_parts(text))
        _refuse_many(len(parts), "the recipe")
        recipe = Recipe(steps=tuple(map(parse, parts)))
    if not recipe.steps and recipe.ship is None:
        raise ConfigError(f"the recipe {text!r} has no step", hint=_known())
    if seed is None:
        return recipe
    return replace(recipe, seed=seed)


def may_be_file(text: str) -> bool:
    """Whether :func:`read` may look for a file of this name: any other text is steps on a line."""
    return bool(text) and ";" not in text and (Path(text).suffix == ".toml" or "(" not in text)


def write(recipe: Recipe, path: Path, *, comment: str = "") -> None:
    """Write the recipe as TOML, every option spelled out: later defaults do not change what it gives."""
    files.write(path, dumps(recipe, comment=comment).encode())


def dumps(recipe: Recipe, *, comment: str = "") -> str:
    """The text of a recipe file."""
    lines = [f"# {line}" for line in comment.splitlines()]
    lines.append(f"seed = {recipe.seed}")
    for step in recipe.steps:
        tables: dict[str, list[str]] = {"": []}
        for name, value in options(step).items():
            table, _, key = name.rpartition(".")
            tables.setdefault(table, []).append(f"{key} = {_toml(value)}")
        lines += ["", "[[step]]", f"name = {_toml(step.NAME)}", *tables.pop("")]
        for table, rows in tables.items():
            lines += [f"[step.{table}]", *rows]
    if recipe.ship is not None:
        lines += ["", "[ship]"]
        lines += [f"{key} = {_toml(value)}" for key, value in vars(recipe.ship).items()]
    return "\n".join(lines) + "\n"


def _from_file(path: Path) -> Recipe:
    document = toml.read(path)
    for key in document:
        if key not in ("seed", "step", "ship"):
            raise UnknownNameError("key", key, ("seed", "step", "ship"), where=str(path))
    rows, seed, ship = document.get("step", []), document.get("seed", 0), document.get("ship")
    if not isinstance(rows, list) or not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(f"{path}: steps are [[step]] tables and the seed a whole number", hint=_known())
    if not 0 <= seed < 2**63:
        raise ConfigError(
            f"{path}: the seed is {str(seed)[:30]}", hint="a whole number from 0 on, of 63 bits"
        )
    _refuse_many(len(rows), str(path))
    steps = tuple(_step(row, f"{path}: step {number}") for number, row in enumerate(rows, 1))
    shipping = None if ship is None else structure(Ship, ship, where=f"{path}: ship")
    return Recipe(steps=steps, seed=seed, ship=shipping)


def _refuse_many(steps: int, where: str) -> None:
    if steps > _MOST_STEPS:
        raise ConfigError(f"{where} has {steps:,} steps", hint=f"a recipe has {_MOST_STEPS} at most")


def _step(row: object, where: str) -> Step:
    if not isinstance(row, Mapping) or not isinstance(row.get("name"), str):
        raise ConfigError(f"{where} has no name", hint=_known())
    name = row["name"]
    defaults = default_options(name, where=where)
    values: dict[str, Scalar] = {}
    for key, value in _flat({k: v for k, v in row.items() if k != "name"}).items():
        if key not in defaults:
            raise UnknownNameError(f"option of {name}", key, defaults, where=where)
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(
                f"{where}: {key} is no number or text", hint=f"the default is {defaults[key]!r}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: {key} is {value}", hint=f"the default is {defaults[key]!r}")
        values[key] = value
    return from_options(name, values)


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _parts(text: str) -> list[str]:
    """Cut at the semicolons that stand outside parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == ";" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [p.strip() for p in parts if p.strip()]


def _toml(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _known() -> str:
    return f"steps: {', '.join(registry())}"
