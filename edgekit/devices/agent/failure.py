"""How a job fails: with a kind that the host decides by, and never by a sentence."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from typing import Iterator


class JobError(Exception):
    """A failure with its kind (see ``wire.FailureKind`` on the host), to be reported there."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@contextmanager
def failing_as(kind: str, where: str = "") -> Iterator[None]:
    """Whatever a runtime raises in the block becomes a :class:`JobError` of ``kind``."""
    try:
        yield
    except JobError:
        raise
    except Exception as error:  # a runtime is foreign code
        raise JobError(kind, where + describe(error)) from error


def describe(error: BaseException) -> str:
    """``ValueError: no kernel``."""
    return "%s: %s" % (type(error).__name__, error)


def trace(error: BaseException) -> str:
    """The end of its traceback."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))[-8000:]
