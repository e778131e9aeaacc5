"""A real OpenSSH server on loopback as an unprivileged user: a device for tests.

As root it runs in a mount namespace of its own, as a user who exists only there, so that nothing of this
machine is changed; as anybody else it runs as that user. Clients use :attr:`Sshd.config`, an ssh_config with the
host ``device`` in it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

USER, UID = "bench", 20_321


class MissingToolError(Exception):
    """This machine lacks a program that the test-bed needs; the message says which and how to get it."""


@dataclass(kw_only=True)
class Sshd:
    """Start with ``with``. ``environment`` is set for every session on the device (``{base}`` is its own folder);
    ``login_noise`` is what its log-in scripts print. As root only: ``tmp_size`` makes its temporary folder a disk of
    that size, ``read_only`` names what cannot be written there (``home``, or ``all``), ``own_boot_id`` lets
    :meth:`restart` be told."""

    environment: Mapping[str, str] = field(default_factory=dict)
    login_noise: str = ""
    server_options: tuple[str, ...] = ()
    tmp_size: str = ""
    read_only: str = ""
    own_boot_id: bool = False
    shares_network: ClassVar[bool] = True
    address: str = field(init=False, default="127.0.0.1")
    base: Path = field(init=False)
    port: int = field(init=False)

    def __enter__(self) -> Sshd:
        self.base = Path(tempfile.mkdtemp(prefix="edgekit-testbed-"))
        self.base.chmod(0o755)
        try:
            self._prepare()
            self._start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._remove()

    # --- what a test asks for -------------------------------------------------------------------------

    @property
    def config(self) -> Path:
        """The client's configuration: ``ssh -F CONFIG device``."""
        return self.base / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        """The client's list of host keys."""
        return self.base / "known_hosts"

    @property
    def tmp(self) -> Path:
        """The device's folder for temporary files."""
        return self.base / "tmp"

    @property
    def python(self) -> str:
        """The interpreter on the device."""
        if os.geteuid() != 0:
            return sys.executable
        return str(self.base / "python" / "bin" / Path(sys.executable).resolve().name)

    def processes(self) -> list[str]:
        """Command lines of the device's user, without sshd's own."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if os.geteuid() == 0 and entry.stat().st_uid != UID:
                    continue
                environment = (entry / "environ").read_bytes()
                line = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                )
            except OSError:
                continue
            if str(self.tmp).encode() in environment and line and "sshd" not in line.split()[0]:
                found.append(line)
        return found

    @property
    def disk(self) -> Path:
        """The device's folder for temporary files as the device sees it: with ``tmp_size``, a disk of its own."""
        return Path(f"/proc/{self._server.pid}/root{self.tmp}") if self.tmp_size else self.tmp

    def left_over(self) -> list[str]:
        """What remains in the device's temporary folder."""
        return sorted(p.name for p in self.disk.iterdir())

    def settled(self, seconds: float = 30.0) -> tuple[list[str], list[str]]:
        """Processes and folders left, once they are gone or the time is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and (self.processes() or self.left_over()):
            time.sleep(0.1)
        return self.processes(), self.left_over()

    def stop(self) -> None:
        """End the server, then its sessions."""
        sessions = self._sessions()
        if self._server.poll() is None:
            os.killpg(self._server.pid, signal.SIGTERM)
            try:
                self._server.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self._server.pid, signal.SIGKILL)
                self._server.wait()
        _kill(sessions)

    def restart(self) -> None:
        """What a power cut looks like from outside: the sessions are gone, and the next start's id is another."""
        (self.base / "boot_id").write_text(f"{uuid.uuid4()}\n")
        self.drop_sessions()

    def drop_sessions(self) -> None:
        """End every session's server process: the client sees its connection reset."""
        _kill(self._sessions())

    def _sessions(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self._server.pid:
                try:
                    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    name = (entry / "comm").read_text()
                except (OSError, IndexError, ValueError):
                    continue
                if name.startswith("sshd") and self._descends(parent):
                    found.append(int(entry.name))
        return found

    def _descends(self, pid: int) -> bool:
        while pid > 1:
            if pid == self._server.pid:
                return True
            try:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError, ValueError):
                return False
        return False

    # --- setting it up --------------------------------------------------------------------------------

    def _prepare(self) -> None:
        for name in ("home", "tmp"):
            (self.base / name).mkdir()
        for key in ("host", "client"):
            _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "testbed", "-f", str(self.base / key))
        self.port = _free_port()
        public = (self.base / "host.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[{self.address}]:{self.port} {' '.join(public)}\n")
        shutil.copy(self.base / "client.pub", self.base / "authorized_keys")
        (self.base / "sshd_config").write_text(self._server_config())
        self.config.write_text(self._client_config())
        (self.base / "home" / ".profile").write_text("")
        if self.login_noise:
            for name in (".bashrc", ".profile"):
                (self.base / "home" / name).write_text(f"echo {shlex.quote(self.login_noise)}\n")
        if os.geteuid() == 0:
            self._prepare_root()

    def _prepare_root(self) -> None:
        entry = f"{USER}:x:{UID}:{UID}:test-bed:{self.base / 'home'}:/bin/bash\n"
        (self.base / "passwd").write_text(Path("/etc/passwd").read_text() + entry)
        (self.base / "group").write_text(Path("/etc/group").read_text() + f"{USER}:x:{UID}:\n")
        for name in ("python", "packages"):
            (self.base / name).mkdir()
        for path in [self.base / n for n in ("home", "tmp", "host", "authorized_keys")]:
            os.chown(path, UID, UID)
        for path in (self.base / "home").iterdir():
            os.chown(path, UID, UID)

    def _server_config(self) -> str:
        environment = {"TMPDIR": str(self.tmp), "PYTHONPATH": self._packages()}
        if self.shares_network:  # or devices of tests that run side by side would find each other busy
            environment["EDGEKIT_LOCK"] = self.base.name
        environment |= {k: v.replace("{base}", str(self.base)) for k, v in self.environment.items()}
        if os.geteuid() == 0:
            environment["LD_LIBRARY_PATH"] = str(self.base / "python" / "lib")  # of a shared build
        quoted = " ".join(f'"{k}={v}"' for k, v in environment.items())
        lines = [
            f"Port {self.port}",
            f"ListenAddress {self.address}",
            f"HostKey {self.base / 'host'}",
            f"AuthorizedKeysFile {self.base / 'authorized_keys'}",
            f"PidFile {self.base / 'tmp.pid'}",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            "MaxStartups 100",
            "MaxSessions 50",
            f"SetEnv {quoted}",
            *self.server_options,
        ]
        return "\n".join(lines) + "\n"

    def _packages(self) -> str:
        own = sysconfig.get_paths()["purelib"]
        return str(self.base / "packages") if os.geteuid() == 0 else own

    def _client_config(self) -> str:
        user = USER if os.geteuid() == 0 else None
        lines = [
            "Host device",
            f"  HostName {self.address}",
            f"  Port {self.port}",
            *([f"  User {user}"] if user else []),
            f"  IdentityFile {self.base / 'client'}",
            "  IdentitiesOnly yes",
            "  IdentityAgent none",
            f"  UserKnownHostsFile {self.known_hosts}",
            "  GlobalKnownHostsFile /dev/null",
        ]
        return "\n".join(lines) + "\n"

    def _start(self) -> None:
        server = [_find("sshd"), "-D", "-e", "-f", str(self.base / "sshd_config")]
        argv = self._namespace(server) if os.geteuid() == 0 else server
        log = (self.base / "sshd.log").open("wb")
        with log:
            self._server = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._launched()
        for _ in range(200):
            if self._server.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex((self.address, self.port)) == 0:
                    return
            time.sleep(0.05)
        raise MissingToolError(f"sshd did not start: {(self.base / 'sshd.log').read_text()[-500:]}")

    def _launched(self) -> None:
        """The server's process has been started (for those who have more to do then)."""

    def _namespace(self, server: list[str]) -> list[str]:
        base = self.base
        mounts = [
            (base / "passwd", "/etc/passwd"),
            (base / "group", "/etc/group"),
            (sys.base_prefix, base / "python"),
            (sysconfig.get_paths()["purelib"], base / "packages"),
        ]
        if self.own_boot_id:
            (base / "boot_id").write_text(f"{uuid.uuid4()}\n")
            mounts.append((base / "boot_id", "/proc/sys/kernel/random/boot_id"))
        sealed = {"": [], "home": [base / "home"], "all": ["/tmp", "/var/tmp"]}[self.read_only]
        steps = [["mount", "--bind", place, place] for place in sealed]
        steps += [["mount", "-o", "remount,bind,ro", place] for place in sealed]
        steps += [["mount", "--bind", a, b] for a, b in mounts]
        if self.tmp_size:
            size = f"size={self.tmp_size},mode=1777"
            steps.append(["mount", "-t", "tmpfs", "-o", size, "tmpfs", self.tmp])
        script = "".join(f"{shlex.join(map(str, step))} && " for step in steps)
        drop = [_find("setpriv"), f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *server]
        return [
            *(_find("unshare"), "--mount", "--propagation", "private", "sh", "-c"),
            script + "exec " + shlex.join(drop),
        ]

    def _remove(self) -> None:
        shutil.rmtree(self.base, ignore_errors=True)


_PACKAGES = {
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}


def _find(program: str) -> str:
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise MissingToolError(f"{program} is not installed: apt install {_PACKAGES.get(program, program)}")
    return path


def call(*argv: str | Path) -> None:
    """Run a program; its failure is a :class:`MissingToolError` with its last words."""
    done = subprocess.run(
        argv,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.strip()]
        raise MissingToolError(
            f"{Path(argv[0]).name} failed: {said[-1].strip() if said else done.returncode}"
        )


def _kill(processes: list[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _call(program: str, *arguments: str) -> None:
    subprocess.run([_find(program), *arguments], check=True, stdin=subprocess.DEVNULL, capture_output=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
