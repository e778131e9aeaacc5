"""Looking at a device's SSH host keys, and trusting them only when the user says so."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.devices.protocol import plain
from edgekit.errors import ToolMissingError, UnreachableError

if TYPE_CHECKING:
    from edgekit.devices.transports.ssh import SshOptions


@dataclass(frozen=True, kw_only=True)
class HostKey:
    """One host key: its line for ``known_hosts``, and the fingerprint to compare with the device's own."""

    line: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """What ``ssh`` would connect to, by the user's configuration (``ssh -G``)."""

    hostname: str
    port: str
    known_hosts: Path


def resolve(options: SshOptions) -> Endpoint:
    """Host name, port and ``known_hosts`` file after aliases and ``~/.ssh/config``."""
    argv = [_tool("ssh"), "-G"]
    if options.config is not None:
        argv += ["-F", str(options.config)]
    if options.port is not None:
        argv += ["-p", str(options.port)]
    text = subprocess.run(
        [*argv, "--", options.host], capture_output=True, text=True, check=False, timeout=20
    )
    if text.returncode:
        raise UnreachableError(
            f"ssh does not take the address {options.host!r}: {_last_line(text.stderr)}",
            hint="give HOST or USER@HOST, or a name of ~/.ssh/config",
        )
    values = dict(line.split(" ", 1) for line in text.stdout.splitlines() if " " in line)
    name = values.get("hostkeyalias") or values["hostname"]
    files = values.get("userknownhostsfile", "~/.ssh/known_hosts").split()
    return Endpoint(hostname=name, port=values["port"], known_hosts=Path(files[0]).expanduser())


def scan(endpoint: Endpoint, *, timeout_s: int = 10) -> tuple[HostKey, ...]:
    """The keys that the device offers now. They prove nothing until somebody compares the fingerprints.

    Raises :class:`UnreachableError` when it offers none.
    """
    argv = [_tool("ssh-keyscan"), "-T", str(timeout_s), "-p", endpoint.port, "--", endpoint.hostname]
    found = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout_s + 10)
    lines = sorted(line for line in found.stdout.splitlines() if line and not line.startswith("#"))
    if not lines:
        raise UnreachableError(
            f"{endpoint.hostname} port {endpoint.port} offers no host key: {found.stderr.strip()[-200:]}",
            hint="check its power, the network and the address; behind a ProxyJump add the key by hand",
        )
    return tuple(HostKey(line=line, fingerprint=_fingerprint(line)) for line in lines)


def trust(endpoint: Endpoint, keys: Sequence[HostKey]) -> None:
    """Append the keys to the user's ``known_hosts`` (mode 0600), those that are there already left out."""
    path = endpoint.known_hosts
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    have = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
    new = [key.line for key in keys if key.line not in have]
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in new)


def _fingerprint(line: str) -> str:
    argv = [_tool("ssh-keygen"), "-l", "-f", "-"]
    found = subprocess.run(argv, input=line + "\n", capture_output=True, text=True, check=False, timeout=10)
    if found.returncode:
        raise UnreachableError(
            f"the device's host key is none: {_last_line(found.stderr)}",
            hint="look at the device, and at what answers at its address",
        )
    return found.stdout.strip()


def _last_line(said: str) -> str:
    lines = plain(said).strip().splitlines()
    return lines[-1][-200:] if lines else "it does not say why"


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ToolMissingError(f"{name} is not installed", hint="install the OpenSSH client (openssh-client)")
    return path
