"""What every way to a device offers. Nothing above this protocol knows which one it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from edgekit.devices.process import Completed


class Transport(Protocol):
    """One open connection to one device, with a private folder (mode 0700) there.

    Paths on the device are relative to that folder's ``root``. Raises :class:`edgekit.errors.DeviceError`
    when the connection, not the program, fails.
    """

    name: str

    @property
    def root(self) -> PurePosixPath:
        """The private folder on the device; :meth:`close` removes it."""
        ...

    @property
    def python(self) -> str:
        """The Python interpreter to run the agent with."""
        ...

    def run(
        self, argv: Sequence[str], *, stdin: bytes, on_line: Callable[[str], None], timeout: float
    ) -> Completed:
        """Run a program there; its stdin stays open until it ends, its stdout comes line by line."""
        ...

    def put(self, source: Path, name: str) -> PurePosixPath:
        """Make a local file readable there under ``name``; returns its path there."""
        ...

    def get(self, name: str, target: Path) -> None:
        """Fetch the file ``name`` from the private folder."""
        ...

    def facts(self) -> dict[str, Any]:
        """Architecture, operating system, processors, memory: what a measurement is recorded with."""
        ...

    def close(self) -> None:
        """Remove what was put there. May be called twice."""
        ...
