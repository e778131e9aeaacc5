"""Many workers, a few at a time: their inputs counted, what hung ended, what crashed noted, findings kept."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
HANG_S = 60.0
"""An input that takes longer has hung."""
_START_S = 300.0
_WRONG = ("traceback", "untyped", "exit", "escaped", "memory", "hang", "crash")


@dataclass(kw_only=True)
class Findings:
    """What one surface gave. ``wrong`` has one example a kind and place; ``seconds`` passed, ``processor`` are those
    that a processor worked."""

    name: str
    inputs: int = 0
    corpus: int = 0
    commands: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: dict[tuple[str, str], str] = field(default_factory=dict)
    peak: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    processor: float = 0.0

    @property
    def bad(self) -> int:
        """How many inputs went wrong."""
        return sum(self.verdicts[v] for v in _WRONG)


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """``inputs`` a surface, ``jobs`` workers at a time, until ``deadline`` (of ``time.monotonic``)."""

    surfaces: Sequence[str]
    inputs: int
    jobs: int
    seed: str
    deadline: float
    every: int
    keep: Path
    hang_s: float = HANG_S

    def run(self) -> list[Findings]:
        """All surfaces; those that take longest to start come first."""
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(self._surface, self.surfaces))

    def _surface(self, name: str) -> Findings:
        found, begun = Findings(name=name), time.monotonic()
        files = [str(p) for p in sorted((CORPUS / name).glob("*"))] if (CORPUS / name).is_dir() else []
        todo, first = list(files), 0
        failures = 0
        while (first < self.inputs or todo) and time.monotonic() < self.deadline and failures < 50:
            last, whole = _Run(self, found, todo).work(first)
            failures += not whole
            if last < 0:  # in the corpus: the next file
                todo = todo[-last:]
            else:
                todo, first = [], last
        found.seconds = time.monotonic() - begun
        found.corpus = min(found.inputs, len(files))
        return found


class _Run:
    """One worker process, to its end."""

    def __init__(self, campaign: Campaign, found: Findings, files: list[str]) -> None:
        self._campaign, self._found, self._files = campaign, found, files
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self._now: int | None = None
        self._processor = 0.0

    def work(self, first: int) -> tuple[int, bool]:
        """Where to go on (negative: in the corpus), and whether the worker ended by itself."""
        campaign = self._campaign
        argv = [
            self._found.name,
            campaign.seed,
            first,
            campaign.inputs,
            self._folder / "sandbox",
            campaign.every,
            *self._files,
        ]
        child = subprocess.Popen(
            [sys.executable, "-m", "fuzzing.worker", *map(str, argv)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(),
            start_new_session=True,
        )  # fmt: skip
        errors: list[bytes] = []
        reader = threading.Thread(target=lambda: errors.append(child.stderr.read()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        self._last = first if not self._files else -1
        hung = self._listen(child)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0 if hung or time.monotonic() >= campaign.deadline else 30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        self._found.processor += self._processor
        reader.join(5)
        return self._ended(child.returncode, hung, b"".join(errors).decode("utf-8", "replace"))

    def _listen(self, child: subprocess.Popen[bytes]) -> bool:
        """Take its messages; whether an input hung."""
        assert child.stdout is not None
        pending, patience = b"", _START_S
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while time.monotonic() < self._campaign.deadline:
                begun = time.monotonic()
                if not selector.select(min(patience, max(0.0, self._campaign.deadline - begun))):
                    if time.monotonic() >= self._campaign.deadline:
                        break
                    return True
                data = os.read(child.stdout.fileno(), 1 << 16)
                if not data:
                    return False
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
                patience = self._campaign.hang_s + (300 if self._campaign.every else 0)
        self._now = None  # out of time: nobody's fault
        return False

    def _take(self, message: dict) -> None:
        if "begin" in message:
            self._now = message["begin"]
            return
        found, self._now = self._found, None
        self._last = message["end"] + 1 if message["end"] >= 0 else message["end"] - 1
        self._processor = message["processor"]
        found.inputs += 1
        found.commands += "command" in message
        found.verdicts[message["verdict"]] += 1
        found.errors[message.get("error", "")] += 1
        found.peak, found.slowest = max(found.peak, message["bytes"]), max(found.slowest, message["seconds"])
        if message["seconds"] > self._campaign.hang_s and message["verdict"] in ("accepted", "refused"):
            message |= {"verdict": "hang", "where": message["case"], "text": ""}
            found.verdicts["hang"] += 1
        if message["verdict"] in _WRONG:
            data = base64.b64decode(message["input"]) if "input" in message else b""
            self._keep(message["verdict"], message["where"], message["text"], message["case"], data)

    def _current(self) -> tuple[str, bytes]:
        """The input at which the worker ended."""
        current = self._folder / "sandbox" / "current"
        case, _, data = current.read_bytes().partition(b"\n") if current.is_file() else (b"?", b"", b"")
        return case.decode(), data

    def _keep(self, verdict: str, where: str, text: str, case: str, data: bytes) -> None:
        """The input of a finding that is new."""
        if (verdict, where) in self._found.wrong:
            return
        folder = self._campaign.keep / self._found.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{verdict}-{len(self._found.wrong)}@{case}"
        path.write_bytes(data)
        path.with_name(path.name + ".txt").write_text(f"{verdict}: {where}\n{text}")
        self._found.wrong[verdict, where] = str(path)

    def _ended(self, code: int, hung: bool, said: str) -> tuple[int, bool]:
        now = self._now
        late = code == -signal.SIGKILL and time.monotonic() >= self._campaign.deadline and not hung
        if not late and (hung or code or now is not None):
            verdict = "hang" if hung else "crash"
            where = (
                f"longer than {self._campaign.hang_s:g} s" if hung else f"status {code} {said.strip()[-200:]}"
            )
            if now is None and not hung:
                shutil.rmtree(self._folder, ignore_errors=True)
                raise RuntimeError(f"the worker of {self._found.name} cannot work: {said[-3000:]}")
            self._found.inputs += 1
            self._found.verdicts[verdict] += 1
            self._keep(verdict, where, said[-3000:], *self._current())
            if now is not None:
                self._last = now + 1 if now >= 0 else now - 1
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._last < 0 and -self._last > len(self._files):
            return 0, not hung
        return self._last, not (hung or code)


def _environment() -> dict[str, str]:
    own = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "EDGEKIT_SPEED_GATE": "false",
    }
    return {k: v for k, v in os.environ.items() if not k.startswith("EDGEKIT_")} | own


def table(results: Sequence[Findings]) -> str:
    """A line a surface, and all of them together."""
    head = (
        "surface",
        "inputs",
        "refused",
        "accepted",
        "commands",
        "tracebacks",
        "escapes",
        "crashes",
        "hangs",
        "memory",
        "slowest",
        "seconds",
        "processor s",
    )
    rows = [head, *(_row(f) for f in results), _row(_all(results))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _row(f: Findings) -> tuple[str, ...]:
    v = f.verdicts
    counts = (
        f.inputs,
        v["refused"],
        v["accepted"],
        f.commands,
        v["traceback"] + v["untyped"] + v["exit"],
        v["escaped"],
        v["crash"],
        v["hang"],
    )
    return (
        f.name,
        *(f"{n:,}" for n in counts),
        f"{f.peak >> 20} MiB",
        f"{f.slowest:.1f} s",
        f"{f.seconds:.0f}",
        f"{f.processor:.0f}",
    )


def _all(results: Sequence[Findings]) -> Findings:
    whole = Findings(name="all")
    for f in results:
        whole.inputs, whole.commands = whole.inputs + f.inputs, whole.commands + f.commands
        whole.verdicts += f.verdicts
        whole.peak, whole.slowest = max(whole.peak, f.peak), max(whole.slowest, f.slowest)
        whole.processor += f.processor
        whole.seconds = max(whole.seconds, f.seconds)
    return whole
