"""One process that feeds one surface: an input at a time, watched, and what came of it on stdout, one JSON a line.

``python -m fuzzing.worker SURFACE SEED FIRST LAST FOLDER EVERY [FILE…]``: files of the corpus first, then the inputs
``FIRST`` to ``LAST``. ``EVERY`` so many inputs the command line itself is called. Before each input ``current`` in
FOLDER holds it, so that the parent knows what a crash was of.
"""

from __future__ import annotations

import base64
import faulthandler
import gc
import json
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import DefectError, EdgekitError
from fuzzing import commands
from fuzzing.mutators import raw
from fuzzing.sandbox import MEMORY, EscapedError, Sandbox, peak, reset_peak
from fuzzing.surfaces import Surface, surface

CODES = (0, 2, 3, 4, 5, 6, 7)
"""How the command line may end for a hostile input."""

SECONDS = 60


def main(argv: list[str]) -> None:
    """See the module's docstring."""
    name, seed, first, last, folder, every, *files = argv
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sandbox = Sandbox(Path(folder))
    kind = surface(name)
    seeds = kind.seeds(_made(sandbox))
    sandbox.programs = kind.programs
    for (
        seed_name,
        data,
    ) in seeds.items():  # everything is imported before memory is counted, and seeds are valid
        _consume(kind, seed_name, data, sandbox, {})
    sandbox.limit_memory()
    for index, case, data in _cases(kind, seeds, name, seed, range(int(first), int(last)), files):
        (sandbox.root / "current").write_bytes(case.encode() + b"\n" + data)
        _say(answers, {"begin": index})
        faulthandler.dump_traceback_later(SECONDS - 5)  # for the parent, which ends what hangs
        result: dict[str, Any] = {"case": case}
        _consume(kind, case, data, sandbox, result)
        if int(every) and index % int(every) == int(every) - 1:
            _command(kind, case, data, sandbox, result)
        if result["verdict"] not in ("accepted", "refused"):
            result["input"] = base64.b64encode(data).decode()
        _say(answers, {"end": index, "processor": sum(os.times()[:4])} | result)


def _say(answers: Any, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _made(sandbox: Sandbox) -> Path:
    folder = sandbox.root / "tmp" / "seeds"
    folder.mkdir()
    return folder


def _cases(
    kind: Surface, seeds: dict[str, bytes], name: str, seed: str, numbers: range, files: list[str]
) -> Iterator[tuple[int, str, bytes]]:
    for number, file in enumerate(files):
        yield -1 - number, _seed_of(Path(file)), Path(file).read_bytes()
    for index in numbers:
        rng = random.Random(f"{name} {seed} {index}")
        case = rng.choice(sorted(seeds))
        try:
            data = kind.mutate(rng, case, seeds[case])
        # What a library cannot write any more, at whatever depth: the bytes are changed in its place.
        except Exception:  # noqa: BLE001
            data = raw.mutate(rng, seeds[case])
        yield index, case, data


def _seed_of(file: Path) -> str:
    """``what-is-wrong@seed.onnx`` in the corpus is an input like ``seed.onnx``."""
    return file.name.rpartition("@")[2]


# --- one input -------------------------------------------------------------------------------------------


def _consume(kind: Surface, case: str, data: bytes, sandbox: Sandbox, result: dict[str, Any]) -> None:
    """Read the input; ``result`` says what came of it: accepted, refused, or what is wrong."""
    box = sandbox.empty()
    kind.place(case, data, box)
    sandbox.remember()
    before, start = reset_peak(), time.monotonic()
    try:
        with sandbox.watched():
            kind.consume(case, data, box)
        result["verdict"] = "accepted"
    except EdgekitError as error:
        _judge(error, result)
    except (Exception, EscapedError, SystemExit) as error:  # noqa: BLE001 - that is what is looked for
        kind_of = "escaped" if isinstance(error, EscapedError) else "traceback"
        _blame(kind_of, error, result)
    gc.collect(0)
    result |= {"seconds": time.monotonic() - start, "bytes": max(0, peak() - before)}
    if result["bytes"] > MEMORY and result["verdict"] in ("accepted", "refused"):
        result |= {"verdict": "memory", "where": f"{result['bytes'] >> 20} MiB", "text": ""}


def _judge(error: EdgekitError, result: dict[str, Any]) -> None:
    """A typed error; that of something unforeseen, or of memory that ran out, is none."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(e, EscapedError) for e in chain):
        _blame("escaped", next(e for e in chain if isinstance(e, EscapedError)), result)
    elif isinstance(error, DefectError):
        _blame("traceback", error, result)
    elif any(isinstance(e, MemoryError) or "bad_alloc" in str(e) for e in chain):
        _blame("memory", error, result)
    elif type(error).exit_code == 1:
        _blame("untyped", error, result)
    else:
        result |= {"verdict": "refused", "error": type(error).__name__}


def _blame(verdict: str, error: BaseException, result: dict[str, Any]) -> None:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/edgekit/" in f.filename]
    where = f"{frames[-1].filename.rpartition('/edgekit/')[2]}:{frames[-1].name}" if frames else "?"
    text = "".join(traceback.format_exception(error))[-6000:]
    result |= {"verdict": verdict, "where": f"{type(error).__name__} in {where}", "text": text}


def _command(kind: Surface, case: str, data: bytes, sandbox: Sandbox, result: dict[str, Any]) -> None:
    """The same through ``python -m edgekit``: its exit code, and what it leaves."""
    box = sandbox.empty()
    kind.place(case, data, box)
    argv = kind.command(case, data, box)
    if not argv:
        return
    sandbox.remember()
    before = sorted(p.name for p in (sandbox.root / "tmp").iterdir())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edgekit", *argv],
            capture_output=True,
            timeout=4 * SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        result |= {"verdict": "hang", "where": f"edgekit {argv[0]}", "text": " ".join(argv)}
        return
    # A runtime's own traceback, from the device, is what its user needs: it stands behind the hint.
    said = done.stderr.decode("utf-8", "replace").partition("hint: the traceback there:")[0]
    result["command"] = done.returncode
    left = sorted(p.name for p in (sandbox.root / "tmp").iterdir() if not p.name.startswith("torchinductor_"))
    if done.returncode not in CODES or "Traceback (most recent call last)" in said:
        last = said.strip().splitlines()[-2:] or [""]
        result |= {
            "verdict": "exit",
            "where": f"edgekit {argv[0]}: {done.returncode} {last[0][:100]}",
            "text": said[-6000:],
        }
    elif commands.CONTROL.search(said + done.stdout.decode("utf-8", "replace")):
        where = f"edgekit {argv[0]} writes control characters"
        result |= {"verdict": "escaped", "where": where, "text": repr(said[-3000:])}
    elif left != before or sandbox.touched():
        result |= {"verdict": "escaped", "where": f"edgekit {argv[0]} left {left}", "text": said[-3000:]}


if __name__ == "__main__":
    main(sys.argv[1:])
