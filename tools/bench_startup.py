"""How long the command line takes to answer: fresh processes, interleaved, median and best in seconds.

    python tools/bench_startup.py [--runs 15] [--json FILE]

Budgets: ``edgekit --help`` 0.15 s, ``edgekit targets`` 0.3 s. A busy machine shows in the distance between
best and median; compare the best. ``python -c pass`` is what the interpreter itself costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ENTRY = "import sys; from edgekit.cli import main; sys.argv[0] = 'edgekit'; main()"
COMMANDS: dict[str, tuple[float | None, list[str]]] = {
    "python -c pass": (None, ["-c", "pass"]),
    "edgekit --help": (0.15, ["-c", ENTRY, "--help"]),
    "edgekit targets": (0.30, ["-c", ENTRY, "targets"]),
}


def seconds(argv: list[str]) -> float:
    """Wall time of one fresh process; a failing command ends the benchmark with what it printed."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr}")
    return elapsed


def main() -> int:
    """Run, print a table; exit 1 when a best time is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    samples: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _, argv in COMMANDS.values():
        seconds(argv)  # writes the byte code
    for _ in range(options.runs):
        for name, (_, argv) in COMMANDS.items():
            samples[name].append(seconds(argv))

    over = False
    for name, (budget, _) in COMMANDS.items():
        best, median = min(samples[name]), statistics.median(samples[name])
        verdict = "" if budget is None else ("ok" if best <= budget else "OVER BUDGET")
        over |= verdict == "OVER BUDGET"
        limit = "" if budget is None else f"budget {budget:.2f}"
        print(f"{name:18} best {best:.3f}  median {median:.3f}  {limit:12} {verdict}")
    if options.json:
        options.json.write_text(json.dumps(samples, indent=1) + "\n")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
