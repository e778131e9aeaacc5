"""Wheels for another machine's Python, found by pip on this one and never installed here."""

from __future__ import annotations

import email.parser
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.core import plugins
from edgekit.core.files import DAMAGED_ZIP
from edgekit.errors import DeviceError, ToolMissingError, UsageError
from edgekit.types import sha256_file

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_OLDEST_GLIBC = {"x86_64": 5, "i686": 5}
_LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
_PIP_S = 600


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A device's Python: ``version`` (3, 11, 2); ``machine`` of its own programs (a 32-bit Python on a 64-bit
    kernel is ``armv7l``); ``libc`` and its version; ``packages`` it has, by normalized name."""

    version: tuple[int, int, int]
    machine: str
    libc: str
    libc_version: tuple[int, int]
    packages: Mapping[str, str]

    @property
    def tag(self) -> str:
        """``cp311``."""
        return f"cp{self.version[0]}{self.version[1]}"

    def platforms(self) -> tuple[str, ...]:
        """Platform tags of wheels that can run there, newest first (PEP 600 and PEP 656)."""
        major, minor = self.libc_version
        if self.libc == "musl":
            return tuple(f"musllinux_{major}_{m}_{self.machine}" for m in range(minor, -1, -1))
        tags = []
        for m in range(minor, _OLDEST_GLIBC.get(self.machine, 17) - 1, -1):
            tags.append(f"manylinux_{major}_{m}_{self.machine}")
            if m in _LEGACY:
                tags.append(f"{_LEGACY[m]}_{self.machine}")
        return tuple(tags)

    def environment(self) -> dict[str, str]:
        """What environment markers (PEP 508) mean there."""
        return {
            "implementation_name": "cpython",
            "implementation_version": ".".join(map(str, self.version)),
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": ".".join(map(str, self.version)),
            "python_version": f"{self.version[0]}.{self.version[1]}",
            "sys_platform": "linux",
            "extra": "",
        }


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One file to install. ``unpacked`` is its size in bytes on the device."""

    path: Path
    name: str
    version: str
    sha256: str
    unpacked: int


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The wheels of one backend; ``own`` names what the device has already and no wheel was found for."""

    backend: str
    wheels: tuple[Wheel, ...]
    own: tuple[str, ...] = ()


def installable() -> tuple[str, ...]:
    """The backends whose runtimes come as wheels."""
    return tuple(name for name in plugins.backends() if plugins.info(name).wheels)


class _NoWheelError(Exception):
    """pip found nothing for this requirement."""


def resolve(backend: str, python: Interpreter, folder: Path) -> Resolved:
    """Download into ``folder`` what ``backend`` needs on ``python``, its dependencies included.

    The versions installed here are preferred: an artifact then meets the runtime that it was built with. Raises
    :class:`UsageError` for a backend whose runtime is in no index, :class:`ToolMissingError` without pip, and
    :class:`DeviceError` when there are no wheels for that Python.
    """
    candidates = plugins.info(backend).wheels
    if not candidates:
        raise UsageError(
            f"the runtime of {backend} cannot be installed by edgekit",
            hint=f"install it on the device as its vendor says; edgekit installs {', '.join(installable())}",
        )
    problems = []
    for candidate in candidates:
        try:
            return _Resolver(backend, python, folder).run(candidate)
        except _NoWheelError as error:
            problems.append(str(error))
    version = ".".join(map(str, python.version))
    libc = f"{python.libc} {'.'.join(map(str, python.libc_version))}"
    raise DeviceError(
        f"there are no wheels of {backend} for Python {version} on {python.machine} with {libc}: "
        + "; ".join(problems),
        hint="use a newer Python there (its row: python = …), or install the runtime there by hand; an index of your "
        "own (32-bit Raspberry Pi OS: piwheels) counts if pip here is configured for it",
    )


class _Resolver:
    """Requirements one by one, markers read for the device: pip itself would read them for this machine."""

    def __init__(self, backend: str, python: Interpreter, folder: Path) -> None:
        self._backend, self._python, self._folder = backend, python, folder
        self._wheels: dict[str, Wheel] = {}
        self._own: list[str] = []

    def run(self, candidate: tuple[str, ...]) -> Resolved:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name

        limits = {canonicalize_name((r := Requirement(text)).name): r.specifier for text in candidate}
        waiting = [Requirement(text) for text in candidate]
        while waiting:
            requirement = waiting.pop(0)
            name = canonicalize_name(requirement.name)
            requirement.specifier &= limits.get(name, requirement.specifier)
            if name in self._wheels or name in self._own:
                continue
            wheel = self._one(requirement, name)
            if wheel is not None:
                self._wheels[name] = wheel
                waiting += self._needs(wheel)
        own = tuple(f"{name} {self._python.packages[name]}" for name in self._own)
        return Resolved(backend=self._backend, wheels=tuple(self._wheels.values()), own=own)

    def _one(self, requirement: Requirement, name: str) -> Wheel | None:
        """A wheel, or ``None`` where the device's own package has to do."""
        text = f"{requirement.name}{requirement.specifier}"
        here = _installed(name)
        tries = [f"{requirement.name}=={here}"] if here and requirement.specifier.contains(here) else []
        for wanted in [*tries, text]:
            found = self._download(wanted)
            if found is not None:
                return found
        there = self._python.packages.get(name)
        if there is not None and _contains(requirement, there):
            self._own.append(name)
            return None
        raise _NoWheelError(f"no wheel for {text}")

    def _download(self, requirement: str) -> Wheel | None:
        into = self._folder / re.sub(r"[^A-Za-z0-9.]", "_", f"{self._backend}-{requirement}")
        into.mkdir(exist_ok=True)
        python = self._python
        argv = [sys.executable, "-m", "pip", "download", "--no-input", "--quiet", "--no-deps"]
        argv += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python.tag[2:]}"]
        argv += [f"--abi={abi}" for abi in (python.tag, "abi3", "none")]
        argv += [f"--platform={tag}" for tag in python.platforms()]
        done = _pip([*argv, f"--dest={into}", "--", requirement])
        found = sorted(into.glob("*.whl"))
        if done.returncode == 0 and len(found) == 1:
            return read_wheel(found[0])
        said = done.stderr.strip()
        if "No module named pip" in said:
            raise ToolMissingError("pip is not installed here", hint=f"{sys.executable} -m ensurepip")
        if "No matching distribution" in said or "Could not find a version" in said:
            return None
        last = said.splitlines()[-1] if said else f"pip ended with {done.returncode}"
        raise ToolMissingError(
            f"pip could not download {requirement}: {last}",
            hint="check the network and pip's configuration (pip config list)",
        )

    def _needs(self, wheel: Wheel) -> Iterator[Requirement]:
        from packaging.requirements import Requirement

        for text in _metadata(wheel.path).get_all("Requires-Dist") or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(self._python.environment()):
                yield requirement


def _contains(requirement: Requirement, version: str) -> bool:
    """Whether a version that a device names will do; what is none will not."""
    from packaging.version import InvalidVersion

    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _pip(argv: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COLOR": "1"}
    try:
        return subprocess.run(
            argv,
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            timeout=_PIP_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolMissingError(
            f"pip did not finish within {_PIP_S} s", hint="check the network, then run it again"
        ) from error


def read_wheel(path: Path) -> Wheel:
    """A wheel's name and version as its metadata has them."""
    fields = _metadata(path)
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(item.file_size for item in archive.infolist())
    return Wheel(
        path=path,
        name=str(fields["Name"]),
        version=str(fields["Version"]),
        sha256=sha256_file(path),
        unpacked=unpacked,
    )


def _metadata(path: Path) -> email.message.Message:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            return email.parser.Parser().parsestr(archive.read(name).decode("utf-8"))
    except (*DAMAGED_ZIP, StopIteration) as error:
        raise ToolMissingError(
            f"{path.name} is no wheel: {error}", hint="empty pip's cache: pip cache purge"
        ) from error


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
