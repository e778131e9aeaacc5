"""Runs a plan of tasks on the device, each in a fresh process, and lets none of them outlive its host.

The plan is one JSON line on stdin. After it the host sends a line now and then: its heartbeat. When stdin
ends, when the heartbeat stays away or when a line says ``cancel``, the running process group is killed and
the supervisor ends. Each task's outcome is appended to a journal before it is sent, so that after a broken
link the same plan, sent again, gives what was measured already and goes on from there.

Plan: ``tasks`` (``id``, ``argv``, ``job``, ``timeout`` in seconds), ``journal`` (a path), ``heartbeat``
(seconds without a sign of life after which the host counts as gone), ``lock`` (who asks, or null: no lock),
``state_s`` (seconds between two looks at the device's state, 0: none), ``governor`` (for the time of the plan),
``linger`` (seconds for which the running task goes on without its host, 0: not at all).

With ``linger`` a broken link does not end what takes long: the task runs to its end, its outcome is in the journal, and
a supervisor that comes with the same plan waits for it. A host that has ended (its folder here is gone) is not waited
for, nor one that says ``cancel``.

Events: ``busy`` (and who holds the device), ``refused`` (the governor cannot be set), ``started``, ``line`` (one of
the task's own events), ``ended``, ``state``, ``beat``, ``bye`` (last; its ``why`` is done, cancelled, host-gone or
heartbeat-lost).
"""

from __future__ import annotations

import collections
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Deque, Dict, Iterator, List, Optional, Tuple

from . import lock, state
from .channel import Channel, Message, encode
from .governor import GovernorError, Keeper

_BEAT_S = 2.0
_MAX_LINE = 64 * 1024 * 1024
_LAST_WORDS_S = 2.0


def main() -> int:
    """Read the plan, do it."""
    channel = Channel()
    try:
        plan, rest = _first_line()
    except (ValueError, RecursionError) as error:
        sys.stderr.write("this is no plan: %s\n" % error)
        return 2
    if plan is None:
        return 2
    ours = None
    if plan.get("lock"):
        try:
            ours = lock.acquire(plan["lock"]) or _after_our_own(channel, plan, rest)
        except HostLostError as gone:
            channel.send("bye", why=str(gone))
            return 3
        if ours is None:
            channel.send("busy", holder=lock.holder())
            return 4
    keeper = None
    try:
        if plan.get("governor"):
            keeper = Keeper(plan["governor"])
        why = Supervisor(channel, plan, rest).work()
    except GovernorError as error:
        channel.send("refused", kind=error.kind, problem=str(error))
        return 5
    finally:
        if keeper is not None:
            keeper.release()
        if ours is not None:
            ours.release()
    with suppress(OSError):  # a host that is away cannot be told
        channel.send("bye", why=why)
    return 0 if why == "done" else 3


def _after_our_own(channel: Channel, plan: Message, rest: bytes) -> Optional[lock.Lock]:
    """The lock, once the supervisor has let go that went on with this very plan while its host was away; ``None`` where
    somebody else has it."""
    if not plan.get("linger"):
        return None
    host = Host(float(plan["heartbeat"]), rest)
    told = 0.0
    while True:
        holder = lock.holder()
        if holder and any(holder.get(k) != plan["lock"].get(k) for k in ("user", "host", "pid", "plan")):
            return None
        if time.monotonic() > told + _BEAT_S:
            told = time.monotonic()
            channel.send("beat")
        ready, _, _ = select.select([0], [], [], 0.2)
        try:
            host.look(bool(ready))
        except HostLostError as gone:
            if str(gone) == "cancelled":
                _touch(plan["journal"] + _CANCEL)
            raise
        ours = lock.acquire(plan["lock"])
        if ours is not None:
            return ours


_CANCEL = ".cancel"
"""Beside the journal: what tells a supervisor without a host that it need not go on."""


def _touch(path: str) -> None:
    with suppress(OSError), open(path, "w", encoding="utf-8"):
        pass


def _first_line() -> Tuple[Optional[Message], bytes]:
    """The plan, and what was read beyond it. The raw descriptor, since select() must see the rest."""
    data = b""
    while b"\n" not in data:
        part = os.read(0, 65536)
        if not part or len(data) > _MAX_LINE:
            return None, b""
        data += part
    line, rest = data.split(b"\n", 1)
    return checked(json.loads(line.decode("utf-8"))), rest


