"""Sees what code reads: an audit hook, and wrappers around ``os.stat``, ``os.environ`` and known native readers.

Nothing is done unless somebody watches. Processes that the code forks (the workers of a data loader) report to this
one; a program that it starts cannot be watched, which is an event too.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import importlib.abc
import importlib.machinery
import inspect
import json
import linecache
import os
import pkgutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Final, Protocol

from edgekit.core import dependency
from edgekit.core.dependency import Stamp, stamp
from edgekit.core.root import OWN, PACKAGE
from edgekit.load import imports


class Seen(enum.StrEnum):
    """What happened."""

    PATH = "path"  # opened for reading, or asked for
    LISTED = "listed"
    WRITTEN = "written"
    VARIABLE = "variable"
    SOURCE = "source"  # compiled; the value is its sha256
    MODULE = "module"  # code of this module runs
    DOUBT = "doubt"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that was seen: of a path its stamp at that moment, of a variable its value."""

    kind: Seen
    name: str
    stamp: Stamp = ()
    value: str | None = None


class Watcher(Protocol):
    """Whom events are told."""

    def see(self, event: Event) -> None:
        """Take note of an event."""
        ...


_watchers: list[Watcher] = []
lock: Final = threading.RLock()
"""Held while an event is told: what watchers keep is theirs to read while they hold it."""


def watchers() -> tuple[Watcher, ...]:
    """Who watches now."""
    return tuple(_watchers)


def start(watcher: Watcher) -> None:
    """Tell ``watcher`` what happens from now on."""
    with lock:
        if not _watchers:
            _install()
        _watchers.append(watcher)


def stop(watcher: Watcher) -> None:
    """No longer."""
    with lock:
        _children.collect()
        _watchers.remove(watcher)
        if not _watchers:
            _uninstall()


def observe(event: Event) -> None:
    """Tell everybody, in the process that began to watch."""
    if os.getpid() != _children.parent:
        _children.report(event)
        return
    with lock:
        for watcher in tuple(_watchers):
            watcher.see(event)


_LONGEST = 4096
"""Bytes of a path, on Linux."""


def path_seen(path: object, kind: Seen = Seen.PATH) -> None:
    """A path was read, listed or written, by whatever does so without Python's knowledge."""
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    if isinstance(path, bytes):
        path = (
            os.fsdecode(path) if len(path) < _LONGEST else ""
        )  # beyond it is a file's content, not its name
    # A reader may be given what is in a file, too.
    if not isinstance(path, str) or not path or path.startswith("<") or "\0" in path or not _watchers:
        return
    absolute = os.path.abspath(path)  # noqa: PTH100 - runs inside an audit hook: no allocation-heavy pathlib
    if absolute.startswith(imports.installed_roots()) or absolute.startswith(tuple(dependency.own)):
        return
    observe(Event(kind=kind, name=absolute, stamp=() if kind is Seen.WRITTEN else stamp(absolute)))


# --- files: the audit hook ------------------------------------------------------------------------------

_IMPORTERS = (
    "<frozen importlib",
    str(Path(importlib.__file__).parent) + os.sep,
    *(str(m.__file__) for m in (pkgutil, linecache, inspect)),
    str(PACKAGE / "load" / "usercode.py"),
)
"""What looks for modules, or at their source: for imports, tracebacks, warnings."""

_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")


def _hook(event: str, args: tuple[object, ...]) -> None:
    if not _watchers:
        return
    if event == "open":
        path, mode, flags = args
        writes = (isinstance(mode, str) and any(c in mode for c in "wax+")) or (
            isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        )
        if writes:
            path_seen(path, Seen.WRITTEN)
        source = isinstance(path, str) and path.endswith(".py")  # a module's is told by what compiles it
        reads = not writes or (isinstance(mode, str) and "+" in mode)
        if reads and not (source and _reader() is _Reader.IMPORT):
            path_seen(path)
    elif event in ("os.listdir", "os.scandir"):
        # Importers look through every folder of sys.path, the working directory among them.
        if not sys._getframe(1).f_code.co_filename.startswith(_IMPORTERS):
            path_seen(args[0] if args[0] is not None else ".", Seen.LISTED)
    elif event in ("os.rename", "os.link", "os.symlink", "os.mkdir"):
        path_seen(args[0 if event == "os.mkdir" else 1], Seen.WRITTEN)
    elif event == "sqlite3.connect":
        path_seen(args[0])
    elif event in ("os.putenv", "os.unsetenv"):
        _assign(args[0], args[1] if event == "os.putenv" else None)
    elif event == "pickle.find_class" and isinstance(args[0], str):
        if imports.is_users(imports.file_of(args[0])):
            observe(Event(kind=Seen.MODULE, name=args[0]))
    elif event in _STARTS:
        _started(event, args)


