"""Devices over SSH: the user's own OpenSSH client, one connection, many channels.

The client reads the user's ``~/.ssh/config``, agent and ``known_hosts`` as it does everywhere else. It never
asks (BatchMode) and host keys are never waved through: an unknown one is an error that says how to look at it.

The master connection runs ``agent/remote/connect.py``, which makes a private folder and then listens on its stdin;
when this process dies, so does the master, and the folder with it. Every other command is a channel of the master
(ControlPath).
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, Literal, TypeVar

from msgspec import Meta

from edgekit.core.files import owner
from edgekit.core.root import PACKAGE
from edgekit.devices.protocol import decode, malformed
from edgekit.devices.transports.process import Completed, Lines, Patience, Tail, close, kill, stream
from edgekit.devices.transports.ssh_errors import explain, silent
from edgekit.devices.transports.transport import TRANSFER_SILENCE_S, relative, stalled
from edgekit.devices.wire import Count, Message, Text, Whole
from edgekit.errors import DeviceError, LinkLostError, ToolMissingError, UsageError
from edgekit.types import sha256_file

_REMOTE = PACKAGE / "devices" / "agent" / "remote"
_ALIVE = ("-oServerAliveInterval=3", "-oServerAliveCountMax=2")
"""A dead link is found within about nine seconds."""

_NOISE_LINES = 1000
"""So many lines a log-in script may print before what was asked for."""

_NOTICE_S = 10.0
_PATIENCE_S = 30.0  # beyond ssh's own ConnectTimeout, which does not count name servers and proxies
"""So long the master may take to notice that the link is dead."""

_BEAT_S = 5.0
"""The remote side gives up a session from which it has heard nothing for nine of these."""

MINIMUM_PYTHON = (3, 8)


@dataclass(frozen=True, kw_only=True)
class SshOptions:
    """How to reach a device. ``host`` is what the user would type after ``ssh``: ``user@host`` or an alias.

    ``config`` is an ``ssh_config`` file used in place of the user's. ``python`` is the interpreter there.
    """

    host: str
    port: int | None = None
    config: Path | None = None
    python: str = "python3"
    connect_s: float = 15.0

    def __post_init__(self) -> None:
        if not self.host or self.host.startswith("-") or any(c.isspace() or ord(c) < 32 for c in self.host):
            raise UsageError(
                f"{self.host!r} cannot be the address of a device",
                hint="write it as for ssh: user@host, or an alias of your ~/.ssh/config",
            )


class SshTransport:
    """See :class:`edgekit.devices.transports.transport.Transport`."""

    remote = True

    def __init__(self, name: str, options: SshOptions) -> None:
        self.name = name
        self._options = options
        self._ssh = shutil.which("ssh")
        if self._ssh is None:
            raise ToolMissingError("ssh is not installed", hint="install the OpenSSH client (openssh-client)")
        # Short, for the path of a Unix socket may have about 100 characters.
        self._sockets = tempfile.mkdtemp(prefix=f"ek-{owner()}-", dir=_short_tmp())
        self._opened = 0
        self._sent: dict[str, str] = {}
        self._root = ""
        self._boot = ""
        self._master: subprocess.Popen[bytes] | None = None
        self._errors: _Errors | None = None
        self._beat: _Beat | None = None
        try:
            self._open()
        except BaseException:
            self._disconnect()
            shutil.rmtree(self._sockets, ignore_errors=True)
            raise

    @property
    def root(self) -> PurePosixPath:
        """The private folder."""
        return PurePosixPath(self._root)

    @property
    def python(self) -> str:
        """The interpreter there."""
        return self._options.python

    def run(
        self, argv: Sequence[str], *, stdin: bytes, on_line: Callable[[str], None], patience: Patience
    ) -> Completed:
        """See :class:`edgekit.devices.transports.transport.Transport`."""
        completed = stream(
            self._command(argv), stdin=stdin, on_data=Lines(_past_login(on_line)), patience=patience
        )
        if completed.returncode == 255 or completed.timed_out:
            self._check(completed.stderr)
        if completed.returncode in (126, 127):
            raise explain(completed.returncode, completed.stderr, self.name, argv[0])
        return completed

    def put(self, source: Path, name: str) -> PurePosixPath:
        """Upload, unless the same content was sent under this name before. See the protocol."""
        target = self.root / relative(name)
        digest, size = sha256_file(source), source.stat().st_size
        if self._sent.get(name) == digest:
            return target
        argv = [self.python, "-c", _script("receive"), str(target), str(size), digest]
        answers: list[_Answer] = []

        def on_line(line: str) -> None:
            answers.extend(filter(None, [_answer(line, _Answer)]))

        with source.open("rb") as file:
            patience = replace(self._patience(size), most=1 << 20)
            done = stream(self._command(argv), stdin=file, on_data=Lines(on_line), patience=patience)
        if not answers:
            self._check(done.stderr)
            raise explain(done.returncode, done.stderr, self.name, argv[0])
        if not answers[0].ok:
            raise _upload_failed(self.name, name, answers[0])
        self._sent[name] = digest
        return target

    def get(self, name: str, target: Path, most: int) -> None:
        """Download and check. See the protocol."""
        argv = self._command([self.python, "-c", _script("send"), str(self.root / relative(name))])
        part = target.with_name(target.name + ".part")
        try:
            with part.open("wb") as file:
                download = _Download(self.name, file, most)
                patience = replace(self._patience(most), most=most + (1 << 20), silence=TRANSFER_SILENCE_S)
                done = stream(argv, stdin=b"", on_data=download, patience=patience)
            if done.timed_out:
                self._check("")
                raise stalled(self.name, name)
            if download.error:
                raise DeviceError(f"{self.name}: cannot read {name}: {download.error}", hint="run it again")
            if not download.whole():
                self._check("")
                raise DeviceError(f"{self.name}: {name} came back damaged", hint="run it again")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _patience(self, size: int) -> Patience:
        """For a transfer of ``size`` bytes. A client on a dead link can wait for ever: the master knows it is dead."""
        return Patience(whole=120 + size / 50_000, alive=self._alive)

    def reopen(self) -> None:
        """Connect again and go on in the same folder."""
        boot, root = self._boot, self._root
        self._disconnect(keep=True)
        self._open()
        if self._boot != boot or self._root != root:
            raise self._restarted()

    def _restarted(self) -> DeviceError:
        return DeviceError(
            f"{self.name} was restarted while it was in use: what it had not sent yet is lost",
            hint="look at its power supply, then run it again",
        )

    def close(self) -> None:
        """Remove the private folder, end the connection."""
        if self._master is not None and self._root:
            with suppress(DeviceError, OSError):
                self.run(
                    [self.python, "-c", _script("remove"), self._root],
                    stdin=b"",
                    on_line=lambda _: None,
                    patience=Patience(whole=15),
                )
        self._root = ""
        self._disconnect()
        shutil.rmtree(self._sockets, ignore_errors=True)

    # --- the master -----------------------------------------------------------------------------------

    def _base(self) -> list[str]:
        assert self._ssh is not None
        argv = [self._ssh, "-oBatchMode=yes", "-oControlPersist=no", f"-oControlPath={self._socket}"]
        argv += ["-oClearAllForwardings=yes", "-oPermitLocalCommand=no", "-T", *_ALIVE]
        if self._options.config is not None:
            argv += ["-F", str(self._options.config)]
        if self._options.port is not None:
            argv += ["-p", str(self._options.port)]
        return argv

    @property
    def _socket(self) -> str:
        return f"{self._sockets}/{self._opened}"

    def _command(self, argv: Sequence[str]) -> list[str]:
        # Without its master a client would connect anew by itself, unknown to us: it must fail instead.
        channel = ["-oControlMaster=no", "-oProxyCommand=false"]
        return [*self._base(), *channel, "--", self._options.host, shlex.join(argv)]

    def _open(self) -> None:
        """Start the master and read what the remote side says of itself."""
        self._opened += 1  # another socket: the old master may hold on to its own
        remote = shlex.join([self.python, "-c", _script("connect"), self._root])
        timeout = f"-oConnectTimeout={max(1, int(self._options.connect_s))}"
        argv = [*self._base(), "-oControlMaster=yes", timeout, "--", self._options.host, remote]
        master = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._master, self._errors = master, _Errors(master)
        watchdog = threading.Timer(self._options.connect_s + _PATIENCE_S, master.kill)
        watchdog.start()
        greeting, lines = _greeting(master)
        fired = not watchdog.is_alive()
        watchdog.cancel()
        if greeting is None and lines >= _NOISE_LINES:
            self._hang_up()
            raise _noise(self.name)
        if greeting is None:
            with suppress(subprocess.TimeoutExpired):
                master.wait(3)  # it has said its last; its status says why
            said = self._hang_up()
            if fired and not said:
                raise silent(self.name, self._options.connect_s + _PATIENCE_S)
            raise explain(255 if fired else master.returncode, said, self.name, self.python)
        self._beat = _Beat(master)
        self._accept(greeting)

    def _accept(self, greeting: _Greeting) -> None:
        if greeting.python[:2] < MINIMUM_PYTHON:
            raise DeviceError(
                f"{self.name} has Python {'.'.join(map(str, greeting.python))}: the agent needs 3.8 or newer",
                hint='install a newer Python there and name it in the device\'s row: python = "/path/to/python3"',
            )
        if greeting.error or not greeting.root:
            raise DeviceError(
                f"{self.name} cannot make a folder: {greeting.error or 'it did not say why'}",
                hint="free some space, or set TMPDIR for the user there to a folder that can be written",
            )
        if self._root and not greeting.exists:
            self._root = ""
            raise self._restarted()
        self._root, self._boot = greeting.root, greeting.boot_id

    def _alive(self) -> bool:
        return self._master is not None and self._master.poll() is None

    def _check(self, stderr: str) -> None:
        """Raise :class:`LinkLostError` if the master is gone (it may take a moment to notice)."""
        if self._master is None:
            raise LinkLostError(f"{self.name} is not connected", hint="run it again")
        with suppress(subprocess.TimeoutExpired):
            self._master.wait(_NOTICE_S if not stderr else 1)
        if not self._alive():
            raise LinkLostError(
                f"the connection to {self.name} broke"
                + (f": {stderr.strip()[-300:]}" if stderr.strip() else ""),
                hint="check the network and the device's power, then run it again",
            )

    def _disconnect(self, *, keep: bool = False) -> None:
        """End the session; ``keep``: the folder stays for the next one."""
        if self._master is None:
            return
        if self._beat is not None:
            self._beat.stop()
        assert self._master.stdin is not None
        with suppress(OSError):
            if keep:
                os.write(self._master.stdin.fileno(), b"keep\n")
            self._master.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._master.wait(1)
        self._hang_up()

    def _hang_up(self) -> str:
        """End the master; returns what it wrote last, which is read before its pipes are closed."""
        assert self._master is not None
        assert self._errors is not None
        kill(self._master)
        said = self._errors.text()
        close(self._master)
        self._master = self._errors = None
        return said


class _Answer(Message, frozen=True):
    """What ``agent/remote/receive.py`` and ``send.py`` say: that it was done, a file's size, or what went wrong."""

    edgekit: Literal[1]
    ok: bool = False
    size: Count | None = None
    error: Text = ""
    errno: Whole | None = None


