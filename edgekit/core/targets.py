"""The catalogue: rows of targets from edgekit, plug-ins, the project and the user's own folder."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.core import plugins, toml
from edgekit.core.structure import structure
from edgekit.errors import ConfigError, UnknownNameError, UnsupportedError, UsageError
from edgekit.types import Target

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_INHERITED = ("backend", "extra", "runs_on", "ships_to")


def known() -> Mapping[str, Target]:
    """Every target by name, in catalogue order. A name defined twice raises, naming both owners."""
    return _targets(Path.cwd(), user_dir())


def find(name: str) -> Target:
    """One target; an unknown name raises :class:`UnknownNameError` with the nearest, one that the runtime is known
    not to be able to do :class:`UnsupportedError` with the reason."""
    table = known()
    if name not in table:
        for row in impossible():
            if row.name == name:
                raise UnsupportedError(f"{name} is not possible: {row.why}", hint=f"use {row.instead}")
        raise UnknownNameError("target", name, table)
    return table[name]


@dataclass(frozen=True, kw_only=True)
class Impossible:
    """A combination of backend and precision that somebody may ask for, and why there is no such target."""

    name: str
    why: str
    instead: str


def impossible() -> tuple[Impossible, ...]:
    """What there is no target for, with the measured reason."""
    found: list[Impossible] = []
    for plugin in plugins.plugins():
        for backend in plugin.backends:
            path = plugin.data / backend / "target.toml"
            if path.is_file():
                rows = toml.rows(_document(path), "impossible", path)
                found += [structure(Impossible, row, where=f"{path}: impossible") for row in rows]
    return tuple(found)


def select(names: str | Iterable[str]) -> tuple[Target, ...]:
    """Targets from ``"a,b"``, ``"all"`` or several such names, each once, in the order given. ``all`` are those that
    take any model."""
    text = names if isinstance(names, str) else ",".join(names)
    chosen: dict[str, Target] = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        every = {n: t for n, t in known().items() if not t.task}
        chosen |= every if name == "all" else {name: find(name)}
    if not chosen:
        raise UsageError("no target given", hint="--target NAME[,NAME…]; edgekit targets lists them")
    return tuple(chosen.values())


def user_dir() -> Path:
    """``$XDG_CONFIG_HOME/edgekit``, normally ``~/.config/edgekit``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgekit"


def read_rows(path: Path, owner: str) -> tuple[Target, ...]:
    """The targets of one ``target.toml``; its ``backend``, ``extra``, ``runs_on`` and ``ships_to`` are defaults."""
    document = _document(path)
    defaults = {k: document[k] for k in _INHERITED if k in document}
    return tuple(_row(defaults | row | {"owner": owner}, path) for row in toml.rows(document, "target", path))


def _document(path: Path) -> dict[str, Any]:
    document = toml.read(path)
    allowed = {*_INHERITED, "target", "impossible"}
    for key in document:
        if key not in allowed:
            raise UnknownNameError("key", key, allowed, where=str(path))
    return document


@functools.cache
def _targets(project: Path, user: Path) -> Mapping[str, Target]:
    known_backends = plugins.backends()
    table: dict[str, Target] = {}
    for row in _all_rows(project, user):
        if row.name in table:
            raise plugins.clash("target", row.name, table[row.name].owner, row.owner)
        if row.backend not in known_backends:
            raise UnknownNameError("backend", row.backend, known_backends, where=f"target {row.name}")
        table[row.name] = row
    return table


def _all_rows(project: Path, user: Path) -> Iterator[Target]:
    for plugin in plugins.plugins():
        for name in plugin.backends:
            path = plugin.data / name / "target.toml"
            if path.is_file():
                yield from read_rows(path, plugin.name)
    for folder in (user / "targets", project / ".edgekit" / "targets"):
        yield from _folder_rows(sorted(folder.glob("*.toml")))


def _folder_rows(paths: Iterable[Path]) -> Iterator[Target]:
    for path in paths:
        yield from read_rows(path, str(path))


def _row(row: dict[str, Any], path: Path) -> Target:
    where = f"{path}: target {row.get('name', '?')}"
    for key in ("name", "backend"):
        if key not in row:
            raise ConfigError(f"{where}: {key} is missing", hint=f"add {key} = …")
    found = structure(Target, row, where=where)
    for key, value in (("name", found.name), ("file", found.file)):
        if not _PLAIN.fullmatch(value):
            raise ConfigError(
                f"{where}: {key} = {value!r} is no plain name",
                hint="letters, digits, '-', '_' and '.', a letter or digit first: it names a folder or a file there",
            )
    return found