def _started(event: str, args: tuple[object, ...]) -> None:
    """A program reads what it likes. One that a library starts is believed to read the files it is given only."""
    command = args[1] if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn") else args[0]
    words = command if isinstance(command, list | tuple) else [command]
    if _reader() is _Reader.USER:
        name = os.fsdecode(words[0]) if words and isinstance(words[0], str | bytes) else event
        observe(Event(kind=Seen.DOUBT, name=f"it starts another program ({name})"))
    elif _reader() is _Reader.LIBRARY:
        for word in words:
            if isinstance(word, str | bytes) and os.path.exists(word):  # noqa: PTH110
                path_seen(word)


# --- who reads ------------------------------------------------------------------------------------------


class _Reader(enum.Enum):
    USER = enum.auto()
    LIBRARY = enum.auto()
    IMPORT = enum.auto()  # an installed module while it is imported, or what looks for modules
    OURS = enum.auto()


_STDLIB = tuple(
    {f"{form}{os.sep}" for form in (Path(os.__file__).parent, Path(os.__file__).resolve().parent)}
)
_SITE = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def _reader() -> _Reader:
    """Whose code asks: that of the nearest frame outside the standard library and this module."""
    frame: FrameType | None = sys._getframe(1)
    by_library = False
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_IMPORTERS):  # an import of the user's own was seen before: its code is nearer
            return _Reader.IMPORT
        if file == __file__ or file.startswith("<") or _is_stdlib(file):
            pass
        elif file.startswith(OWN):
            return _Reader.LIBRARY if by_library else _Reader.OURS
        elif imports.is_users(file):
            return _Reader.LIBRARY if by_library else _Reader.USER
        else:
            by_library = True
            if frame.f_code.co_name == "<module>":
                return _Reader.IMPORT
        frame = frame.f_back
    return _Reader.LIBRARY if by_library else _Reader.OURS


def _is_stdlib(file: str) -> bool:
    return file.startswith(_STDLIB) and not any(part in file for part in _SITE)


# --- wrappers while somebody watches --------------------------------------------------------------------

_AMBIENT = frozenset(
    {"HOME", "PATH", "USER", "LOGNAME", "SHELL", "TERM", "COLORTERM", "COLUMNS", "LINES", "PWD", "OLDPWD", "SHLVL", "_",
     "TMPDIR", "TEMP", "TMP", "LANG", "LC_ALL", "LC_CTYPE", "LANGUAGE", "NO_COLOR", "FORCE_COLOR", "CI"}
)  # fmt: skip
"""Variables that say where and how a process runs. That a library asks for one makes no other result."""

_stat: Final = os.stat
_environ: Final = type(os.environ)
_get: Final = _environ.__getitem__
_iterate: Final = _environ.__iter__


_walked: list[str] = []
"""The variable that an import, which looks through all of them, has come to."""


def _stat_seen(path: object, *args: object, **options: object) -> os.stat_result:
    """``os.stat``: that something is there, or is not, decides as much as its content. ``os.path.exists`` asks here."""
    by_path = not isinstance(path, int) and options.get("dir_fd") is None
    if by_path and _reader() in (_Reader.USER, _Reader.LIBRARY):
        path_seen(path)
    return _stat(path, *args, **options)  # type: ignore[arg-type]


def _get_seen(self: os._Environ[str], key: str) -> str:
    name, reader = os.fsdecode(key), _reader()
    passed_by = reader is _Reader.IMPORT and name in _walked
    if reader is _Reader.USER or not (reader is _Reader.OURS or name in _AMBIENT or passed_by):
        observe(Event(kind=Seen.VARIABLE, name=name, value=dependency.variable(name)))
    return _get(self, key)


