"""The user's own Python: imported without a trace in ``sys.path``, called with a traceback of their own.

Used for factories, data callables and whatever else is written ``file.py:name`` or ``package.module:name``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol, TypeVar, cast, runtime_checkable

from edgekit.core.root import OWN
from edgekit.core.stops import Left
from edgekit.errors import EdgekitError, FactoryError, SourceError, near_names
from edgekit.load.record import Recorder, Session
from edgekit.load.watch import FromSource

T = TypeVar("T")

_PREFIX = "_edgekit_user_"


@runtime_checkable
class _MapStyle(Protocol):
    """A data set that is read by index, as PyTorch's are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


class _Loaded(NamedTuple):
    folder: Path
    file: str
    mtime_ns: int


_loaded: dict[str, _Loaded] = {}  # modules that came from a user's folder, by name


def split(text: str) -> tuple[str, str] | None:
    """``file.py:name`` → both parts; ``None`` when the text is not of that form."""
    where, colon, name = text.rpartition(":")
    if not colon or not where or not all(part.isidentifier() for part in name.split(".")):
        return None
    if where.endswith(".py") or all(part.isidentifier() for part in where.split(".")):
        return where, name
    return None


def run(text: str, function: Callable[[object], T]) -> T:
    """Resolve ``file.py:name`` and give it to ``function``, with the file's siblings importable meanwhile.

    The global random generators are seeded before: unseeded user code gives the same result each time.
    Raises :class:`FactoryError` with the user's part of the traceback when their code raises, and
    :class:`SourceError` when the file, module or name does not exist.
    """
    where, name, folder = _resolve(text)
    with _importable(folder), guarded(text, session(text)):
        module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
        value = _attribute(module, name, where)
        _seed()
        return function(value)


def iterate(text: str) -> Iterator[object]:
    """The items of ``file.py:name``: an iterable, or a function that returns or yields one."""
    folder, running, chance = _resolve(text)[2], session(text), Chance()
    with chance:
        iterator = run(text, lambda value: items(value, text))
    done = object()
    while True:
        # The path is put back between items: the consumer's imports must not see the user's folder.
        with _on_path(folder), guarded(text, running), chance:
            item = next(iterator, done)
        if item is done:
            return
        yield item


def replayed(value: object, what: str) -> Iterator[object]:
    """:func:`items` of an object in memory, drawing the same random numbers on each pass: a data loader that shuffles,
    say. The caller's own generators are left as they are."""
    chance = Chance()
    with chance:
        _seed()
        iterator = items(value, what)
    done = object()
    while True:
        with chance:
            item = next(iterator, done)
        if item is done:
            return
        yield item


class Chance:
    """The states of the global random generators within its blocks, apart from those outside."""

    def __init__(self) -> None:
        self._states: tuple[object, ...] | None = None

    def __enter__(self) -> None:
        self._outside = _states()
        if self._states is not None:
            _restore(self._states)

    def __exit__(self, *exc: object) -> None:
        self._states = _states()
        _restore(self._outside)


def _states() -> tuple[object, ...]:
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    return (
        random.getstate(),
        numpy.random.get_state() if numpy is not None else None,
        torch.get_rng_state() if torch is not None else None,
    )


def _restore(states: tuple[object, ...]) -> None:
    own, numpy, torch = states
    random.setstate(cast("tuple[object, ...]", own))
    if numpy is not None:
        sys.modules["numpy"].random.set_state(numpy)
    if torch is not None:
        sys.modules["torch"].set_rng_state(torch)


def items(value: object, what: str) -> Iterator[object]:
    """A fresh iterator over ``value``, or over what it returns when called. Raises :class:`SourceError` for neither."""
    if callable(value):
        value = value()
    if isinstance(value, Iterable):
        return iter(value)
    if isinstance(value, _MapStyle):
        return (value[i] for i in range(len(value)))
    raise SourceError(
        f"{what} gives a {type(value).__name__}, which cannot be iterated",
        hint="yield the samples one by one, or return a list of them",
    )


def _seed() -> None:
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def _resolve(text: str) -> tuple[str, str, Path]:
    parts = split(text)
    if parts is None:
        raise SourceError(
            f"{text!r} is not of the form file.py:name", hint="write file.py:name or package.module:name"
        )
    where, name = parts
    return where, name, Path(where).resolve().parent if where.endswith(".py") else Path.cwd()


def session(text: str) -> Session:
    """What code of ``file.py:name`` reads belongs to that file's module."""
    return Session(_root(text))


def _root(text: str) -> str:
    where = _resolve(text)[0]
    return _private_name(Path(where).resolve()) if where.endswith(".py") else where


def reads(text: str) -> Recorder:
    """What code of ``file.py:name`` and all that it can reach has read in this process, whenever it is asked."""
    recorder = Recorder()
    recorder.roots.add(_root(text))
    return recorder


