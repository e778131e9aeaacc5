"""Values made once, and calls side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from edgekit.core.parallel import Once, in_order


def test_a_value_is_made_once_however_many_ask_at_a_time() -> None:
    once, made, results = Once(), [], []

    def make() -> object:
        made.append(threading.get_ident())
        time.sleep(0.05)
        return object()

    threads = [threading.Thread(target=lambda: results.append(once.get("key", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(set(map(id, results))) == 1
    assert once.get("other", lambda: 2) == 2


def test_what_fails_is_tried_again() -> None:
    once = Once()
    with pytest.raises(ZeroDivisionError):
        once.get("key", lambda: 1 // 0)
    assert once.get("key", lambda: 3) == 3


def test_results_come_in_order_and_few_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    def slow_at_first(i: int) -> int:
        time.sleep(0.02 if i == 0 else 0)
        return i * i

    results = in_order(slow_at_first, items(), most=3)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) < 12
    assert list(results) == [i * i for i in range(5, 100)]


def test_an_error_ends_it() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda i: 1 // (i - 3), range(10)))
