"""The user's own adb: which devices it sees, and what its errors mean."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from edgekit.devices.protocol import plain
from edgekit.errors import DeviceError, LinkLostError, ToolMissingError, UnreachableError, UsageError

_STATES = {
    "unauthorized": (
        "it has not allowed this computer",
        "unlock its screen and accept 'Allow USB debugging'; if no question appears, replug it",
    ),
    "authorizing": (
        "it is asking its user",
        "unlock its screen and accept 'Allow USB debugging', then run it again",
    ),
    "offline": (
        "it does not answer adb",
        "replug it, or run adb reconnect offline; then look at adb devices",
    ),
    "no permissions": (
        "this user may not open the USB device",
        "install udev rules for it (Debian: android-sdk-platform-tools-common), replug it, run adb kill-server",
    ),
    "recovery": ("it is in recovery mode", "restart it: adb reboot"),
    "sideload": ("it is in sideload mode", "restart it: adb reboot"),
    "bootloader": ("it is in its boot loader", "restart it"),
}


_MOST_BYTES = 8 << 20
_LOOK_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One line of ``adb devices -l``."""

    serial: str
    state: str
    model: str = ""


class Adb:
    """The adb program. ``port`` is its server's, if not the default one (``ANDROID_ADB_SERVER_PORT`` counts too).

    Raises :class:`ToolMissingError` where adb is not installed.
    """

    def __init__(self, port: int | None = None) -> None:
        found = shutil.which("adb")
        if found is None:
            raise ToolMissingError(
                "adb is not installed", hint="install Android's platform tools (Debian: apt install adb)"
            )
        self._base = [found, *(["-P", str(port)] if port is not None else [])]

    def argv(self, serial: str, *words: str) -> list[str]:
        """A command for one device."""
        return [*self._base, "-s", serial, *words]

    def call(self, *words: str, serial: str = "", timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run adb to its end. A server that hangs is an :class:`UnreachableError`."""
        argv = self.argv(serial, *words) if serial else [*self._base, *words]
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):  # what it says has no end by itself
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            ends = time.monotonic() + timeout
            while process.poll() is None:
                flood = max(os.fstat(f.fileno()).st_size for f in (out, err)) > _MOST_BYTES
                if flood or time.monotonic() > ends:
                    process.kill()
                    process.wait()
                    why = "does not stop talking" if flood else f"did not answer within {timeout:.0f} s"
                    raise UnreachableError(f"adb {why}", hint="adb kill-server, then run it again")
                time.sleep(_LOOK_S)
            said = [_text(file) for file in (out, err)]
            return subprocess.CompletedProcess(argv, process.returncode, *said)

    def devices(self) -> tuple[Seen, ...]:
        """What is connected, usable or not."""
        done = self.call("devices", "-l")
        if done.returncode:
            raise UnreachableError(
                f"adb does not work here: {last(done.stderr)}", hint="try it by hand: adb devices"
            )
        return parse_devices(done.stdout)

    def choose(self, device: str, serial: str, timeout: float = 15.0) -> str:
        """The serial number to talk to: ``serial``, or the only device there is. Network addresses are dialled.

        Raises :class:`UsageError` when several are connected and none was named, :class:`UnreachableError` when
        it is not there or not usable.
        """
        seen = {s.serial: s for s in self.devices()}
        usable = serial in seen and seen[serial].state == "device"
        if not usable and re.fullmatch(r"\S+:\d+", serial):
            self.call("disconnect", serial, timeout=timeout)  # one that went stays listed as offline
            self.call("connect", serial, timeout=timeout)
            seen = {s.serial: s for s in self.devices()}
        if not serial and len(seen) > 1:
            raise UsageError(
                f"{device}: several devices are connected: {', '.join(map(_named, seen.values()))}",
                hint="say which: edgekit devices add NAME --adb SERIAL",
            )
        if not serial and not seen:
            raise UnreachableError(
                f"cannot connect to {device}: adb sees no device",
                hint="plug it in, switch on USB debugging in its developer options, and look at adb devices",
            )
        found = seen.get(serial) if serial else next(iter(seen.values()))
        if found is None:
            others = f" (it sees {', '.join(map(_named, seen.values()))})" if seen else ""
            raise UnreachableError(
                f"cannot connect to {device}: adb does not see {serial}{others}",
                hint="plug it in (or adb connect HOST:PORT), and look at adb devices",
            )
        if found.state != "device":
            what, hint = _STATES.get(found.state, (f"its state is {found.state!r}", "look at adb devices"))
            raise UnreachableError(f"cannot connect to {device} ({found.serial}): {what}", hint=hint)
        return found.serial

    def usable(self, serial: str) -> bool:
        """Whether the device still answers."""
        try:
            return self.call("get-state", serial=serial, timeout=10).stdout.strip() == "device"
        except UnreachableError:
            return False

    def failure(self, device: str, serial: str, stderr: str, doing: str) -> DeviceError:
        """The error for a command that failed: a lost link where the device is gone."""
        said = last(stderr)
        if "No space left on device" in stderr:
            return DeviceError(f"{device}: {doing} failed: {said}", hint="free some space there")
        if not self.usable(serial):
            return LinkLostError(
                f"the connection to {device} broke" + (f": {said}" if said else ""),
                hint="check the cable or the network, then run it again",
            )
        return DeviceError(f"{device}: {doing} failed: {said or 'adb did not say why'}", hint="run it again")


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(_MOST_BYTES).decode("utf-8", "replace")


def parse_devices(text: str) -> tuple[Seen, ...]:
    """``adb devices -l``: serial, state (which may have a space in it), and key:value words."""
    found = []
    for line in plain(text).splitlines():
        match = re.match(r"(\S+)\s+(no permissions|\S+)(.*)", line.strip())
        if match is None or line.startswith(("List of devices", "*")):
            continue
        model = re.search(r"\bmodel:(\S+)", match[3])
        found.append(Seen(serial=match[1], state=match[2], model=model[1] if model else ""))
    return tuple(found)


def last(text: str) -> str:
    """The last line that says something."""
    lines: Sequence[str] = [line.strip() for line in plain(text).splitlines() if line.strip()]
    return lines[-1][-300:] if lines else ""


def _named(seen: Seen) -> str:
    return f"{seen.serial} ({seen.model or seen.state})"
