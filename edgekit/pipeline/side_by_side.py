"""Targets side by side, in threads: two thirds of quantizing is native code, which lets another thread run meanwhile.

In come jobs that touch nothing in common but the cache; out come their results, or what they raised, in the same order.
What runs code of the user's must be done before: it sees one process with one ``sys.path`` and one random generator.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgekit.core import contained, versions
from edgekit.core.files import temporary
from edgekit.core.memory import available_memory
from edgekit.devices.arrays import ArrayFile, write_arrays
from edgekit.load.data import SampleSet
from edgekit.types import Sample

if TYPE_CHECKING:
    from edgekit.types import Array

T = TypeVar("T")

COPIES = 12
"""Memory that one target takes, in sizes of its model: float weights, quantized ones, and those of sessions."""
ANYWAY = 256 << 20
"""Bytes that one target takes however small its model is."""
SPOOL = 4 << 30
"""More bytes of samples than this are not written to disk; then targets are built one after the other."""


def side_by_side(jobs: Sequence[Callable[[], T]], workers: int) -> list[T]:
    """The results of ``jobs``, at most ``workers`` at a time. A job must not raise but for Ctrl-C.

    Ctrl-C ends the jobs where they are, each through its own ``finally`` blocks, and then this call.
    """
    results: dict[int, T] = {}
    waiting, lock = iter(range(len(jobs))), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                index = next(waiting, None)
            if index is None:
                return
            results[index] = jobs[index]()

    threads: list[_Worker] = []
    try:
        for _ in range(workers):
            threads.append(_Worker(work))
            threads[-1].start()
        for thread in threads:
            thread.ended.wait()
    except KeyboardInterrupt:
        with lock:
            waiting = iter(())
        begun = [thread for thread in threads if thread.interrupt()]
        for thread in begun:
            thread.wait()
        raise
    return [results[i] for i in range(len(jobs))]


class _Worker:
    """A thread that can be interrupted, and waited for after that: an interrupted ``Thread.join`` takes the thread for
    ended in CPython 3.11."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.ended = threading.Event()
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except KeyboardInterrupt:
            return  # the main thread raises it
        finally:
            self.ended.set()

    def wait(self) -> None:
        """Until it has ended, even where it was interrupted before it began to work."""
        while not self.ended.wait(0.1) and self._thread.is_alive():
            pass

    def interrupt(self) -> bool:
        """Raise KeyboardInterrupt in it before its next Python instruction: the system gives the signal to the main
        thread alone, and a step's temporary folder is removed by whoever made it. False where it never began."""
        if self._thread.ident is None:
            return False
        if not self.ended.is_set():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident), ctypes.py_object(KeyboardInterrupt)
            )
        return True


def workers(jobs: int, model: Path) -> int:
    """How many targets of the model in ``model``'s folder fit this machine's processors and free memory."""
    if contained.one_at_a_time():
        return 1
    size = sum(file.stat().st_size for file in model.parent.iterdir() if file.is_file())
    room = available_memory() // (COPIES * size + ANYWAY)
    return max(1, min(jobs, int(versions.machine()["cpus"]), room))


@contextmanager
def spooled(sets: Iterable[SampleSet]) -> Iterator[Mapping[str, SampleSet] | None]:
    """By fingerprint, the same samples from files, which any number of threads may read; ``None`` where they are too
    large for that.

    A data callable of the user's runs here, once and alone: its global random generator would give other samples where
    two threads drew from it in turns.
    """
    with temporary("samples") as folder:
        copies: dict[str, SampleSet] = {}
        for samples in sets:
            copy = copies.get(samples.fingerprint) or _spool(samples, Path(folder) / samples.fingerprint)
            if copy is None:
                yield None
                return
            copies[samples.fingerprint] = copy
        yield copies


def _spool(samples: SampleSet, path: Path) -> SampleSet | None:
    labels: list[object] = []
    rows = iter(samples)
    first = next(rows)
    if len(samples) * sum(array.nbytes for array in first.inputs.values()) > SPOOL:
        return None

    def inputs() -> Iterator[Mapping[str, Array]]:
        for sample in (first, *rows):
            labels.append(sample.label)
            yield sample.inputs

    stored = write_arrays(path, inputs())
    return replace(samples, open=lambda: _read(stored, labels))


def _read(stored: ArrayFile, labels: Sequence[object]) -> Iterator[Sample]:
    return (Sample(inputs=row, label=label) for row, label in zip(stored, labels, strict=True))