@contextlib.contextmanager
def guarded(what: str, running: Session | None = None) -> Iterator[None]:
    """Turn whatever user code raises into a :class:`FactoryError`; its prints go to stderr."""
    argv = sys.argv
    sys.argv = [what]  # a script that parses its command line must not see ours
    try:
        with contextlib.redirect_stdout(sys.stderr), running or Session():
            yield
    except (EdgekitError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: a script without a main guard
        raise FactoryError(
            f"{what} {deed(error)}", hint=_advice(error), user_traceback=user_traceback(error)
        ) from error
    finally:
        sys.argv = argv


def user_traceback(error: BaseException) -> str:
    """The traceback of ``error`` without the frames of edgekit and of the import system."""
    report = traceback.TracebackException.from_exception(error)
    visited: set[int] = set()
    queue: list[traceback.TracebackException | None] = [report]
    while queue:
        part = queue.pop()
        if part is None or id(part) in visited:
            continue
        visited.add(id(part))
        frames = [f for f in part.stack if not f.filename.startswith((OWN, "<frozen importlib"))]
        part.stack = traceback.StackSummary.from_list(frames)
        queue += [part.__cause__, part.__context__, *(part.exceptions or ())]
    return "".join(report.format())


def summary(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def deed(error: BaseException) -> str:
    """What code did that ended so: it raised, or called what ends a process."""
    return f"called {error.call}" if isinstance(error, Left) else f"raised {summary(error)}"


def _advice(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return (
            "it ends the process (sys.exit, os._exit): return or raise instead; what only a script does belongs under "
            'if __name__ == "__main__":'
        )
    if isinstance(error, FileNotFoundError):
        return "relative paths count from the working directory; Path(__file__).parent is the folder of your file"
    if isinstance(error, ModuleNotFoundError):
        return f"install {error.name!r} in edgekit's environment, or put it into the folder of the file"
    return "the error is in that file or what it calls; the traceback shows where"


def refuse_missing(where: str) -> None:
    """Raise :class:`SourceError` for a Python file that is not there. Modules are not looked for: that runs their
    packages' code."""
    path = Path(where).resolve()
    if where.endswith(".py") and not path.is_file():
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise missing(f"there is no file {path}", path.name, near)


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    refuse_missing(str(path))
    name = _private_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, loader=FromSource(name, str(path)))
    if spec is None or spec.loader is None:
        raise SourceError(f"{path} is not a Python file", hint="give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    with contextlib.ExitStack() as on_failure:
        sys.modules[name] = module  # dataclasses and torch look classes up by their module's name
        on_failure.callback(sys.modules.pop, name, None)
        spec.loader.exec_module(module)
        on_failure.pop_all()
    return module


def _private_name(path: Path) -> str:
    return f"{_PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        raise SourceError(
            f"there is no module {error.name!r}",
            hint="give a file (path/to/file.py:name) or a module that can be imported from here",
        ) from error


def _attribute(module: ModuleType, name: str, where: str) -> object:
    value: object = module
    for part in name.split("."):
        if not hasattr(value, part):
            public = [n for n in getattr(value, "__dict__", ()) if not n.startswith("_")]
            raise missing(f"{where} has no attribute {name!r}", part, public)
        value = getattr(value, part)
    return value


def missing(message: str, name: str, existing: list[str]) -> SourceError:
    """A :class:`SourceError` that offers the nearest of the names that exist."""
    return SourceError(message, hint=near_names(name, existing))


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the modules in ``folder`` be imported, and win over installed ones of the same name."""
    _forget_stale(folder)
    offered = _offered(folder)
    hidden = {n: sys.modules.pop(n) for n in list(sys.modules) if _is_shadowed(n, folder, offered)}
    before = set(sys.modules)
    importlib.invalidate_caches()
    try:
        with _on_path(folder):
            yield
    finally:
        tops = {name.partition(".")[0] for name in hidden}
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in tops:
                del sys.modules[name]
            elif _is_in(sys.modules[name], folder):
                _loaded[name] = _Loaded(folder, *_stamp(sys.modules[name]))
        sys.modules.update(hidden)


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _forget_stale(folder: Path) -> None:
    """Drop what an earlier source brought in: the next may have a sibling of the same name.

    Modules of the same folder stay, so that a factory and a data callable in one file share its state,
    unless one of their files has changed.
    """
    changed = any(
        _stamp(sys.modules.get(n)) != (m.file, m.mtime_ns) for n, m in _loaded.items() if m.folder == folder
    )
    for name, module in list(_loaded.items()):
        if module.folder == folder and not changed:
            continue
        if module.folder == folder or not name.startswith(_PREFIX):
            sys.modules.pop(name, None)
            del _loaded[name]


def _stamp(module: ModuleType | None) -> tuple[str, int]:
    file = str(getattr(module, "__file__", "") or "")
    return file, Path(file).stat().st_mtime_ns if file and Path(file).exists() else 0


def _offered(folder: Path) -> frozenset[str]:
    """The modules and packages that lie in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        names = [e.name.removesuffix(".py") for e in entries if e.name.endswith(".py") or e.is_dir()]
        return frozenset(
            n for n in names if (folder / f"{n}.py").is_file() or (folder / n / "__init__.py").is_file()
        )
    return frozenset()


def _is_shadowed(name: str, folder: Path, offered: frozenset[str]) -> bool:
    top = name.partition(".")[0]
    if top not in offered or top in sys.stdlib_module_names or top == "edgekit" or name.startswith(_PREFIX):
        return False
    return not _is_in(sys.modules[name], folder)


def _is_in(module: ModuleType | None, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return bool(file) and Path(str(file)).resolve().is_relative_to(folder)
