"""What a process does besides answering: every write outside, every program, every piece of code out of the input."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MEMORY = 2 << 30
"""Bytes that one input may cost."""

_ROOM = 4 << 30
"""Address space beyond what the libraries take: what asks for more hears of it, and is a finding."""

_WRITES = {
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),),
    "os.link": ((0, 2), (1, 3)),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.mknod": ((0, 3),),
    "os.mkfifo": ((0, 2),),
}
"""Audit events that change files: the arguments that are paths, each with that of its folder's descriptor."""

_PROGRAMS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "pty.spawn",
    "socket.connect",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


lenient = False
"""Set where what is asked for is the sender's right (a job names the files that it writes): then it is only refused."""


class EscapedError(BaseException):
    """The input made its reader do what no input may; raised in place of the deed."""


class Sandbox:
    """A folder for one worker: ``box`` holds the input and ``out``; ``canary`` and ``outside`` may not be touched."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.box, self.out = self.root / "box", self.root / "box" / "out"
        self.executed = self.root / "executed"
        for name in ("outside", "tmp", "cache", "home"):
            (self.root / name).mkdir(parents=True)
        (self.root / "canary").write_text("secret")
        self._tmp = str(self.root / "tmp")
        self._allowed = (str(self.out), self._tmp, str(self.root / "cache"), "/dev/null", "/proc/self")
        self._active = False
        self._before: object = None
        self.programs: tuple[str, ...] = ()
        """Programs that a surface starts on purpose."""
        self._settle()
        sys.addaudithook(self._hook)

    def _settle(self) -> None:
        tempfile.tempdir = self._tmp
        os.environ |= {
            "FUZZ_ROOT": str(self.root),
            "TMPDIR": self._tmp,
            "HOME": str(self.root / "home"),
            "XDG_CONFIG_HOME": str(self.root / "home"),
            "XDG_CACHE_HOME": str(self.root / "cache"),
            "EDGEKIT_CACHE": str(self.root / "cache"),
            "EDGEKIT_HISTORY": str(self.root / "cache" / "history.sqlite3"),
        }

    def limit_memory(self) -> None:
        """From here on: what is mapped now, and room for one input."""
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _ROOM, mapped + _ROOM))

    def empty(self) -> Path:
        """The box, with nothing in it but ``out`` and what hostile names point at."""
        for folder in (self.box, self.root / "tmp"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        self.out.mkdir()
        (self.box / "folder").mkdir()
        (self.box / "link").symlink_to("../canary")
        os.mkfifo(self.box / "fifo")
        evil = f"import pathlib\npathlib.Path({str(self.executed)!r}).touch()\ndef model(): return None\n"
        (self.box / "evil.py").write_text(evil)
        os.chdir(self.box)
        return self.box

    def remember(self) -> None:
        """What there is now may not change."""
        self._before = self._look()

    def touched(self) -> str:
        """What was done that may not be; empty if nothing was."""
        if self.executed.exists():
            shutil.rmtree(self.executed) if self.executed.is_dir() else self.executed.unlink()
            return "code of the input was executed"
        return "" if self._look() == self._before else "files outside the given folder have changed"

    def _look(self) -> object:
        """Names, times and sizes of all that may not change; native code is not seen by the hook."""
        found = []
        for folder in (self.root, self.root / "outside", self.root / "home", self.box):
            with os.scandir(folder) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    time = 0 if entry.is_dir(follow_symlinks=False) else status.st_mtime_ns
                    found.append((entry.path, status.st_mode, time, 0 if entry.is_dir() else status.st_size))
        return sorted(found)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise :class:`EscapedError` for what is done inside and must not be."""
        self._active = True
        try:
            yield
        finally:
            self._active = False
        if what := self.touched():
            raise EscapedError(what)

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if not self._active:
            return
        if event == "open":
            self._opened(args)
        elif event in _WRITES:
            for path, folder in _WRITES[event]:
                self._written(args[path], args[folder] if folder is not None else -1)
        elif event in _PROGRAMS and not self._expected(args):
            self._refuse(f"{event} {args[:2]!r}")
        elif event == "exec":
            name = getattr(args[0], "co_filename", "")
            if isinstance(name, str) and name.startswith(str(self.box)):
                self._refuse(f"{name} was executed")

    def _expected(self, args: tuple[object, ...]) -> bool:
        return bool(self.programs) and str(args[0]).endswith(self.programs)

    def _opened(self, args: tuple[object, ...]) -> None:
        path, _, flags = args
        if isinstance(path, int):
            return
        if isinstance(flags, int) and flags & _WRITING:
            self._written(path, -1)
        elif _absolute(path, -1) == str(self.root / "canary"):
            self._refuse("a file outside the given folder was read")

    def _written(self, path: object, folder: object) -> None:
        if isinstance(path, int) or path is None:
            return
        name = _absolute(path, folder)
        if name not in self._allowed and not name.startswith(tuple(f"{place}/" for place in self._allowed)):
            self._refuse(f"a write to {name}")

    def _refuse(self, what: str) -> None:
        if lenient:
            raise PermissionError(what)
        self._active = False  # the error's own way out opens files, too
        raise EscapedError(what)


def _absolute(path: object, folder: object) -> str:
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    if isinstance(folder, int) and folder >= 0:
        name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)  # noqa: PTH115, PTH118
    parent, last = os.path.split(os.path.abspath(name))  # noqa: PTH100
    return os.path.join(os.path.realpath(parent), last)  # noqa: PTH118


def peak() -> int:
    """The most memory that was resident since the last :func:`reset_peak`, in bytes."""
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> int:
    """Begin to count anew; how much is resident now."""
    with suppress(OSError):  # not in every container: then the peak is the process's
        Path("/proc/self/clear_refs").write_text("5")
    return peak()
