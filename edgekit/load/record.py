"""What a factory or data callable read, so that an unchanged build can be recognized without running it.

Light: no torch. The second identical build answers from these records alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import pkgutil
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from edgekit.core.root import PACKAGE
from edgekit.types import sha256_file


@dataclass(frozen=True, kw_only=True)
class Dependency:
    """One file as it was when it was read."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


_IMPORTERS = ("<frozen importlib", str(Path(importlib.__file__).parent) + os.sep, str(pkgutil.__file__))
_active: list[Recorder] = []
_hooked = False


class Recorder:
    """Records every file that is read while it is active: modules imported from outside the installed
    packages, files opened for reading, directories listed, and safetensors files.

    What native code opens by itself (HDF5, video, databases) is not seen. ``dependencies`` is complete
    after the block.
    """

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._written: set[str] = set()
        self.dependencies: tuple[Dependency, ...] = ()

    def __enter__(self) -> Recorder:
        _install_hook()
        self._modules = set(sys.modules)
        self._safetensors = _wrap_safetensors()
        self._safetensors.__enter__()
        _active.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _active.remove(self)
        self._safetensors.__exit__(kind, error, trace)
        for name in set(sys.modules) - self._modules:
            self.saw(getattr(sys.modules[name], "__file__", None) or "")
        if error is None:
            self.dependencies = tuple(d for d in map(_dependency, sorted(self._kept())) if d is not None)

    def saw(self, path: object, mode: object = "r", flags: object = 0) -> None:
        """Note one opened file."""
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str) or not path or path.startswith("<"):
            return
        absolute = os.path.abspath(path)  # noqa: PTH100 - runs inside an audit hook: no allocation-heavy pathlib
        writes = (isinstance(mode, str) and any(c in mode for c in "wax+")) or (
            isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        )
        (self._written if writes else self._paths).add(absolute)

    def _kept(self) -> Iterator[str]:
        skip = _installed_roots()
        for path in self._paths - self._written:
            real = os.path.realpath(path)
            if path.endswith((".pyc", ".pyo")) or real.startswith(("/proc/", "/sys/", "/dev/")):
                continue
            if not (real + os.sep).startswith(skip) and not (path + os.sep).startswith(skip):
                yield path


def _install_hook() -> None:
    """One audit hook for the life of the process (they cannot be removed), idle unless a recorder is active."""
    global _hooked
    if _hooked:
        return

    def hook(event: str, args: tuple[object, ...]) -> None:
        if not _active or event not in ("open", "os.listdir", "os.scandir"):
            return
        if event != "open" and sys._getframe(1).f_code.co_filename.startswith(_IMPORTERS):
            return  # they look through every folder of sys.path, the working directory among them
        for recorder in _active:
            recorder.saw(*args[:3])

    sys.addaudithook(hook)
    _hooked = True


def _dependency(path: str) -> Dependency | None:
    try:
        status = Path(path).stat()
        return Dependency(path=path, size=_size(path), mtime_ns=status.st_mtime_ns, sha256=_digest(path))
    except OSError:  # a temporary file, gone by now: nothing that the next run could compare
        return None


def _size(path: str) -> int:
    """Bytes of a file; of a directory 0, because what counts is which names it holds."""
    return 0 if os.path.isdir(path) else Path(path).stat().st_size  # noqa: PTH112


def _digest(path: str) -> str:
    if not os.path.isdir(path):  # noqa: PTH112
        return sha256_file(Path(path))
    names = sorted(n for n in os.listdir(path) if n != "__pycache__" and not n.startswith("."))  # noqa: PTH208
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def unchanged(dependencies: Iterable[Dependency]) -> bool:
    """Whether every file still has its content: by size and time, else by sha256."""
    for dependency in dependencies:
        try:
            if _size(dependency.path) != dependency.size:
                return False
            if Path(dependency.path).stat().st_mtime_ns == dependency.mtime_ns:
                continue
            if _digest(dependency.path) != dependency.sha256:
                return False
        except OSError:
            return False
    return True


def environment_fingerprint() -> str:
    """sha256 over Python's version and the names and versions of the installed distributions."""
    found: set[str] = set()
    for entry in sys.path:
        with contextlib.suppress(OSError), os.scandir(entry or ".") as items:
            found.update(i.name for i in items if i.name.endswith((".dist-info", ".egg-info")))
    text = "\n".join([sys.version, sysconfig.get_platform(), *sorted(found)])
    return hashlib.sha256(text.encode()).hexdigest()


def _installed_roots() -> tuple[str, ...]:
    roots = {sysconfig.get_path(k) for k in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots |= {*site.getsitepackages(), site.getusersitepackages(), str(PACKAGE)}
    return tuple(sorted({form + os.sep for r in roots if r for form in (r, os.path.realpath(r))}))


@contextlib.contextmanager
def _wrap_safetensors() -> Iterator[None]:
    """Make ``safe_open`` report its file, wherever a module has imported it to: native code opens it."""
    try:
        import safetensors
    except ImportError:
        yield
        return
    original: Any = safetensors.safe_open

    def opened(filename: Any, *args: Any, **kwargs: Any) -> Any:
        for recorder in _active:
            recorder.saw(os.fspath(filename))
        return original(filename, *args, **kwargs)

    _replace("safe_open", original, opened)
    try:
        yield
    finally:
        _replace("safe_open", opened, original)


def _replace(name: str, old: Any, new: Any) -> None:
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is old:
            setattr(module, name, new)
