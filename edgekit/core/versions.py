"""Versions of what runs a step, read without importing it; part of every cache key and manifest."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
import sys
import sysconfig
from pathlib import Path

from edgekit.core import plugins
from edgekit.core.root import PACKAGE


def of(*distributions: str) -> dict[str, str]:
    """Installed versions, ``""`` where a distribution is missing; edgekit's own code always included."""
    return {"edgekit": code(), "python": platform.python_version()} | {d: installed(d) for d in distributions}


EDGEKIT = "0.1.0"
"""edgekit's own version; the wheel's is read from this line."""


ABOVE = ("__main__.py", "cli", "diff", "package", "report", "search", "sweep")
"""What no step can run: the rooms that the import contract puts above all steps."""


@functools.cache
def code(*, above: bool = False) -> str:
    """sha256 over what a step can run of edgekit, the files that run on devices, and other plug-ins: a change to any
    of them invalidates cached steps. ``above``: the rooms above the steps as well.

    Not finer, by what a step's module imports: an agent is sent to a device as files, backends and operators are
    imported by names that are put together, and a result that is served wrongly costs more than one made again.
    """
    hasher = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        if above or place.parts[0] not in ABOVE:
            hasher.update(str(place).encode() + b"\0" + path.read_bytes())
    for plugin in plugins.plugins():
        for path in sorted(plugin.data.glob("*/runner*.py")):
            hasher.update(f"{plugin.name}/{path.parent.name}/{path.name}\0".encode() + path.read_bytes())
        modules = (
            *plugin.backends.values(),
            *plugin.loaders.values(),
            *plugin.rules.values(),
            *plugin.steps.values(),
        )
        for package in sorted({m.partition(".")[0] for m in modules} - {"edgekit"}):
            for path in _sources(package):
                hasher.update(f"{package}/{path.name}\0".encode() + path.read_bytes())
    return hasher.hexdigest()[:16]


def _sources(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    if places is not None:
        return sorted(path for place in places for path in Path(place).rglob("*.py"))
    return [Path(spec.origin)] if spec is not None and spec.origin else []


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
    import importlib.metadata  # a fifth of the command line's start-up time

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def digest(*parts: str) -> str:
    """One sha256 over several."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
