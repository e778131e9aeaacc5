"""The processors' frequency governor for the time of a plan, put back however the plan ends.

A process of its own sets it, holds the old values, and puts them back when its stdin ends: that is when the
supervisor lets go, and also when it was killed. Nothing is asked of sudo: a user who may not write the files is told.
"""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Dict, Optional

from .channel import Channel
from .state import root

_PLACES = ("devices/system/cpu/cpufreq/policy*", "devices/system/cpu/cpu[0-9]*/cpufreq")


class GovernorError(Exception):
    """It cannot be set: ``kind`` is unknown, unsupported or denied (``wire.RefusalKind`` on the host)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Keeper:
    """The governor is ``name`` until :meth:`release`, or until this process ends. Raises :class:`GovernorError`."""

    def __init__(self, name: str) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, sys.argv[0], "governor", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # what kills the supervisor's group must not kill this
            )
        except (OSError, ValueError) as error:
            raise GovernorError("denied", "no process can be started that holds it: %s" % error) from error
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line.decode("utf-8"))
        except ValueError:
            answer = {"kind": "denied", "problem": "the process that holds it ended at once"}
        if answer.get("kind"):
            self.release()
            raise GovernorError(answer["kind"], answer["problem"])

    def release(self) -> None:
        """Put the old governors back."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def main() -> int:
    """Set the governor that the argument names, wait until stdin ends, put the old ones back."""
    channel = Channel()
    old: Dict[str, str] = {}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: _leave(old))
    try:
        _set(sys.argv[2], old)
    except GovernorError as error:
        channel.send("governor", kind=error.kind, problem=str(error))
        _restore(old)
        return 1
    channel.send("governor")
    while os.read(0, 4096):
        pass
    _restore(old)
    return 0


def _set(name: str, old: Dict[str, str]) -> None:
    """Set it everywhere, keeping in ``old`` what was there by path. Raises :class:`GovernorError`."""
    places = (sorted(glob.glob(os.path.join(root(), p))) for p in _PLACES)
    folders = next(filter(None, places), [])
    if not folders:
        raise GovernorError("unsupported", "its kernel offers no governors (no cpufreq in /sys)")
    for folder in folders:
        offered = (_read(folder + "/scaling_available_governors") or "").split()
        if offered and name not in offered:
            raise GovernorError("unknown", "%s is none of its governors: %s" % (name, ", ".join(offered)))
        path = folder + "/scaling_governor"
        before = _read(path)
        try:
            if before is None:
                raise OSError(2, "No governor", path)
            old[path] = before
            _write(path, name)
        except OSError as error:
            raise GovernorError("denied", "%s: %s" % (path, error.strerror)) from error


def _restore(old: Dict[str, str]) -> None:
    for path, text in old.items():
        with suppress(OSError):
            if _read(path) != text:
                _write(path, text)


def _leave(old: Dict[str, str]) -> None:
    _restore(old)
    os._exit(0)


def _read(path: str) -> Optional[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
