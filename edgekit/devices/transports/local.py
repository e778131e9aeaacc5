"""This machine as a device: the same agent, in a fresh process, without copying what is already here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from edgekit.core.files import temporary
from edgekit.devices.transports.process import Completed, Lines, Patience, stream


class LocalTransport:
    """Runs programs here; the private folder is a temporary one.

    ``python`` is the interpreter with the runtimes: by default the one that runs edgekit, since what is
    installed for it is what users mean by "here".
    """

    remote = False

    def __init__(self, name: str = "local", *, python: str = sys.executable) -> None:
        self.name = name
        self.python = python
        self._temporary = temporary("local")  # 0700 by mkdtemp's contract
        self._folder = Path(self._temporary.name)

    @property
    def root(self) -> PurePosixPath:
        """The private folder."""
        return PurePosixPath(self._folder)

    def run(
        self, argv: Sequence[str], *, stdin: bytes, on_line: Callable[[str], None], patience: Patience
    ) -> Completed:
        """See :class:`edgekit.devices.transports.transport.Transport`."""
        return stream(argv, stdin=stdin, on_data=Lines(on_line), patience=patience, env=_environment())

    def put(self, source: Path, name: str) -> PurePosixPath:  # noqa: ARG002 - the file is here already
        """The file's own path: nothing is copied."""
        return PurePosixPath(source.resolve())

    def get(self, name: str, target: Path, most: int) -> None:  # noqa: ARG002 - it takes no room twice
        """Move the file out of the private folder."""
        shutil.move(self._folder / name, target)

    def reopen(self) -> None:
        """There is no link to lose."""

    def close(self) -> None:
        """Remove the private folder."""
        self._temporary.cleanup()


def _environment() -> dict[str, str]:
    """Ours, with the runtimes' telemetry off."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONSTARTUP", "PYTHONINSPECT")}
    return env | {"ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