class _Greeting(Message, frozen=True):
    """What ``agent/remote/connect.py`` says."""

    edgekit: Literal[1]
    python: tuple[Count, Count, Count]
    boot_id: Text = ""
    root: Annotated[str, Meta(max_length=4096, pattern="^/.")] = ""
    exists: bool = False
    error: Text = ""


_A = TypeVar("_A", bound=Message)


def _answer(line: str, kind: type[_A]) -> _A | None:
    """The line as ``kind``; ``None`` for what a log-in script prints."""
    try:
        return decode(line, kind, device="")
    except DeviceError:
        return None


class _Download:
    """Takes what ``agent/remote/send.py`` writes, past what log-in scripts print: head, bytes, digest."""

    def __init__(self, device: str, file: BinaryIO, most: int) -> None:
        self.error = ""
        self._device, self._file, self._most = device, file, most
        self._left: int | None = None
        self._noise = 0
        self._rest, self._digest = b"", hashlib.sha256()

    def __call__(self, data: bytes) -> None:
        self._rest += data
        while self._left is None and b"\n" in self._rest:
            line, _, self._rest = self._rest.partition(b"\n")
            self._head(line.decode("utf-8", "replace"))
        if self._left is not None:
            body = self._rest[: self._left]
            self._file.write(body)
            self._digest.update(body)
            self._left -= len(body)
            self._rest = self._rest[len(body) :]

    def _head(self, line: str) -> None:
        answer = _answer(line, _Answer)
        if answer is None:
            self._noise += 1
            if self._noise > _NOISE_LINES:
                raise malformed(self._device, line, "no answer after a thousand lines")
            return
        if answer.size is not None and answer.size > self._most:
            raise DeviceError(
                f"{self._device} would send {answer.size:,} bytes where {self._most:,} are the most that is asked for",
                hint="run fewer samples at once; if the outputs are not that large, do not trust the device",
            )
        self.error, self._left = answer.error, answer.size

    def whole(self) -> bool:
        """Whether all of it came, undamaged."""
        digest = self._rest.decode("ascii", "replace").strip()
        return self._left == 0 and digest == self._digest.hexdigest()


