"""How long work tells the user where it is. The default is silent; the command line draws bars."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Task(Protocol):
    """One running piece of work."""

    def advance(self, steps: int = 1) -> None:
        """``steps`` more of the total are done."""
        ...

    def total(self, steps: int) -> None:
        """The amount of work is known now."""
        ...


class Progress(Protocol):
    """Where work is reported to."""

    def task(self, label: str, total: int | None = None) -> contextlib.AbstractContextManager[Task]:
        """A piece of work that begins now and ends with the ``with`` block."""
        ...

    def note(self, text: str) -> None:
        """One line that the user should see (a cache hit, a warning)."""
        ...


class Silent:
    """Reports nothing. Satisfies both protocols."""

    def advance(self, steps: int = 1) -> None:
        """Nothing."""

    def total(self, steps: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    @contextlib.contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Task]:  # noqa: ARG002
        """Nothing."""
        yield self