def _iterate_seen(self: os._Environ[str]) -> Iterator[str]:
    """Code that looks through all variables may use any, but for those that a shell changes by itself. Packages do
    it when they are imported, for names of their own."""
    reader = _reader()
    for key in _iterate(self):
        name = os.fsdecode(key)
        if reader in (_Reader.USER, _Reader.LIBRARY) and name not in _AMBIENT:
            observe(Event(kind=Seen.VARIABLE, name=name, value=dependency.variable(name)))
        _walked[:] = [name] if reader is _Reader.IMPORT else []
        yield key
    _walked.clear()


def _assign(key: object, value: object) -> None:
    name = os.fsdecode(key) if isinstance(key, str | bytes) else ""
    after = os.fsdecode(value) if isinstance(value, str | bytes) else None
    before = dependency.variable(name)
    if before == after:
        dependency.assigned.pop(name, None)
    else:
        dependency.assigned[name] = (before, after)


def _install() -> None:
    _children.begin()
    if not _hooked:  # audit hooks cannot be removed
        sys.addaudithook(_hook)
        _hooked.append(True)
    os.stat = _stat_seen
    for supported in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if _stat in supported:
            supported.add(_stat_seen)
    _environ.__getitem__ = _get_seen  # type: ignore[method-assign]
    _environ.__iter__ = _iterate_seen  # type: ignore[method-assign]
    sys.meta_path.insert(0, _finder)
    _wrap_all()


def _uninstall() -> None:
    os.stat = _stat
    for supported in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        supported.discard(_stat_seen)
    _environ.__getitem__ = _get  # type: ignore[method-assign]
    _environ.__iter__ = _iterate  # type: ignore[method-assign]
    with contextlib.suppress(ValueError):
        sys.meta_path.remove(_finder)
    for reader in _readers:
        reader.put(reader.original)


_hooked: list[bool] = []


# --- modules --------------------------------------------------------------------------------------------


class FromSource(importlib.machinery.SourceFileLoader):
    """Compiles what is in the file now: bytecode in ``__pycache__`` passes for fresh when a file of the same length
    was written within the same second."""

    def get_code(self, fullname: str) -> CodeType:
        """The code, which is an event, and so is the module that runs it."""
        path = self.get_filename(fullname)
        seen_at, data = stamp(path), self.get_data(path)
        source, tree = imports.describe(fullname, path, data, package=self.is_package(fullname))
        imports.sources[fullname] = source
        observe(Event(kind=Seen.SOURCE, name=path, stamp=seen_at, value=source.sha256))
        observe(Event(kind=Seen.MODULE, name=fullname))
        return compile(tree, path, "exec", dont_inherit=True)