_LONGEST_S = 10**9
"""No wait of a system is longer."""
_PLAN = {"tasks": list, "journal": str, "heartbeat": (int, float)}
_TASK = {"id": str, "argv": list, "job": dict, "timeout": (int, float)}


def checked(plan: object) -> Message:
    """The plan, if it has what a plan has. Raises ``ValueError``."""
    for task in _members(plan, _PLAN)["tasks"]:
        words = _members(task, _TASK)["argv"]
        if not words or not all(isinstance(word, str) and _is_name(word) for word in words):
            raise ValueError("argv is no list of texts")
    found = _members(plan, _PLAN)
    pause, governor, owner = found.get("state_s") or 0, found.get("governor") or "", found.get("lock") or {}
    linger = found.get("linger") or 0
    if not isinstance(pause, (int, float)) or not isinstance(governor, str) or not isinstance(owner, dict):
        raise ValueError("state_s is no number, governor no text, or lock no object")  # noqa: TRY004
    if not isinstance(linger, (int, float)):
        raise ValueError("linger is no number")  # noqa: TRY004
    times = [pause, linger, found["heartbeat"]] + [task["timeout"] for task in found["tasks"]]
    if not all(-_LONGEST_S <= seconds <= _LONGEST_S for seconds in times):
        raise ValueError("a time is longer than %d s" % _LONGEST_S)
    if not _is_name(found["journal"]) or not _is_name(governor):
        raise ValueError("journal or governor is no name that a file can have")
    return found


def _members(value: object, kinds: Dict[str, object]) -> Message:
    if not isinstance(value, dict):
        raise ValueError("it is no object")  # noqa: TRY004
    for name, kind in kinds.items():
        if not isinstance(value.get(name), kind):  # type: ignore[arg-type]
            raise ValueError("%s is missing or of another type" % name)  # noqa: TRY004
    return value


class HostLostError(Exception):
    """Nobody waits for the answer any more; the message says how that was noticed."""


class Host:
    """The host's end of stdin: alive while it sends lines. It may be ``gone`` for ``linger`` seconds."""

    def __init__(self, patience: float, rest: bytes, linger: float = 0.0, journal: str = "") -> None:
        self._patience, self._linger, self._journal = patience, linger, journal
        self._last = time.monotonic()
        self._pending = rest
        self._since = 0.0
        self.gone = ""

    def look(self, ready: bool) -> None:
        """Take what has come; raises :class:`HostLostError` at the end, at a cancel, or after too long a silence."""
        if self.gone:
            self._wait()
            return
        if ready:
            data = os.read(0, 65536)
            if not data:
                self._lost("host-gone")
                return
            self._last = time.monotonic()
            self._pending += data
        *lines, self._pending = self._pending.split(b"\n")
        if any(b"cancel" in line for line in lines):
            raise HostLostError("cancelled")
        if time.monotonic() - self._last > self._patience:
            self._lost("heartbeat-lost")

    def _lost(self, why: str) -> None:
        if not self._linger:
            raise HostLostError(why)
        self.gone, self._since = why, time.monotonic()

    def _wait(self) -> None:
        """Without a host: until it was away for too long, has ended, or said through another that it is enough."""
        ended = not os.path.isdir(os.path.dirname(self._journal))
        if ended or os.path.exists(self._journal + _CANCEL) or time.monotonic() > self._since + self._linger:
            raise HostLostError(self.gone)


