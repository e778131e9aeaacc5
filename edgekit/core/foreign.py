"""What code that is not edgekit's raises: libraries on a user's file, a user's own forward.

They raise anything, from struct.error to RecursionError, and none of them documents what: here is the place where that
is caught.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from edgekit.errors import EdgekitError, SourceError, first_line

T = TypeVar("T")


@contextlib.contextmanager
def translated(message: str, *, hint: str, kind: type[EdgekitError] = SourceError) -> Iterator[None]:
    """Turn whatever a library raises inside into ``kind``: ``message``, and the first line of the library's."""
    try:
        yield
    except EdgekitError:
        raise
    except Exception as error:
        raise kind(f"{message}: {first_line(error)}", hint=hint) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what a library in Rust ends with is no Exception
            raise
        raise kind(f"{message}: {first_line(error)}", hint=hint) from error


def attempted(work: Callable[[], T]) -> T | Exception:
    """What ``work`` gives, or what it raised: for a caller to whom that is an answer, too."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - see above
        return error
