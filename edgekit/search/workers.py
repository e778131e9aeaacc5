"""A search on several workers, which comes to what it would come to on one.

The search asks for one candidate after the other, and what it asks next depends on what came out. While it waits, the
other workers measure what it will probably ask: a copy of this process (a fork, so exactly where the search is) goes on
as if each candidate held the budget, and tells which ones it asked for. A guess that was wrong costs a worker's time;
what was measured is kept, and taken when the search does come to ask for it.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from edgekit.core import stops
from edgekit.errors import BackendError
from edgekit.search.evaluate import Evaluator
from edgekit.search.part import Answer, Ask, Order, write
from edgekit.search.strategy import Search
from edgekit.search.trials import Candidate, Trial

Point = tuple[str, str]
"""A candidate's line and target."""

_LOOK_S = 0.1
_THINK_S = 5.0
"""So long a copy may think about what comes next."""
_LAST_WORDS = 400


def point(candidate: Candidate) -> Point:
    """What tells a candidate from others."""
    return candidate.line, candidate.target


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    log: Path
    ready: bool = False
    busy: Point | None = None
    heard: bytes = b""

    def ask(self, wanted: Point, smallest: float) -> None:
        """Give it a candidate."""
        line, target = self.busy = wanted
        known = None if math.isinf(smallest) else smallest
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: said when it is read
            self.process.stdin.write(msgspec.json.encode(Ask(line, target, known)) + b"\n")
            self.process.stdin.flush()

    def answers(self) -> Iterator[Answer]:
        """What it has said. Raises :class:`BackendError` where it has ended."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        if not data:
            raise self._ended()
        *lines, self.heard = (self.heard + data).split(b"\n")
        for line in lines:
            if line:
                yield msgspec.json.decode(line, type=Answer)
            self.ready = True

    def _ended(self) -> BackendError:
        code = self.process.wait()
        words = self.log.read_text(errors="replace").strip()[-_LAST_WORDS:]
        what = (
            f"while it measured {self.busy[0] or 'nothing'} → {self.busy[1]}" if self.busy else "at its start"
        )
        return BackendError(
            f"a worker of the search ended with exit status {code} {what}{': ' + words if words else ''}",
            hint="the same command goes on from what is finished; with fewer --workers each has more memory",
        )


@dataclass
class Workers:
    """Processes that measure candidates for one search; a context manager, which starts and ends them."""

    evaluator: Evaluator
    count: int
    search: Search | None = None
    _workers: list[_Worker] = field(default_factory=list)
    _known: dict[Point, Answer] = field(default_factory=dict)
    _guessed: deque[Point] = field(default_factory=deque)
    _since: float = 0.0

    def __enter__(self) -> Workers:
        for number in range(self.count):
            self._workers.append(self._started(number))
        self._since = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            with contextlib.suppress(OSError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
        self._keep_steps()

    def _started(self, number: int) -> _Worker:
        evaluator = self.evaluator
        folder = evaluator.folder / f"worker{number}"
        folder.mkdir(parents=True, exist_ok=True)
        order = Order(
            source=evaluator.source.spec.text,
            options=evaluator.options,
            budget=str(evaluator.budget),
            seed=evaluator.limits.seed,
            folder=folder.absolute(),
            cache=evaluator.context.store.root.absolute(),
        )
        write(order, folder / "order.json")
        log = folder / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "edgekit", "search-part", str(folder / "order.json")),
                    *("--parent", str(os.getpid())),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,  # Ctrl-C is for the search, which ends its workers itself
            )
        return _Worker(process=process, log=log)

    def _keep_steps(self) -> None:
        """What workers have finished is taken when the winner is confirmed and delivered."""
        kept = self.evaluator.folder / "steps"
        kept.mkdir(parents=True, exist_ok=True)
        for step in self.evaluator.folder.glob("worker*/steps/step-*"):
            with contextlib.suppress(FileExistsError):
                os.link(step, kept / step.name)

    # --- one candidate ---------------------------------------------------------------------------------------

    def evaluate(self, candidate: Candidate) -> Trial:
        """What :meth:`Evaluator.evaluate` gives, whoever measured it, and whenever. Its seconds are those that passed
        since the last one: the time of the search, and not that of all workers together."""
        wanted = point(candidate)
        self._guessed.clear()
        while wanted not in self._known:
            stops.check()
            if wanted not in {w.busy for w in self._workers} and (free := self._free()):
                free[0].ask(wanted, self.evaluator.smallest)
            try:
                self._ahead(wanted)
            except _Copied as copied:  # this is the copy, which goes on as if the candidate held
                return copied.answer(candidate)
            self._listen()
        trial = self._as_asked_now(self._known.pop(wanted), candidate)
        now = time.monotonic()
        trial, self._since = replace(trial, seconds=round(now - self._since, 2)), now
        self.evaluator.saw(trial)
        return trial

    def _free(self) -> list[_Worker]:
        return [w for w in self._workers if w.ready and w.busy is None]

    def _listen(self) -> None:
        streams = {w.process.stdout.fileno(): w for w in self._workers if w.process.stdout is not None}
        for stream in select.select(list(streams), [], [], _LOOK_S)[0]:
            worker = streams[stream]
            for answer in worker.answers():
                self._known[answer.trial.line, answer.trial.target] = answer
                worker.busy = None

    def _as_asked_now(self, answer: Answer, candidate: Candidate) -> Trial:
        """It was built when less was known of what others come to: now it might not have been."""
        trial, unbuilt = answer.trial, answer.unbuilt
        if unbuilt is not None and self.evaluator.too_large(candidate, unbuilt.sizes):
            return unbuilt
        return trial

    # --- what will be asked -------------------------------------------------------------------------------------

    def _ahead(self, current: Point) -> None:
        """Give workers that have nothing to do what the search will probably ask for, once what it asks for now is at
        work."""
        if current not in {w.busy for w in self._workers}:
            return
        for worker in self._free():
            if not self._guessed:
                self._guessed.extend(self._foreseen())
            while self._guessed and self._is_known(self._guessed[0]):
                self._guessed.popleft()
            if not self._guessed:
                return
            worker.ask(self._guessed.popleft(), self.evaluator.smallest)

    def _is_known(self, wanted: Point) -> bool:
        return wanted in self._known or wanted in {w.busy for w in self._workers}

    def _foreseen(self) -> Sequence[Point]:
        """What a copy of this process asks for from here. Raises :class:`_Copied` in the copy."""
        assert self.search is not None
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            busy = frozenset(w.busy for w in self._workers if w.busy)
            raise _Copied(self.search, writing, self._known, busy, enough=2 * self.count)
        os.close(writing)
        found = _read_until(reading, time.monotonic() + _THINK_S)
        os.close(reading)
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return found


class _Copied(BaseException):
    """What the copy is: it answers what the search asks, writes the questions down, and ends the process."""

    def __init__(
        self, search: Search, stream: int, known: dict[Point, Answer], busy: frozenset[Point], *, enough: int
    ) -> None:
        super().__init__()
        self._stream, self._known, self._busy, self._enough = stream, known, busy, enough
        first = next(iter(search.trials.values()), None)
        self._usual = first[1] if first is not None else Trial(line="", target="", drop=0.0, size=0)
        search.pretend(self.answer, lambda: os._exit(0))

    def answer(self, candidate: Candidate) -> Trial:
        """What is known, else that it holds."""
        line, target = asked = point(candidate)
        if (known := self._known.get(asked)) is not None:
            return known.trial
        if asked not in self._busy:
            os.write(self._stream, msgspec.json.encode(asked) + b"\n")
            self._enough -= 1
            if not self._enough:
                os._exit(0)
        return replace(self._usual, line=line, target=target, drop=0.0, margin=0.0, seconds=0.0)


def _read_until(stream: int, end: float) -> list[Point]:
    """The points that a copy wrote, a line each; a last one that is cut off is none."""
    data = b""
    while (left := end - time.monotonic()) > 0:
        if not select.select([stream], [], [], left)[0]:
            break
        piece = os.read(stream, 1 << 16)
        if not piece:
            break
        data += piece
    return [msgspec.json.decode(line, type=Point) for line in data.split(b"\n")[:-1]]