class Supervisor:
    """The plan's way through its tasks."""

    def __init__(self, channel: Channel, plan: Message, rest: bytes) -> None:
        self.channel = channel
        self.plan = plan
        linger = float(plan.get("linger") or 0)
        self.host = Host(float(plan["heartbeat"]), rest, linger, plan["journal"])
        self._stop = threading.Event()

    def work(self) -> str:
        """Run what the journal does not have yet; returns why it ended."""
        done = self._replay()
        for target in (self._beat, self._watch):
            threading.Thread(target=target, daemon=True).start()
        try:
            for task in self.plan["tasks"]:
                if task["id"] not in done:
                    self._task(task)
        except HostLostError as gone:
            return str(gone)
        finally:
            self._stop.set()
        return "done"

    def _replay(self) -> List[str]:
        """Send the journal's outcomes again; returns which tasks they are of."""
        done = []
        for entry in read_journal(self.plan["journal"]):
            self.channel.send("started", id=entry["id"], replayed=True)
            for line in entry["lines"]:
                self.channel.send("line", id=entry["id"], line=line)
            self.channel.send("ended", id=entry["id"], **entry["ended"])
            done.append(entry["id"])
        return done

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT_S):
            with suppress(OSError):  # a dead link: the host's silence will tell
                self.channel.send("beat")

    def _watch(self) -> None:
        pause = float(self.plan.get("state_s") or 0)
        while pause and not self._stop.is_set():
            with suppress(OSError):
                self.channel.send("state", state=state.sample())
            self._stop.wait(pause)

    def _task(self, task: Message) -> None:
        self._say("started", id=task["id"], replayed=False)
        try:
            child = Child(task)
        except OSError as error:  # there is no such program, or it may not be started
            self._say("ended", id=task["id"], returncode=127, stderr=str(error), timed_out=False)
            return
        try:
            for line in child.lines(self.host):
                self._say("line", id=task["id"], line=line)
        finally:
            child.end()
        outcome = {
            "returncode": child.process.returncode,
            "stderr": child.tail(),
            "timed_out": child.timed_out,
        }
        entry = {"id": task["id"], "lines": child.kept, "ended": outcome}
        with suppress(OSError):  # a full disk: the host still gets it, only a broken link would cost it
            append_journal(self.plan["journal"], entry)
        self._say("ended", id=task["id"], **outcome)
        if self.host.gone:
            raise HostLostError(self.host.gone)

    def _say(self, event: str, **fields: object) -> None:
        """Send, and carry on if the link is dead: the journal has it, and the host's silence will end us."""
        with suppress(OSError):
            self.channel.send(event, **fields)


class Child:
    """One task's process: its lines, the end of its stderr, its time limit."""

    def __init__(self, task: Message) -> None:
        self.timed_out = False
        self._closed = False
        self.kept: List[str] = []
        self._deadline = time.monotonic() + float(task["timeout"])
        self._stderr: Deque[bytes] = collections.deque(maxlen=40)
        self._buffers = {"out": b"", "err": b""}
        self.process = subprocess.Popen(
            [sys.executable if word == "{python}" else word for word in task["argv"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        with suppress(OSError):  # a child that ended at once is told of by its return code
            self.process.stdin.write(encode(task["job"]).encode("utf-8") + b"\n")
            self.process.stdin.flush()

    def lines(self, host: Host) -> Iterator[str]:
        """Lines of its stdout until it ends or its time is up; the host is looked at all the while."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        pipes = {self.process.stdout.fileno(): "out", self.process.stderr.fileno(): "err"}
        ended = 0.0
        while pipes:
            left = self._deadline - time.monotonic()
            if left <= 0:
                self.timed_out = True
                return
            ready, _, _ = select.select([*([] if host.gone else [0]), *pipes], [], [], min(left, 0.5))
            host.look(0 in ready)
            # It has ended and said everything. What it left behind may hold the pipes for as long as it likes.
            if ended and (not set(ready) - {0} or time.monotonic() > ended + _LAST_WORDS_S):
                break
            if not ended and self.process.poll() is not None:
                ended = time.monotonic()
            for descriptor in ready:
                if descriptor == 0:
                    continue
                data = os.read(descriptor, 1 << 16)
                if not data:
                    del pipes[descriptor]
                    continue
                for line in self._split(pipes[descriptor], data):
                    self.kept.append(line)
                    yield line
        self._closed = True

    def _split(self, pipe: str, data: bytes) -> List[str]:
        *whole, self._buffers[pipe] = (self._buffers[pipe] + data).split(b"\n")
        if pipe == "err":
            self._stderr.extend(line[-2000:] for line in whole)
            self._buffers[pipe] = self._buffers[pipe][-2000:]
            return []
        if len(self._buffers[pipe]) > _MAX_LINE:
            raise ValueError("the task wrote a line of more than 64 MiB")
        return [line.decode("utf-8", "replace") for line in whole]

    def tail(self) -> str:
        """The last lines of its stderr."""
        return b"\n".join([*self._stderr, self._buffers["err"]]).decode("utf-8", "replace").strip()

    def end(self) -> None:
        """No process of the group is left. One that has closed its pipes gets a moment to end by itself."""
        if self._closed:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(2.0)
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _is_name(text: str) -> bool:
    """Whether the system takes it for a name: no NUL, and no half of a character."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def append_journal(path: str, entry: Message) -> None:
    """One line, on the disk before this returns; a line that was cut short before stays a line of its own."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(encode(entry).encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_journal(path: str) -> List[Message]:
    """Its whole entries; a last line that was cut short is no entry."""
    entries: List[Message] = []
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    with suppress(ValueError):
                        entries.append(json.loads(line))
    except OSError:
        return []
    return entries
