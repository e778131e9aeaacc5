"""Devices over adb: phones, and boards that speak it. The shell there is all that is needed.

One ``adb shell`` holds the private folder, as the master connection does for SSH: it makes the folder, removes
stale ones and waits on its stdin. Commands travel through adb's shell protocol (version 2, Android 7), which
keeps stdout, stderr and exit codes apart.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import selectors
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from edgekit.devices.protocol import plain
from edgekit.devices.transports.adb_client import Adb, last
from edgekit.devices.transports.process import Completed, Lines, Patience, stream
from edgekit.devices.transports.transport import TRANSFER_SILENCE_S, relative, stalled
from edgekit.errors import DeviceError, LinkLostError, UnreachableError, UsageError
from edgekit.types import sha256_file

_ENDED = "edgekit-command-ended"
"""Said by the shell after each command: adb's own exit status is 0 when the connection breaks in between."""

_FOREIGN = re.compile(r": not executable: |[Ee]xec format error|CANNOT LINK EXECUTABLE")
"""mksh ends with 1 where others end with 126; the last is what Android's linker says."""

_OPEN = r"""
base=$1; root=$2; token=$3
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null || getprop ro.boottime.init)
for d in "$base"/edgekit-*; do
  if [ -f "$d/.edgekit" ] && [ ! -L "$d" ] && [ -O "$d" ] && [ "$d" != "$root" ]; then
    read -r its_boot its_process rest < "$d/.edgekit"
    if [ "$its_boot" != "$boot" ]; then rm -rf "$d"
    elif [ ! -d "/proc/$its_process" ] && [ -n "$(find "$d/.edgekit" -mmin +15)" ]; then rm -rf "$d"; fi
  fi
done
if [ -z "$root" ]; then
  root=$base/edgekit-$token
  (umask 077 && mkdir "$root") || exit 40
elif [ ! -f "$root/.edgekit" ]; then echo "edgekit gone"; exit 0
fi
echo "$boot $$ edgekit" > "$root/.edgekit" || exit 41
echo "edgekit root $root"
echo "edgekit boot $boot"
echo "edgekit arch $(uname -m)"
echo "edgekit ready"
cat > /dev/null
"""
"""Another text after each start is the boot id, or where that cannot be read, when init was started."""


@dataclass(frozen=True, kw_only=True)
class AdbOptions:
    """How to reach a device. ``serial`` may be empty where only one is connected. ``python`` is an interpreter
    there (Termux, or a Linux board), empty where there is none. ``folder`` can be written by adb's user."""

    serial: str = ""
    python: str = ""
    folder: str = "/data/local/tmp"
    server_port: int | None = None
    connect_s: float = 15.0

    def __post_init__(self) -> None:
        if self.serial.startswith("-") or any(c.isspace() or ord(c) < 32 for c in self.serial):
            raise UsageError(
                f"{self.serial!r} is no serial number of a device", hint="take one from adb devices"
            )
        if not PurePosixPath(self.folder).is_absolute():
            raise UsageError(f"{self.folder!r} is no absolute path", hint="for example /data/local/tmp")


