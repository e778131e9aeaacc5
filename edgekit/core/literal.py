"""Python literals and syntax trees in a process of several threads.

CPython 3.11 counts the depth of a syntax tree once for all threads. Where garbage is collected while one is made, and
something that goes lets another thread run, both counts are wrong, and a good text ends in ``SystemError: AST
constructor recursion depth mismatch`` (github.com/python/cpython/issues/106905). Targets are built side by side in
threads, so it happens to one in some thousands of builds. Here one thread at a time makes a tree, and what code of
others interrupts nevertheless is done again.
"""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_one_at_a_time = threading.RLock()
_TRIES = 20


def literal(text: str) -> object:
    """The value of a Python literal: :func:`ast.literal_eval`, with its errors."""
    return _again(lambda: ast.literal_eval(text))


def parse(source: bytes | str, path: str) -> ast.Module:
    """The tree of a module: :func:`ast.parse`, with its errors."""
    return _again(lambda: ast.parse(source, path))


def _again(make: Callable[[], T]) -> T:
    with _one_at_a_time:
        for _ in range(_TRIES - 1):
            try:
                return make()
            except SystemError:
                continue
        return make()
