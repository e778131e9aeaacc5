"""Devices with addresses of their own: each an sshd in its own network namespace, behind a veth pair.

Root only. The pairs vanish with their namespaces; nothing else of this machine's network is touched.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from testbed.sshd import MissingToolError, Sshd, _find


@dataclass(kw_only=True)
class NetworkDevice(Sshd):
    """The ``number``-th device, at 10.77.NUMBER.2."""

    shares_network: ClassVar[bool] = False
    number: int

    def __post_init__(self) -> None:
        if os.geteuid() != 0:
            raise MissingToolError("devices with their own addresses need root (network namespaces)")
        self.address = f"10.77.{self.number}.2"

    @property
    def _here(self) -> str:
        return f"ek{os.getpid() % 100_000}-{self.number}"

    def _namespace(self, server: list[str]) -> list[str]:
        unshare, *words, script = super()._namespace(server)
        ip = shlex.quote(_find("ip"))
        wait = f"until {ip} link show eth0 >/dev/null 2>&1; do sleep 0.02; done"
        up = f"{ip} addr add {self.address}/30 dev eth0 && {ip} link set eth0 up && {ip} link set lo up"
        return [unshare, "--net", *words, f"{wait} && {up} && {script}"]

    def _launched(self) -> None:
        """Lay the cable once the namespace is there."""
        own = Path("/proc/self/ns/net").readlink()
        for _ in range(200):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{self._server.pid}/ns/net").readlink() != own:
                    break
            time.sleep(0.02)
        ip, pid = _find("ip"), str(self._server.pid)
        for argv in (
            ["link", "add", self._here, "type", "veth", "peer", "name", "eth0", "netns", pid],
            ["addr", "add", f"10.77.{self.number}.1/30", "dev", self._here],
            ["link", "set", self._here, "up"],
        ):
            done = subprocess.run([ip, *argv], check=False, capture_output=True, text=True)
            if done.returncode:
                raise MissingToolError(f"this machine cannot make network devices: {done.stderr.strip()}")


@contextlib.contextmanager
def fleet(count: int) -> Iterator[list[NetworkDevice]]:
    """``count`` devices, up together."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(NetworkDevice(number=i + 1)) for i in range(count)]