class _Finder:
    """Finds what the other finders find; the user's modules are then compiled from their source."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """As :meth:`importlib.abc.MetaPathFinder.find_spec`."""
        others = (f for f in list(sys.meta_path) if f is not self)
        specs = (f.find_spec(name, path, target) for f in others if hasattr(f, "find_spec"))
        spec = next((s for s in specs if s is not None), None)
        if spec is None or spec.loader is None:
            return spec
        if name in NATIVE:
            _wrap_when_imported(spec.loader)
        if not spec.has_location or not spec.origin or not imports.is_users(spec.origin):
            return spec
        if type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = FromSource(spec.name, spec.origin)
        else:  # compiled by the user: what it imports, it says to nobody
            imports.sources[name] = imports.Source(path=spec.origin, sha256="", dynamic=True)
            path_seen(spec.origin)
            observe(Event(kind=Seen.MODULE, name=name))
        return spec


_finder: Final = _Finder()


def _wrap_when_imported(loader: importlib.abc.Loader) -> None:
    execute = loader.exec_module

    def executed(module: ModuleType) -> None:
        execute(module)
        if _watchers:
            _wrap_all()

    loader.exec_module = executed  # type: ignore[method-assign]


# --- forked processes -----------------------------------------------------------------------------------


class _Children:
    """A file without a name into which forked processes write what they see, a line each."""

    def __init__(self) -> None:
        self.parent = os.getpid()
        self._file: int | None = None
        self._read = 0

    def begin(self) -> None:
        """This process watches."""
        if self._file is None or self.parent != os.getpid():
            self.parent, self._read = os.getpid(), 0
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())

    def report(self, event: Event) -> None:
        """Called in a forked process. One write, at the place that all of them share."""
        if self._file is not None:
            os.write(self._file, json.dumps(asdict(event)).encode() + b"\n")

    def collect(self) -> None:
        """Tell what the children saw."""
        if self._file is None or os.getpid() != self.parent:
            return
        size = os.fstat(self._file).st_size
        lines, _, rest = os.pread(self._file, size - self._read, self._read).rpartition(b"\n")
        self._read = size - len(rest)
        for line in lines.splitlines():
            row = json.loads(line)
            observe(
                Event(kind=Seen(row["kind"]), name=row["name"], stamp=tuple(row["stamp"]), value=row["value"])
            )


_children: Final = _Children()


# --- native readers -------------------------------------------------------------------------------------

NATIVE: Final = {
    "safetensors": ("safe_open",),
    "cv2": ("imread", "imreadmulti", "VideoCapture"),
    "h5py": ("File",),
    "soundfile": ("SoundFile", "read", "info", "blocks"),
    "torchaudio": ("load", "info"),
    "torchvision.io": ("read_image", "read_file", "read_video"),
    "torchvision.io.image": ("read_image", "read_file"),
    "pyarrow.parquet": ("read_table", "ParquetFile"),
    "lmdb": ("open",),
    "onnxruntime": ("InferenceSession",),
    "sentencepiece": ("SentencePieceProcessor",),
    "tokenizers": ("Tokenizer",),
    "torch": ("from_file",),
}
"""What opens a file, its first argument, without Python's knowledge, by module."""
METHODS: Final = {"Tokenizer": ("from_file",)}
"""Where it is not the class but a method of it, by the class's name."""


@dataclass(kw_only=True)
class _NativeReader:
    """A native reader, what stands for it while somebody watches, and the modules that hold it by its name."""

    name: str
    original: object
    reporting: _Reporting
    holders: list[ModuleType]

    def put(self, value: object) -> None:
        """Let every module that holds it hold ``value``."""
        for module in self.holders:
            setattr(module, self.name, value)


_readers: list[_NativeReader] = []
_searched: list[int] = [0]
"""How many modules there were when holders were last looked for: user code is watched item by item."""


def _wrap_all() -> None:
    if len(sys.modules) != _searched[0]:
        for module, names in NATIVE.items():
            originals = [(n, vars(sys.modules[module]).get(n)) for n in names if module in sys.modules]
            known = {id(r.original) for r in _readers} | {id(r.reporting) for r in _readers}
            _readers.extend(
                _NativeReader(name=n, original=o, reporting=_Reporting(o, METHODS.get(n, ())), holders=[])
                for n, o in originals
                if callable(o) and id(o) not in known
            )
        modules = [m for m in list(sys.modules.values()) if isinstance(m, ModuleType)]
        for reader in _readers:
            both = {id(reader.original), id(reader.reporting)}  # not ==, which may be an array's
            reader.holders = [m for m in modules if id(vars(m).get(reader.name)) in both]
        _searched[0] = len(sys.modules)
    for reader in _readers:
        reader.put(reader.reporting)


class _Reporting:
    """Calls what it stands for, after its file was noted; else it is that, attributes and instances included."""

    def __init__(self, original: Callable[..., object], methods: Sequence[str] = ()) -> None:
        self.__wrapped__, self._methods = original, methods

    def __call__(self, *args: object, **options: object) -> object:
        if not self._methods:
            path_seen(args[0] if args else next(iter(options.values()), None))
        return self.__wrapped__(*args, **options)

    def __getattr__(self, name: str) -> object:
        found = getattr(self.__wrapped__, name)
        return _Reporting(found) if name in self._methods else found

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[object, ...]:
        return (self.__wrapped__,)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self.__wrapped__)  # type: ignore[arg-type]
