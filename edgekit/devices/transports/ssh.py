"""Devices over SSH: the user's own OpenSSH client, one connection, many channels.

The client reads the user's ``~/.ssh/config``, agent and ``known_hosts`` as it does everywhere else. It never
asks (BatchMode) and host keys are never waved through: an unknown one is an error that says how to look at it.

The master connection runs ``agent/far/connect.py``, which makes a private folder and then listens on its stdin;
when this process dies, so does the master, and the folder with it. Every other command is a channel of the master
(ControlPath).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from edgekit.core.files import owner
from edgekit.core.root import PACKAGE
from edgekit.devices.transports.process import Completed, Patience, stream
from edgekit.devices.transports.ssh_errors import explain
from edgekit.errors import DeviceError, LinkLostError, ToolMissingError, UsageError
from edgekit.types import sha256_file

_FAR = PACKAGE / "devices" / "agent" / "far"
_ALIVE = ("-oServerAliveInterval=3", "-oServerAliveCountMax=2")
"""A dead link is found within about nine seconds."""

_BEAT_S = 5.0
"""The far side gives up a session from which it has heard nothing for nine of these."""

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
        completed = stream(self._command(argv), stdin=stdin, on_line=_past_login(on_line), patience=patience)
        if completed.returncode == 255 or completed.timed_out:
            self._check(completed.stderr)
        if completed.returncode in (126, 127):
            raise explain(completed.returncode, completed.stderr, self.name, argv[0])
        return completed

    def put(self, source: Path, name: str) -> PurePosixPath:
        """Upload, unless the same content was sent under this name before. See the protocol."""
        target = self.root / _safe(name)
        digest = sha256_file(source)
        if self._sent.get(name) != digest:
            script = (_FAR / "receive.py").read_text(encoding="utf-8")
            argv = [self.python, "-c", script, str(target), str(source.stat().st_size), digest]
            with source.open("rb") as file:
                answer = self._exchange(argv, file)
            if not answer.get("ok"):
                raise _upload_failed(self.name, name, answer)
            self._sent[name] = digest
        return target

    def get(self, name: str, target: Path) -> None:
        """Download and check. See the protocol."""
        import hashlib

        script = (_FAR / "send.py").read_text(encoding="utf-8")
        argv = self._command([self.python, "-c", script, str(self.root / _safe(name))])
        part = target.with_name(target.name + ".part")
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        watchdog = _Watchdog(child, self._alive)
        digest = hashlib.sha256()
        assert child.stdout is not None
        try:
            head: dict[str, Any] = {}
            while not head.keys() & {"size", "error"} and (line := child.stdout.readline(65536)):
                head = _json(line)
            left = int(head.get("size", 0))
            with part.open("wb") as file:
                while left and (data := child.stdout.read(min(1 << 20, left))):
                    file.write(data)
                    digest.update(data)
                    left -= len(data)
            told = child.stdout.readline(200).decode("ascii", "replace").strip()
        finally:
            watchdog.stop()
            _end(child)
        if "error" in head:
            raise DeviceError(f"{self.name}: cannot read {name}: {head['error']}", hint="run it again")
        if left or told != digest.hexdigest():
            part.unlink(missing_ok=True)
            self._check("")
            raise DeviceError(f"{self.name}: {name} came back damaged", hint="run it again")
        part.replace(target)

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
            script = (_FAR / "remove.py").read_text(encoding="utf-8")
            with suppress(DeviceError, OSError):
                self.run(
                    [self.python, "-c", script, self._root],
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
        """Start the master and read what the far side says of itself."""
        self._opened += 1  # another socket: the old master may hold on to its own
        script = (_FAR / "connect.py").read_text(encoding="utf-8")
        remote = shlex.join([self.python, "-c", script, self._root])
        timeout = f"-oConnectTimeout={max(1, int(self._options.connect_s))}"
        argv = [*self._base(), "-oControlMaster=yes", timeout, "--", self._options.host, remote]
        with tempfile.TemporaryFile() as errors:
            self._master = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            watchdog = _Watchdog(self._master, None, limit=self._options.connect_s + 30)
            try:
                report = _greeting(self._master)
            finally:
                watchdog.stop()
            if report is None:
                with suppress(subprocess.TimeoutExpired):
                    self._master.wait(3)  # it has said its last; its status says why
                _end(self._master)
                errors.seek(0)
                text = errors.read(65536).decode("utf-8", "replace")
                status = self._master.returncode
                self._master = None
                raise explain(255 if watchdog.fired else status, text, self.name, self.python)
        self._beat = _Beat(self._master)
        self._accept(report)

    def _accept(self, report: dict[str, Any]) -> None:
        version = tuple(report["python"][:2])
        if version < MINIMUM_PYTHON:
            raise DeviceError(
                f"{self.name} has Python {'.'.join(map(str, report['python']))}: the agent needs 3.8 or newer",
                hint='install a newer Python there and name it in the device\'s row: python = "/path/to/python3"',
            )
        if report.get("error"):
            raise DeviceError(
                f"{self.name} cannot make a folder: {report['error']}",
                hint="free some space, or set TMPDIR for the user there to a folder that can be written",
            )
        if self._root and not report["exists"]:
            self._root = ""
            raise self._restarted()
        self._root, self._boot = report["root"], report["boot_id"]

    def _alive(self) -> bool:
        return self._master is not None and self._master.poll() is None

    def _check(self, stderr: str) -> None:
        """Raise :class:`LinkLostError` if the master is gone (it may take a moment to notice)."""
        if self._master is None:
            raise LinkLostError(f"{self.name} is not connected", hint="run it again")
        with suppress(subprocess.TimeoutExpired):
            self._master.wait(10 if not stderr else 1)
        if not self._alive():
            raise LinkLostError(
                f"the connection to {self.name} broke"
                + (f": {stderr.strip()[-300:]}" if stderr.strip() else ""),
                hint="check the network and the device's power, then run it again",
            )

    def _exchange(self, argv: Sequence[str], file: IO[bytes]) -> dict[str, Any]:
        """Run a far script with a file on its stdin; its one line of JSON."""
        child = subprocess.Popen(
            self._command(argv), stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        watchdog = _Watchdog(child, self._alive)
        try:
            out, errors = child.communicate()
        finally:
            watchdog.stop()
            _end(child)
        answer = _json(out.strip().rpartition(b"\n")[2])
        if "ok" not in answer:
            text = errors.decode("utf-8", "replace")
            self._check(text)
            raise explain(child.returncode, text, self.name, argv[0])
        return answer

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
        _end(self._master)
        self._master = None


class _Watchdog:
    """Ends a child when the master is gone or time is up: a client on a dead link can wait for ever."""

    def __init__(
        self, child: subprocess.Popen[bytes], alive: Callable[[], bool] | None, limit: float = 3600.0
    ) -> None:
        self.fired = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(child, alive, limit), daemon=True)
        self._thread.start()

    def _watch(self, child: subprocess.Popen[bytes], alive: Callable[[], bool] | None, limit: float) -> None:
        waited = 0.0
        while not self._stop.wait(0.25):
            waited += 0.25
            if waited >= limit or (alive is not None and not alive()):
                self.fired = True
                child.kill()
                return

    def stop(self) -> None:
        """It ended by itself, or an error did it."""
        self._stop.set()
        self._thread.join()


class _Beat:
    """Tells the far side every few seconds that we are there."""

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


def _greeting(master: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """The far side's report, past whatever a log-in script prints; ``None`` if the connection ends."""
    assert master.stdout is not None
    for _ in range(1000):
        line = master.stdout.readline(65536)
        if not line:
            return None
        report = _json(line)
        if report.get("edgekit") == 1:
            return report
    return None


def _json(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _end(child: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
    child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()


def _safe(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or name.startswith("-"):
        raise UsageError(f"{name!r} leaves the device's folder", hint="give a relative name")
    return str(path)


def _upload_failed(device: str, name: str, answer: dict[str, Any]) -> DeviceError:
    import errno

    hint = "run it again"
    if answer.get("errno") == errno.ENOSPC:
        hint = "free some space there, or set TMPDIR for the user to a bigger disk"
    return DeviceError(f"{device}: cannot upload {name}: {answer.get('error', 'no answer')}", hint=hint)


def _short_tmp() -> str | None:
    folder = tempfile.gettempdir()
    return folder if len(folder) < 60 else ("/tmp" if os.access("/tmp", os.W_OK) else None)  # noqa: S108
