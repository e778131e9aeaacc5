"""One step behind the cache: what it depends on, what it writes, and how that is read back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from edgekit.artifact.manifest import StepRecord
from edgekit.core import contained, versions
from edgekit.core.store import Key, Reading, StepResult, Store
from edgekit.core.structure import structure
from edgekit.graph.records import read_json

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Step(Generic[T]):
    """A step: ``produce`` fills an empty directory, ``read`` makes the step's value of a filled one.

    The cache's key is ``name``, ``inputs`` (sha256 each), ``options``, the installed versions of ``packages``, and
    ``versions`` of what else takes part (a runtime, the machine). What is not named there must not change the result,
    but for what ``reads`` sees: files and variables that the user's code reads while the step runs.

    ``quick``: it takes seconds, or says how far it is (:func:`edgekit.core.contained.step`).
    """

    name: str
    inputs: tuple[str, ...]
    produce: Callable[[Path], None]
    read: Callable[[Path], T]
    options: Mapping[str, object] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    reads: Reading | None = None
    quick: bool = False

    @property
    def key(self) -> Key:
        """Where the cache has it."""
        installed = versions.of(*self.packages) | dict(self.versions)
        return Key(name=self.name, inputs=self.inputs, options=self.options, versions=installed)


@dataclass(frozen=True, kw_only=True)
class Done(Generic[T]):
    """A step that ran, now or in an earlier build."""

    value: T
    result: StepResult

    def record(self, output: str, notes: tuple[str, ...] = ()) -> StepRecord:
        """The step for the manifest; ``output`` is the sha256 of what it made."""
        key = self.result.key
        return StepRecord(
            name=key.name,
            options=key.options,
            input_sha256=key.inputs[0] if key.inputs else "",
            output_sha256=output,
            versions=key.versions,
            seconds=round(self.result.seconds, 3),
            notes=notes,
        )


class NotCachedError(Exception):
    """A step is not in the cache, and :class:`ReadOnly` does not do it."""


class ReadOnly(Store):
    """A cache as it is: what it lacks is not done."""

    def __init__(self, store: Store) -> None:
        vars(self).update(vars(store))  # files that ``store`` has checked are not checked again

    def step(self, key: Key, produce: Callable[[Path], None], reads: Reading | None = None) -> StepResult:
        """The result for ``key``, or :class:`NotCachedError`."""
        del produce

        def refuse(_: Path) -> None:
            raise NotCachedError(key.name)

        return super().step(key, refuse, reads)

    def _alone(self, key: Key) -> AbstractContextManager[None]:
        """Who makes nothing waits for nobody."""
        del key
        return nullcontext()


def run(store: Store, step: Step[T]) -> Done[T]:
    """The step's value: read from the cache, where it is not produced first. Raises what ``produce`` raises."""
    key = step.key

    def produce(out: Path) -> None:
        with contained.step(step.name, key.digest, quick=step.quick):
            step.produce(out)

    with _lock(key.digest):
        result = store.step(key, produce, step.reads)
    return Done(value=step.read(result.directory), result=result)


def reader(kind: type[T], file: str) -> Callable[[Path], T]:
    """What reads ``file`` of a step's directory as the dataclass ``kind``."""
    return lambda directory: structure(kind, read_json(directory / file), where=file)


def rows_reader(kind: type[T], file: str) -> Callable[[Path], tuple[T, ...]]:
    """The same for a list of them."""
    return lambda directory: tuple(structure(kind, row, where=file) for row in read_json(directory / file))


_locks: dict[str, threading.Lock] = {}
_guard = threading.Lock()


def _lock(digest: str) -> threading.Lock:
    """Targets that are built side by side share steps: the second waits for the first one's result."""
    with _guard:
        return _locks.setdefault(digest, threading.Lock())