class _Errors:
    """Reads a child's stderr to its end, so that the pipe never fills, and keeps the last lines."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._pipe, self._tail = child.stderr, Tail()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._pipe is not None
        with suppress(OSError, ValueError):  # closed under our hands
            while data := os.read(self._pipe.fileno(), 65536):
                self._tail(data)

    def text(self) -> str:
        """What it wrote last."""
        self._thread.join(1)
        return str(self._tail)


class _Beat:
    """Tells the remote side every few seconds that we are there."""

    def __init__(self, master: subprocess.Popen[bytes]) -> None:
        assert master.stdin is not None
        self._descriptor = master.stdin.fileno()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def _tell(self) -> None:
        with suppress(OSError):  # the master has ended
            while not self._stop.wait(_BEAT_S):
                os.write(self._descriptor, b"\n")

    def stop(self) -> None:
        """Before its descriptor is closed."""
        self._stop.set()
        self._thread.join()


def _past_login(on_line: Callable[[str], None]) -> Callable[[str], None]:
    """Leave out what log-in scripts print: everything before the agent's first line."""
    begun = False

    def pass_on(line: str) -> None:
        nonlocal begun
        begun = begun or line.startswith('{"seq":1,')
        if begun:
            on_line(line)

    return pass_on


def _greeting(master: subprocess.Popen[bytes]) -> tuple[_Greeting | None, int]:
    """The remote side's report, past whatever a log-in script prints, and how many lines that were; ``None`` if the
    connection ends, or if it prints without end."""
    assert master.stdout is not None
    for number in range(_NOISE_LINES):
        line = master.stdout.readline(65536)
        greeting = _answer(line.decode("utf-8", "replace"), _Greeting)
        if greeting is not None or not line:
            return greeting, number
    return None, _NOISE_LINES


def _noise(device: str) -> DeviceError:
    return DeviceError(
        f"{device} printed too much: {_NOISE_LINES:,} lines, and no answer among them",
        hint="a log-in script there (~/.bashrc, ~/.profile, a menu) prints without end, or runs something else than it "
        "is told to: let it do so in interactive shells alone; see for yourself: ssh HOST true",
    )


def _script(name: str) -> str:
    return (_REMOTE / f"{name}.py").read_text(encoding="utf-8")


def _upload_failed(device: str, name: str, answer: _Answer) -> DeviceError:
    hint = "run it again"
    if answer.errno == errno.ENOSPC:
        hint = "free some space there, or set TMPDIR for the user to a bigger disk"
    return DeviceError(f"{device}: cannot upload {name}: {answer.error or 'no answer'}", hint=hint)


def _short_tmp() -> str | None:
    folder = tempfile.gettempdir()
    return folder if len(folder) < 60 else ("/tmp" if os.access("/tmp", os.W_OK) else None)  # noqa: S108
