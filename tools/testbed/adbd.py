"""A stand-in for Android's adbd: the real adb client talks to it over TCP, as to a phone on the network.

It speaks the transport protocol (CNXN, OPEN, OKAY, WRTE, CLSE), the shell protocol version 2 and the sync protocol,
and runs commands on this machine in mksh, which is Android's shell, where that is installed. It is no Android: what
``getprop`` and ``dumpsys`` say is what the test puts there.
(packages/modules/adb: protocol.txt, SYNC.TXT, shell_protocol.h)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from testbed.sshd import MissingToolError, _free_port

_VERSION, _MOST = 0x01000001, 256 * 1024
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)

PIXEL = {
    "ro.product.manufacturer": "Google",
    "ro.product.model": "Pixel 8",
    "ro.soc.model": "Tensor G3",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.build.version.release": "16",
}
BATTERY = (
    "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n"
    "  status: 2\n  level: 87\n  temperature: 281\n"
)
THERMAL = (
    "IsStatusOverride: false\nThermal Status: 0\nCurrent temperatures from HAL:\n"
    "\tTemperature{mValue=41.5, mType=0, mName=CPU0, mStatus=0}\n"
    "\tTemperature{mValue=33.2, mType=3, mName=skin, mStatus=0}\n"
)


@dataclass(kw_only=True)
class Adbd:
    """Start with ``with``. ``authorized`` False never lets the client in; ``properties``, ``battery`` and
    ``thermal`` are what the phone's tools print; ``environment`` is set for every command."""

    authorized: bool = True
    properties: Mapping[str, str] = field(default_factory=lambda: dict(PIXEL))
    battery: str = BATTERY
    thermal: str = THERMAL
    environment: Mapping[str, str] = field(default_factory=dict)
    base: Path = field(init=False)
    port: int = field(init=False)

    def __enter__(self) -> Adbd:
        self.base = Path(tempfile.mkdtemp(prefix="edgekit-adbd-"))
        self.tmp.mkdir()
        self._tools()
        self._connections: set[_Connection] = set()
        self._start(0)
        return self

    def __exit__(self, *exc: object) -> None:
        self.unplug()
        shutil.rmtree(self.base, ignore_errors=True)

    @property
    def serial(self) -> str:
        """The name that adb has for it."""
        return f"127.0.0.1:{self.port}"

    @property
    def tmp(self) -> Path:
        """What /data/local/tmp is on a phone."""
        return self.base / "tmp"

    def left_over(self) -> list[str]:
        """What remains there."""
        return sorted(p.name for p in self.tmp.iterdir())

    def processes(self) -> list[str]:
        """Command lines of what still runs there."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if f"EDGEKIT_ADBD={self.base}\0".encode() in (entry / "environ").read_bytes():
                        line = (
                            (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                        )
                        found += [line] if line else []
        return found

    def unplug(self) -> None:
        """The cable is out: no connection, none accepted."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            connection.end()

    def plug(self) -> None:
        """It is in again."""
        self._start(self.port)

    def _start(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            connection = _Connection(self, peer)
            self._connections.add(connection)
            threading.Thread(target=connection.serve, daemon=True).start()

    def _tools(self) -> None:
        """getprop and dumpsys as scripts; the rest is this machine's."""
        tools = self.base / "bin"
        tools.mkdir()
        (tools / "sh").symlink_to(shutil.which("mksh") or "/bin/sh")
        cases = "".join(f"{k}) echo '{v}';;\n" for k, v in self.properties.items())
        every = "".join(f"echo '[{k}]: [{v}]'\n" for k, v in self.properties.items())
        said = {"battery": self.battery, "thermalservice": self.thermal}
        for name, text in said.items():
            (self.base / name).write_text(text)
        services = "".join(f"{name}) cat '{self.base / name}';;\n" for name in said)
        scripts = {
            "getprop": f"if [ $# = 0 ]; then\n{every}exit; fi\ncase $1 in\n{cases}esac\n",
            "dumpsys": f'case $1 in\n{services}*) echo "Can\'t find service: $1" >&2;;\nesac\n',
        }
        for name, text in scripts.items():
            (tools / name).write_text(f"#!/bin/sh\n{text}")
            (tools / name).chmod(0o755)

    def command_environment(self) -> dict[str, str]:
        """What a command on the phone sees."""
        path = f"{self.base / 'bin'}:/usr/bin:/bin"
        own = {"PATH": path, "EDGEKIT_ADBD": str(self.base), "TMPDIR": str(self.tmp), "HOME": str(self.base)}
        return own | {"EDGEKIT_LOCK": self.base.name} | dict(self.environment)


class _Connection:
    """One client (an adb server) and its streams by our number for them."""

    def __init__(self, device: Adbd, peer: socket.socket) -> None:
        self.device, self._peer = device, peer
        self._streams: dict[int, _Shell | _Sync] = {}
        self._lock = threading.Lock()
        self._next = 1

    def serve(self) -> None:
        """Read messages until the client goes."""
        with contextlib.suppress(OSError, EOFError):
            while True:
                header = _exactly(self._peer, 24)
                command, first, second, length = struct.unpack("<4sIII", header[:16])
                self._message(command, first, second, _exactly(self._peer, length))
        self.end()

    def end(self) -> None:
        """Close, and end what runs for this client."""
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        self._peer.close()
        for one in list(self._streams.values()):
            one.closed()
        self._streams.clear()

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        """One message; checksums are not used from protocol version 0x01000001 on, and harmless before."""
        magic = struct.unpack("<I", command)[0] ^ 0xFFFFFFFF
        header = struct.pack("<4sIIIII", command, first, second, len(data), sum(data) & 0xFFFFFFFF, magic)
        with self._lock, contextlib.suppress(OSError):
            self._peer.sendall(header + data)

    def drop(self, number: int) -> None:
        """A stream of ours has ended."""
        self._streams.pop(number, None)

    def _message(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if command == b"CNXN" and self.device.authorized:
            properties = self.device.properties
            banner = (
                f"device::ro.product.name=edgekit;ro.product.model={properties.get('ro.product.model', '')};"
            )
            banner += "ro.product.device=standin;features=shell_v2,cmd"
            self.send(b"CNXN", _VERSION, _MOST, banner.encode())
        elif command in (b"CNXN", b"AUTH") and not self.device.authorized:
            self.send(
                b"AUTH", 1, 0, os.urandom(20)
            )  # a token to sign: no signature and no key is ever enough
        elif command == b"OPEN":
            self._open(first, data.rstrip(b"\0").decode())
        elif command == b"WRTE" and second in self._streams:
            self.send(b"OKAY", second, first)
            self._streams[second].data(data)
        elif command == b"OKAY" and second in self._streams:
            self._streams[second].taken()
        elif command == b"CLSE" and second in self._streams:
            self._streams.pop(second).closed()

    def _open(self, theirs: int, service: str) -> None:
        ours, self._next = self._next, self._next + 1
        if service.startswith("shell,v2"):
            self.send(b"OKAY", ours, theirs)
            self._streams[ours] = _Shell(self, ours, theirs, service.partition(":")[2])
        elif service == "sync:":
            self.send(b"OKAY", ours, theirs)
            self._streams[ours] = _Sync(self, ours, theirs)
        else:
            self.send(b"CLSE", 0, theirs)


class _Stream:
    """Our end of a stream: one message on its way at a time, as the protocol wants it."""

    def __init__(self, connection: _Connection, ours: int, theirs: int) -> None:
        self._connection, self._ours, self._theirs = connection, ours, theirs
        self._ready = threading.Semaphore(1)
        self._open = True

    def taken(self) -> None:
        """The client has our last message."""
        self._ready.release()

    def write(self, data: bytes) -> None:
        """Send, once the client has taken what came before."""
        for start in range(0, len(data), _MOST // 2):
            self._ready.acquire()
            if self._open:
                self._connection.send(b"WRTE", self._ours, self._theirs, data[start : start + _MOST // 2])

    def finish(self) -> None:
        """Nothing more comes."""
        if self._open:
            self._ready.acquire()
            self._open = False
            self._connection.send(b"CLSE", self._ours, self._theirs)
        self._connection.drop(self._ours)

    def _shut(self) -> None:
        self._open = False
        self._ready.release()


class _Shell(_Stream):
    """A command: stdin, stdout, stderr and exit status as packets on one stream."""

    def __init__(self, connection: _Connection, ours: int, theirs: int, command: str) -> None:
        super().__init__(connection, ours, theirs)
        self._buffer = b""
        shell = shutil.which("mksh") or "/bin/sh"
        self._child = subprocess.Popen(
            [shell, "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=connection.device.command_environment(),
            start_new_session=True,
        )
        threading.Thread(target=self._pump, daemon=True).start()

    def data(self, data: bytes) -> None:
        """Packets from the client."""
        self._buffer += data
        while len(self._buffer) >= 5:
            kind, length = struct.unpack("<BI", self._buffer[:5])
            if len(self._buffer) < 5 + length:
                return
            body, self._buffer = self._buffer[5 : 5 + length], self._buffer[5 + length :]
            assert self._child.stdin is not None
            with contextlib.suppress(OSError, ValueError):
                if kind == _STDIN:
                    self._child.stdin.write(body)
                    self._child.stdin.flush()
                elif kind == _CLOSE_STDIN:
                    self._child.stdin.close()

    def closed(self) -> None:
        """The client is gone: as adbd does, its stdin ends and the process gets SIGHUP."""
        self._shut()
        with contextlib.suppress(OSError, ValueError):
            assert self._child.stdin is not None
            self._child.stdin.close()
        with contextlib.suppress(OSError):
            os.kill(self._child.pid, signal.SIGHUP)

    def _pump(self) -> None:
        pipes = ((_STDOUT, self._child.stdout), (_STDERR, self._child.stderr))
        threads = [threading.Thread(target=self._forward, args=pair, daemon=True) for pair in pipes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        status = self._child.wait()
        code = status if status >= 0 else 128 - status
        self.write(struct.pack("<BIB", _EXIT, 1, code & 0xFF))
        self.finish()

    def _forward(self, kind: int, pipe) -> None:
        while data := os.read(pipe.fileno(), 65536):
            self.write(struct.pack("<BI", kind, len(data)) + data)


class _Sync(_Stream):
    """Files: STAT, SEND, RECV, QUIT."""

    def __init__(self, connection: _Connection, ours: int, theirs: int) -> None:
        super().__init__(connection, ours, theirs)
        near, self._far = socket.socketpair()
        self._near = near
        threading.Thread(target=self._serve, daemon=True).start()

    def data(self, data: bytes) -> None:
        """Bytes from the client, in pieces of any size."""
        with contextlib.suppress(OSError):
            self._near.sendall(data)

    def closed(self) -> None:
        """The client is gone."""
        self._shut()
        self._near.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                command, length = struct.unpack("<4sI", _exactly(self._far, 8))
                if command == b"QUIT":
                    break
                path = _exactly(self._far, length).decode()
                {b"STAT": self._stat, b"SEND": self._receive, b"RECV": self._give}[command](path)
        self.finish()
        self._far.close()

    def _stat(self, path: str) -> None:
        try:
            seen = os.lstat(path)
            answer = (seen.st_mode, min(seen.st_size, 0xFFFFFFFF), int(seen.st_mtime) & 0xFFFFFFFF)
        except OSError:
            answer = (0, 0, 0)
        self.write(struct.pack("<4sIII", b"STAT", *answer))

    def _receive(self, text: str) -> None:
        path, _, mode = text.rpartition(",")
        problem = ""
        try:
            sink = Path(path).open("wb")  # noqa: SIM115
        except OSError as error:
            sink, problem = Path(os.devnull).open("wb"), error.strerror  # noqa: SIM115
        with sink:
            while True:
                command, length = struct.unpack("<4sI", _exactly(self._far, 8))
                if command == b"DONE":
                    break
                data = _exactly(self._far, length)
                try:
                    sink.write(data)
                    sink.flush()
                except OSError as error:
                    problem = problem or error.strerror
        if problem:
            message = f"couldn't write file: {problem}".encode()
            self.write(struct.pack("<4sI", b"FAIL", len(message)) + message)
            return
        Path(path).chmod(stat.S_IMODE(int(mode)))
        self.write(struct.pack("<4sI", b"OKAY", 0))

    def _give(self, path: str) -> None:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            message = f"open failed: {error.strerror}".encode()
            self.write(struct.pack("<4sI", b"FAIL", len(message)) + message)
            return
        for start in range(0, len(data), 65536):
            part = data[start : start + 65536]
            self.write(struct.pack("<4sI", b"DATA", len(part)) + part)
        self.write(struct.pack("<4sI", b"DONE", 0))


def _exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = peer.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


@contextlib.contextmanager
def server():
    """An adb server of the test's own: its port. Yours, with your devices, is left alone."""
    found = shutil.which("adb")
    if found is None:
        raise MissingToolError("adb is not installed: apt install adb")
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="edgekit-adb-home-") as home:
        environment = {**os.environ, "HOME": home, "ANDROID_ADB_SERVER_PORT": str(port)}
        environment |= {"ANDROID_SDK_HOME": home, "ADB_MDNS": "0"}
        argv = [found, "-P", str(port)]
        subprocess.run([*argv, "start-server"], check=True, env=environment, capture_output=True, timeout=60)
        try:
            yield port
        finally:
            subprocess.run(
                [*argv, "kill-server"], check=False, env=environment, capture_output=True, timeout=60
            )
