"""What every way to a device offers. Nothing above this protocol knows which one it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from edgekit.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from edgekit.devices.transports.process import Completed, Patience


TRANSFER_SILENCE_S = 60.0
"""After this long without a byte a download has ended, however large it may become."""


class Transport(Protocol):
    """One open connection to one device, with a private folder (mode 0700) there.

    Raises :class:`edgekit.errors.DeviceError` when the connection, not the program, fails, and
    :class:`edgekit.errors.LinkLostError` when it breaks in use: then :meth:`reopen` may mend it.
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

    @property
    def remote(self) -> bool:
        """Whether a link is between us and the device: then even a short job runs under the supervisor."""
        ...

    def run(
        self, argv: Sequence[str], *, stdin: bytes, on_line: Callable[[str], None], patience: Patience
    ) -> Completed:
        """Run a program there; its stdin stays open until it ends, its stdout comes line by line."""
        ...

    def put(self, source: Path, name: str) -> PurePosixPath:
        """Make a local file readable there under ``name``; returns its path there."""
        ...

    def get(self, name: str, target: Path, most: int) -> None:
        """Fetch the file ``name`` from the private folder; it need not stay there. Raises :class:`DeviceError` for
        one of more than ``most`` bytes."""
        ...

    def reopen(self) -> None:
        """Connect again after a lost link. Raises :class:`~edgekit.errors.DeviceError` when the device is
        not reachable, or was restarted meanwhile: then what was put there is gone."""
        ...

    def close(self) -> None:
        """Remove what was put there. May be called twice."""
        ...


def stalled(device: str, name: str) -> DeviceError:
    """The error for a download that does not go on."""
    return DeviceError(
        f"{device} stopped sending {name}", hint="check the network between here and there, then run it again"
    )


def relative(name: str) -> str:
    """``name``, as a path within the private folder. Raises :class:`UsageError` for one that leaves it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or name.startswith("-"):
        raise UsageError(f"{name!r} leaves the device's folder", hint="give a relative name")
    return str(path)
