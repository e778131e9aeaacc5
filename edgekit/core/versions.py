"""Versions of what runs a step, read without importing it; part of every cache key and manifest."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import sys
import sysconfig
from pathlib import Path

from edgekit.core.root import PACKAGE


def of(*distributions: str) -> dict[str, str]:
    """Installed versions, ``""`` where a distribution is missing; edgekit's own code always included."""
    return {"edgekit": code(), "python": platform.python_version()} | {d: installed(d) for d in distributions}


EDGEKIT = "0.1.0"
"""edgekit's own version; the wheel's is read from this line."""


@functools.cache
def code() -> str:
    """sha256 over edgekit's own source files: a change to any of them invalidates cached steps."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def environment() -> str:
    """sha256 over Python and what is installed: of every distribution the list of its files with their digests, so
    that one that was installed again under the same version is another."""
    metadata: set[str] = set()
    for entry in sys.path:
        with contextlib.suppress(OSError), os.scandir(entry or ".") as items:
            metadata.update(i.path for i in items if i.name.endswith((".dist-info", ".egg-info")))
    return _environment(tuple(sorted(metadata)))


@functools.lru_cache(maxsize=4)
def _environment(metadata: tuple[str, ...]) -> str:
    text = "\n".join([sys.version, sysconfig.get_platform(), *sorted(map(_contents, metadata))])
    return hashlib.sha256(text.encode()).hexdigest()


def _contents(metadata: str) -> str:
    name = os.path.basename(metadata)  # noqa: PTH119
    try:
        with open(os.path.join(metadata, "RECORD"), "rb") as file:  # noqa: PTH118, PTH123
            return f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError:  # an old format without one
        return name


@functools.cache
def machine() -> dict[str, str | int]:
    """What can change the numbers that an artifact computes here: processor, threads, system."""
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "python": sys.version.split()[0],
    }


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as f:
            for line in f:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def installed(*distributions: str) -> str:
    """The version of the first of these that is installed; ``""`` where none is."""
    return next(filter(None, map(_version, distributions)), "")


@functools.cache
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def digest(*parts: str) -> str:
    """One sha256 over several."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
