"""What a factory or data callable read, so that an unchanged build can be recognized without running it.

Light: no torch. A module stays imported, and may keep what it once read. So everything that ran as the user's code
belongs to a *world*: the modules that it could reach, and all that code in any of them read in this process. What a
recorder saw is completed by the worlds that it touched, whether or not something was imported before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

from edgekit.core.dependency import (
    Dependency,
    Kind,
    Stamp,
    is_folder,
    of_path,
    of_variable,
    stamp,
    used,
    variable,
)
from edgekit.load import imports, watch

_NOT_FILES = ("/proc/", "/sys/", "/dev/")


@dataclass(kw_only=True)
class Reads:
    """What was seen: paths as they were at first sight, variables, compiled sources, and why something may lack."""

    paths: dict[str, Stamp] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    variables: dict[str, str | None] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, None] = field(default_factory=dict)

    def add(self, event: watch.Event) -> None:
        """One more thing; what was seen first counts."""
        match event.kind:
            case watch.Seen.PATH:
                self.paths.setdefault(event.name, event.stamp)
            case watch.Seen.LISTED:
                self.paths.setdefault(event.name, event.stamp)
                self.listed.add(event.name)
            case watch.Seen.WRITTEN:
                self.written.add(event.name)
            case watch.Seen.VARIABLE:
                self.variables.setdefault(event.name, event.value)
            case watch.Seen.SOURCE:
                self.paths.setdefault(event.name, event.stamp)
                self.sources[event.name] = event.value or ""
            case watch.Seen.DOUBT:
                self.doubts[event.name] = None

    def update(self, later: Reads) -> None:
        """Add what was seen later."""
        for path, first in later.paths.items():
            self.paths.setdefault(path, first)
        for name, value in later.variables.items():
            self.variables.setdefault(name, value)
        self.listed |= later.listed
        self.written |= later.written
        self.sources |= later.sources
        self.doubts |= later.doubts

    def moved(self) -> bool:
        """Whether something is not as it was at first sight, and this process did not make it so."""
        return any(map(self.has_moved, self.paths)) or any(
            variable(name) != value for name, value in self.variables.items()
        )

    def has_moved(self, path: str) -> bool:
        """The same of one path. A file that was not there and is now was made by the code that looked for it."""
        first = self.paths[path]
        if not first or path in self.written or stamp(path) == first:
            return False
        return path in self.listed or not is_folder(path)

    def dependencies(self) -> Iterator[Dependency]:
        """Each thing as it is now; of a module what was compiled. What is installed is known by its version."""
        roots = imports.installed_roots()
        for path in self.paths:
            real = os.path.realpath(path)
            if (real + os.sep).startswith(roots) or (path + os.sep).startswith(roots):
                continue
            if path.endswith((".pyc", ".pyo")) or real.startswith(_NOT_FILES):
                continue
            found = of_path(path, listed=path in self.listed)
            if path in self.sources and found.sha256 != self.sources[path]:
                found = Dependency(kind=Kind.FILE, name=path, sha256=self.sources[path])
            yield found
        for name, value in self.variables.items():
            yield of_variable(name, value)


@dataclass(kw_only=True)
class _World:
    names: set[str]
    reads: Reads


_worlds: list[_World] = []


class Recorder:
    """Records everything that is read while it is active; it may be entered again, and then goes on.

    ``dependencies`` is complete after the block, ``doubts`` says why it is not: another program was started, or a
    module had been imported before anybody looked. What native code opens by itself is not seen, but for the
    readers in :data:`edgekit.load.watch.NATIVE`.
    """

    def __init__(self) -> None:
        self.reads = Reads()
        self.roots: set[str] = set()
        self._result: tuple[tuple[Dependency, ...], tuple[str, ...]] | None = None

    def __enter__(self) -> Recorder:
        if not watch.watchers():
            _forget_moved()
        watch.start(self)
        self._result = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        watch.stop(self)
        if error is not None:
            used.update((d.name, d) for d in self.dependencies)

    def see(self, event: watch.Event) -> None:
        """Take note of an event; code that begins in a module, or imports one, can use all that it reaches."""
        if event.kind is watch.Seen.MODULE:
            self.roots.add(event.name)
        else:
            self.reads.add(event)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """All that the code in the block can have depended on."""
        return self._described()[0]

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the dependencies may not be all."""
        return self._described()[1]

    def _described(self) -> tuple[tuple[Dependency, ...], tuple[str, ...]]:
        if self._result is None:
            reads = Reads()
            with watch.lock:
                reached = imports.reach(self.roots)
                for world in _worlds:
                    if not world.names.isdisjoint(reached):
                        reads.update(world.reads)
                reads.update(self.reads)
            doubts = [*reads.doubts]
            doubts += [f"{path} changed meanwhile" for path in reads.paths if reads.has_moved(path)]
            unseen = (n for n in reached - set(imports.sources) if imports.is_users(imports.file_of(n)))
            doubts += [f"the module {name} was imported before" for name in sorted(unseen)]
            self._result = tuple(sorted(reads.dependencies(), key=lambda d: d.name)), tuple(doubts)
        return self._result


class Session(Recorder):
    """The user's code runs, from the module ``root`` on: what it reads belongs to its world."""

    def __init__(self, root: str = "") -> None:
        super().__init__()
        self._root = root
        self._names: set[str] = set()

    def __enter__(self) -> Session:
        watch.start(self)
        if self._root:
            self.enter_module(self._root)
        return self

    def enter_module(self, name: str) -> None:
        """The code is in this module from now on."""
        self._root = name
        watch.observe(watch.Event(kind=watch.Seen.MODULE, name=name))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        with watch.lock:
            if not self.roots <= self._names:
                self._names = imports.reach(self.roots)
            reads, self.reads = self.reads, Reads()
            _belong(self._names, reads)


def _belong(names: set[str], reads: Reads) -> None:
    """Worlds that share a module are one: what code of the one reads, code of the other may have kept."""
    touched = [w for w in _worlds if not w.names.isdisjoint(names)]
    world = touched[0] if touched else _World(names=set(), reads=Reads())
    for other in touched[1:]:
        _worlds.remove(other)
        world.names |= other.names
        world.reads.update(other.reads)
    world.names |= names
    world.reads.update(reads)
    if not touched and names:
        _worlds.append(world)


def _forget_moved() -> None:
    """Forget the modules of worlds in which something changed since it was read: they are imported again."""
    with watch.lock:
        for world in [w for w in _worlds if w.reads.moved()]:
            _worlds.remove(world)
            for name in world.names & set(imports.sources):
                sys.modules.pop(name, None)
                del imports.sources[name]