class AdbTransport:
    """See :class:`edgekit.devices.transports.transport.Transport`."""

    remote = True

    def __init__(self, name: str, options: AdbOptions) -> None:
        self.name = name
        self._options = options
        self._adb = Adb(options.server_port)
        self._serial = self._adb.choose(name, options.serial, options.connect_s)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._said: dict[str, str] = {}
        self._sent: dict[str, str] = {}
        try:
            self._open("")
        except BaseException:
            self._hang_up()
            raise

    @property
    def root(self) -> PurePosixPath:
        """The private folder."""
        return PurePosixPath(self._said["root"])

    @property
    def python(self) -> str:
        """The interpreter there. Raises :class:`DeviceError` where there is none."""
        if not self._options.python:
            raise DeviceError(
                f"{self.name} has no Python: artifacts cannot be verified there, only timed by a program of the "
                "runtime's vendor",
                hint="edgekit bench ARTIFACT --device NAME --binary benchmark_model; or name an interpreter there "
                '(Termux) in its row: python = "/path/to/python3"',
            )
        return self._options.python

    def run(
        self, argv: Sequence[str], *, stdin: bytes, on_line: Callable[[str], None], patience: Patience
    ) -> Completed:
        """See :class:`edgekit.devices.transports.transport.Transport`."""
        return self._stream(argv, stdin, Lines(on_line), patience)

    def _stream(
        self, argv: Sequence[str], stdin: bytes, on_data: Callable[[bytes], object], patience: Patience
    ) -> Completed:
        completed = stream(self._command(argv), stdin=stdin, on_data=on_data, patience=patience)
        stderr, ended, _ = completed.stderr.partition(_ENDED)
        completed = replace(completed, stderr=stderr)
        if completed.timed_out:
            self._check(stderr)
        elif not ended:
            raise self._lost(stderr)
        if completed.returncode in (126, 127) or (completed.returncode and _FOREIGN.search(stderr)):
            raise _not_executed(self.name, argv[0], completed)
        return completed

    def put(self, source: Path, name: str) -> PurePosixPath:
        """Upload, unless the same content was sent under this name before. See the protocol."""
        target = self.root / relative(name)
        digest = sha256_file(source)
        if self._sent.get(name) == digest:
            return target
        part = f"{target}.part"
        self._shell(["mkdir", "-p", str(target.parent)], f"making a folder for {name}")
        self._push(source, part, name)
        if self._digest(part, f"checking {name}") != digest:
            with suppress(DeviceError):
                self._shell(["rm", "-f", part], "cleaning up")
            raise DeviceError(f"{self.name}: {name} arrived damaged", hint="run it again")
        self._shell(["mv", "-f", part, str(target)], f"renaming {name}")
        self._sent[name] = digest
        return target

    def get(self, name: str, target: Path, most: int) -> None:
        """Download and check. See the protocol."""
        there = str(self.root / relative(name))
        part = target.with_name(target.name + ".part")
        try:
            digest = self._digest(there, f"reading {name}")
            # By cat: of adb's own pull nobody can say how much it may bring.
            patience = Patience(whole=120 + most / 100_000, silence=TRANSFER_SILENCE_S, most=most)
            with part.open("wb") as file:
                done = self._stream(["cat", there], b"", file.write, patience)
            if done.timed_out:
                raise stalled(self.name, name)
            if done.returncode:
                raise self._adb.failure(self.name, self._serial, done.stderr, f"copying {name}")
            if digest != sha256_file(part):
                raise DeviceError(f"{self.name}: {name} came back damaged", hint="run it again")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _digest(self, path: str, doing: str) -> str:
        return self._shell(["sha256sum", path], doing).partition(" ")[0]

    def reopen(self) -> None:
        """Connect again and go on in the same folder."""
        boot, root = self._said.get("boot"), self._said.get("root", "")
        self._hang_up()
        self._serial = self._adb.choose(self.name, self._serial, self._options.connect_s)
        self._open(root)
        if self._said.get("boot") != boot:
            raise _restarted(self.name)

    def close(self) -> None:
        """Remove the private folder, end the connection."""
        if self._keeper is not None and (root := self._said.get("root")):
            with suppress(DeviceError):
                self._shell(["rm", "-rf", root], "cleaning up")
        self._said = {}
        self._hang_up()

    # --- the shell --------------------------------------------------------------------------------------

    def _command(self, argv: Sequence[str]) -> list[str]:
        # adb joins its words with blanks and gives the text to the device's shell: it has to be quoted whole.
        text = f"{shlex.join(argv)}; s=$?; echo {_ENDED} >&2; exit $s"
        return self._adb.argv(self._serial, "shell", "-T", text)

    def _shell(self, argv: Sequence[str], doing: str) -> str:
        """A short command's output."""
        lines: list[str] = []
        done = self.run(argv, stdin=b"", on_line=lines.append, patience=Patience(whole=60))
        if done.returncode or done.timed_out:
            raise self._adb.failure(self.name, self._serial, done.stderr, doing)
        return "\n".join(lines)

    def _push(self, source: Path, target: str, name: str) -> None:
        timeout = 120 + source.stat().st_size / 100_000
        done = self._adb.call("push", str(source), target, serial=self._serial, timeout=timeout)
        if done.returncode:
            raise self._adb.failure(self.name, self._serial, done.stderr or done.stdout, f"copying {name}")

    def _open(self, root: str) -> None:
        """Start the shell that holds the folder, and hear where it is."""
        script = ["sh", "-c", _OPEN, "edgekit", self._options.folder, root, secrets.token_hex(8)]
        self._keeper = subprocess.Popen(
            self._command(script),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        text = _read_until(self._keeper, b"edgekit ready\n", self._options.connect_s + 15)
        if "edgekit gone" in text:
            self._hang_up()
            raise _restarted(self.name)
        self._said = dict(re.findall(r"^edgekit (root|boot|arch) (.*)$", plain(text), re.MULTILINE))
        if "edgekit ready" not in text or not self._said.get("root", "").startswith("/"):
            raise self._refused()

    def _refused(self) -> DeviceError:
        keeper = self._keeper
        assert keeper is not None
        with suppress(subprocess.TimeoutExpired):
            keeper.wait(3)
        status = keeper.poll()
        if status is None:
            keeper.kill()
        said = last(plain(keeper.stderr.read(65536).decode("utf-8", "replace"))) if keeper.stderr else ""
        self._hang_up()
        if status in (40, 41):
            return DeviceError(
                f"{self.name} cannot make a folder in {self._options.folder}: {said}",
                hint="free some space there, or name another folder in the device's row: folder = …",
            )
        return UnreachableError(
            f"cannot open a shell on {self.name}: {said or 'it does not answer'}",
            hint=f"try it by hand: adb -s {self._serial} shell true",
        )

    def _check(self, stderr: str) -> None:
        """Raise :class:`LinkLostError` if the device is gone."""
        gone = self._keeper is None or self._keeper.poll() is not None
        if gone or not self._adb.usable(self._serial):
            raise self._lost(stderr)

    def _lost(self, stderr: str) -> LinkLostError:
        return LinkLostError(
            f"the connection to {self.name} broke" + (f": {last(stderr)}" if last(stderr) else ""),
            hint="check the cable or the network, then run it again",
        )

    def _hang_up(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        with suppress(OSError):
            assert keeper.stdin is not None
            keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            keeper.wait(3)
        if keeper.poll() is None:
            keeper.kill()
            keeper.wait()
        for pipe in (keeper.stdout, keeper.stderr):
            if pipe is not None:
                pipe.close()


def _read_until(child: subprocess.Popen[bytes], end: bytes, seconds: float) -> str:
    """What the child writes up to a line, its end, or the time's."""
    assert child.stdout is not None
    data, limit = b"", time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while end not in data and len(data) < 1 << 20 and (left := limit - time.monotonic()) > 0:
            if not selector.select(left):
                break
            part = child.stdout.read1(65536)  # type: ignore[attr-defined]
            if not part:
                break
            data += part
    return data.decode("utf-8", "replace")


def _restarted(device: str) -> DeviceError:
    return DeviceError(
        f"{device} was restarted while it was in use: what was measured on it is lost with its folder",
        hint="look at its battery and its power supply, then run it again",
    )


def _not_executed(device: str, program: str, completed: Completed) -> DeviceError:
    said = last(completed.stderr)
    if completed.returncode == 127:
        return DeviceError(f"{device} has no {program} ({said})", hint="correct the path in the device's row")
    return DeviceError(
        f"{device} cannot execute {program} ({said})",
        hint="the program is for another architecture: take the one for the device's ABI (adb shell getprop "
        "ro.product.cpu.abi)",
    )


def adb_options(address: str, options: Mapping[str, bool | int | float | str]) -> AdbOptions:
    """A row's address (the serial number) and options as adb takes them."""
    port = options.get("server_port")
    return AdbOptions(
        serial=address,
        python=str(options.get("python", "")),
        folder=str(options.get("folder", "/data/local/tmp")),
        server_port=None if port is None else int(port),
        connect_s=float(options.get("connect_s", 15)),
    )
