"""The commands that the examples on SST-2 consist of, and what they print as JSON.

Each function runs one ``edgekit`` command in a process of its own, as one would at a prompt; progress and errors go
to the terminal, and a command that fails ends the example with its exit code.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = f"{HERE / 'classifier.py'}:classifier"
TASK = f"{HERE / 'sst2.py'}:task"
CALIBRATION = f"{HERE / 'data.py'}:calibration"
EVALUATION = f"{HERE / 'data.py'}:evaluation"


def compress(recipe: Path, out: Path, *, seed: int = 0) -> Any:
    """The teacher through ``recipe``; the plan is ``out``. Gives ``steps`` with ``before`` and ``after``."""
    options = ["--task", TASK, "--recipe", str(recipe), "--seed", str(seed)]
    return edgekit("compress", SOURCE, *options, "--out", str(out))


def build(source: str | Path, target: str, out: Path) -> Any:
    """One artifact, ``out/target``: its manifest. The metric is the accuracy on the test set."""
    options = ["--target", target, "--calib", CALIBRATION, "--eval", EVALUATION]
    made = edgekit("build", str(source), *options, "--no-speed-gate", "--out", str(out))
    return made["targets"][0]["manifest"]


def bench(artifacts: Sequence[Path], against: Path) -> list[Any]:
    """Times of one padded sentence, each artifact's interleaved with those of ``against``."""
    return list(edgekit("bench", *map(str, artifacts), "--vs", str(against))["measurements"])


def pack(file: Path) -> Any:
    """``file`` coded without loss, beside it: ``original_bytes`` and ``packed_bytes``."""
    return edgekit("pack", str(file), "--out", f"{file}.ekz")


def edgekit(*arguments: str) -> Any:
    """What a command prints with ``--json``."""
    print(f"$ edgekit {shlex.join(arguments)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "edgekit", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)
