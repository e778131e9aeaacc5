"""Standard streams as they may come: closed, on a full disk, in a locale of 1983. None of it changes an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from edgekit.errors import UsageError


def prepare() -> None:
    """Give closed streams the null device, and characters that a stream's encoding lacks an escape.

    A closed descriptor would be given to the next file that is opened, which then gets what is printed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
    if sys.stdout is None:
        sys.stdout = _null(1)
    if sys.stderr is None:
        sys.stderr = _null(2)
    encoding = sys.stdout.encoding
    if type(sys.stdout) is io.TextIOWrapper:  # not what a test or a notebook puts in its place
        sys.stdout = _Stdout(
            sys.stdout.detach(),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=os.isatty(1),
        )
        # Whoever asks how wide the terminal is (shutil, click), or flushes it, asks this one, without a descriptor now.
        sys.__stdout__ = sys.stdout  # type: ignore[misc]


class _Stdout(io.TextIOWrapper):
    """Says of what cannot be written that it is the output, and no file: the system's error names neither."""

    def write(self, text: str, /) -> int:
        """As usual."""
        with _typed():
            return super().write(text)

    def flush(self) -> None:
        """As usual."""
        with _typed():
            super().flush()


@contextlib.contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"the output cannot be written: {error.strerror}", hint="write it elsewhere, or make room there"
        ) from error


class OutputError(UsageError):
    """Stdout takes no more, as on a full disk."""


def _null(descriptor: int) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", closefd=False)


def settle() -> None:
    """What waits to be written, while its failure changes nothing: Python's own last flush, of a terminal that is gone,
    ends with 120 whatever the exit code was."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, OutputError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
