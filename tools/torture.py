"""The torture modules: small modules of every kind through builds for three runtimes, compared with PyTorch.

    python tools/torture.py list
    python tools/torture.py run [PATTERN…] [--precision fp32|int8|both] [--redo missing|bad|all] [--sample N]
    python tools/torture.py table            # docs/torture.json and docs/torture.md from the results in the cache

Each module (tools/torture/) is built by ``edgekit.build`` as a user builds it. What passes is run on inputs that the
build has not seen, and at other sizes of dynamic axes, and compared with the module in PyTorch, called as a user calls
it. A result is right, refused with the reason, WRONG (passed, and is far from PyTorch), UNCLEAR (refused, and neither
operator nor module nor gate is named) or TRACEBACK.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600
PRECISIONS = ("fp32", "int8")


def main() -> int:
    """Parse the command line and run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, default=_default_cache())
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    run = commands.add_parser("run")
    run.add_argument("patterns", nargs="*", default=["*"])
    run.add_argument("--precision", choices=(*PRECISIONS, "both"), default="both")
    run.add_argument("--redo", choices=("missing", "bad", "all"), default="all")
    run.add_argument(
        "--sample", type=int, metavar="N", help="N modules of each family, of those that have weights"
    )
    run.add_argument("--short", action="store_true", help="build only what is not right without a build")
    table = commands.add_parser("table")
    table.add_argument("--out", type=Path, default=ROOT / "docs")
    worker = commands.add_parser("worker")
    worker.add_argument("precisions", nargs="+")
    worker.add_argument("--short", action="store_true")
    options = parser.parse_args()

    if options.command == "worker":
        return _worker(options.precisions, options.short)
    names = _names()
    if options.command == "list":
        print("\n".join(names))
    elif options.command == "table":
        from torture.tables import write

        write({n: _known(options.cache, n) for n in names}, options.out)
    else:
        precisions = PRECISIONS if options.precision == "both" else (options.precision,)
        chosen = [n for n in names if any(fnmatch.fnmatch(n, p) for p in options.patterns)]
        if options.sample:
            chosen = [n for n in _sampled(options.sample) if n in chosen]
        due = [n for n in chosen if _due(options, n, precisions)]
        return _run(due, [*precisions, *(["--short"] if options.short else [])], options.cache)
    return 0


def _run(names: Sequence[str], how: Sequence[str], cache: Path) -> int:
    """Every module in a worker's process, one worker after the other as they end."""
    left, bad = list(names), 0
    while left:
        for name, results in _work(left, how):
            bad += _kept(cache, name, results, f"{len(names) - len(left) + 1:3}/{len(names)}")
            left.remove(name)
        if left:
            dead = {"status": "TRACEBACK", "message": f"the process ended, or gave nothing in {SECONDS} s"}
            bad += _kept(
                cache, left[0], dict.fromkeys(_targets([p for p in how if p in PRECISIONS]), dead), ""
            )
            left.pop(0)
    print(f"{bad} results to look at")
    return 1 if bad else 0


def _kept(cache: Path, name: str, results: dict[str, Any], place: str) -> int:
    """Write a module's results beside those of other targets, and say them."""
    path = cache / f"{name.replace('/', '.')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _known(cache, name)
    path.write_text(json.dumps(known | results, indent=1) + "\n", encoding="utf-8")
    said = [f"{t.split('-')[0]} {r['status']}" for t, r in results.items()]
    print(f"{place} {name:36} {'  '.join(f'{s:18}' for s in said)}", flush=True)
    for message in dict.fromkeys(r["message"] for r in results.values() if r["status"] != "right"):
        print(f"        {message[:220]}", flush=True)
    return sum(r["status"] not in ("right", "refused") for r in results.values())


def _work(names: Sequence[str], how: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONWARNINGS": "ignore",
    }
    worker = subprocess.Popen(
        [sys.executable, __file__, "worker", *how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker:
        worker.stdin.write("\n".join(names) + "\n")
        worker.stdin.close()
        for line in worker.stdout:
            if line.startswith('{"torture": '):
                record = json.loads(line)
                yield record["torture"], record["results"]


def _worker(precisions: Sequence[str], short: bool) -> int:
    import signal

    from torture import CASES, stages

    names = [line.strip() for line in sys.stdin if line.strip()]
    stages.share_the_registry()
    for name in names:
        signal.alarm(SECONDS)  # ends the process: a module that hangs is a result, too
        start = time.monotonic()
        results = stages.run(CASES[name], precisions, short=short)
        seconds = round(time.monotonic() - start, 1)
        record = {"torture": name, "results": {t: r | {"seconds": seconds} for t, r in results.items()}}
        print(json.dumps(record), flush=True)
    return 0


def _due(options: argparse.Namespace, name: str, precisions: Sequence[str]) -> bool:
    known = _known(options.cache, name)
    results = [known.get(t) for t in _targets(precisions)]
    if options.redo == "all":
        return True
    if options.redo == "missing":
        return None in results
    return any(r is None or r["status"] != "right" for r in results)


def _known(cache: Path, name: str) -> dict[str, Any]:
    path = cache / f"{name.replace('/', '.')}.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return known


def _targets(precisions: Sequence[str]) -> list[str]:
    from torture.stages import TARGETS

    return [t for p in precisions for t in TARGETS[p]]


def _names() -> list[str]:
    from torture import CASES

    return list(CASES)


def _sampled(count: int) -> list[str]:
    from torture import stages

    return stages.sample(count)


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit" / "torture"


if __name__ == "__main__":
    sys.exit(main())
