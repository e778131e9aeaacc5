"""Work side by side: values that several threads ask for, made once, and calls whose results come in order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")


class Once:
    """Values by key, each made once: a thread that asks for one in the making waits for it.

    What fails is not kept: whoever asks next tries again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[Hashable, Future[object]] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of ``key``; ``make`` makes it where there is none yet. ``make`` must not ask for its own key."""
        with self._lock:
            future = self._values.get(key)
            owner = future is None
            if future is None:
                future = self._values[key] = Future()
        if owner:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    del self._values[key]
                future.set_exception(error)
                raise
        return cast(T, future.result())


def in_order(call: Callable[[T], R], items: Iterable[T], *, most: int = 8) -> Iterator[R]:
    """``call`` of each item, in order, as many at a time as there are processors and at most ``most``.

    ``call`` has to spend its time outside of Python's lock (an inference, say). Items are taken in the caller's thread.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(most, processors)
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
