"""Kills builds, compressions and packagings with SIGKILL, at random and after each step, and looks at what comes of it.

    python tools/kills.py [--kills 50] [--seed 0] [--folder DIR] [--json FILE]

A run is killed again and again, each time started anew with the same command, until one is let finish. Its files must
be those of a run that nobody disturbed, and nothing may be left of the killed: no half-made files or folders in the
cache, in ``--out`` and in ``TMPDIR``, no process. The exit code is 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

RECIPE = "prune(sparsity=0.5;training.epochs=2);cluster(values=16)"
TARGETS = "ort-int8,tflite-int8"

SOURCE = """
import numpy as np
import torch


def _rows(count, seed):
    generator = np.random.default_rng(seed)
    patterns = np.random.default_rng(1).normal(size=(4, 64)).astype("f")
    for number in range(count):
        noise = generator.normal(size=64).astype("f")
        yield {"input": (patterns[number % 4] + 0.3 * noise)[None]}, number % 4


def train():
    yield from _rows(256, 2)


def evaluation():
    yield from _rows(400, 3)


def calibration():
    yield from (inputs for inputs, _ in _rows(64, 4))


def model():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 4))
    rows = list(train())
    x = torch.from_numpy(np.concatenate([inputs["input"] for inputs, _ in rows]))
    labels = torch.tensor([label for _, label in rows])
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return net, {"input": x[:1]}
"""

MODEL, ARTIFACTS = "model.py:model", "artifacts"
TASK = ("--task", "classification(batch=32)", "--train", "model.py:train", "--eval", "model.py:evaluation")
COMMANDS = {
    "build": (
        "build", MODEL, "-t", TARGETS, "--recipe", RECIPE, *TASK, "--calib", "model.py:calibration",
        "--max-drop", "10%", "--no-speed-gate", "-o", "out",
    ),
    "compress": ("compress", MODEL, "--recipe", RECIPE, *TASK, "--out", "out"),
    "package": (
        "package", f"{ARTIFACTS}/tflite-int8", "--format", "bundle", "--name", "org.example.patterns",
        "--version", "1.0.0", "--out", "out",
    ),
}  # fmt: skip


@dataclasses.dataclass
class Figures:
    """What was seen of one command."""

    command: str
    seconds: float = 0.0
    random: int = 0
    after_a_step: int = 0
    finished_first: int = 0
    left_by_the_killed: int = 0
    left_in_the_end: list[str] = dataclasses.field(default_factory=list)
    other_bytes: list[str] = dataclasses.field(default_factory=list)

    @property
    def kills(self) -> int:
        """How many landed."""
        return self.random + self.after_a_step

    @property
    def holds(self) -> bool:
        """Whether all is as it must be."""
        return not self.left_in_the_end and not self.other_bytes


class Place:
    """A working folder, empty at first, with a cache, a TMPDIR and an output of its own."""

    def __init__(self, folder: Path, command: str) -> None:
        # Always the same one: where a source lies is part of what it is.
        self.folder, self.command = folder / "work", command
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "tmp").mkdir(parents=True)
        (self.folder / "model.py").write_text(SOURCE)
        if command == "package":
            shutil.copytree(folder / ARTIFACTS, self.folder / ARTIFACTS)
        self.mark = f"EDGEKIT_KILLS={self.folder}"

    def start(self) -> subprocess.Popen[bytes]:
        """The command, in a session of its own."""
        name, _, value = self.mark.partition("=")
        own = {"EDGEKIT_CACHE": str(self.folder / "cache"), "TMPDIR": str(self.folder / "tmp"), name: value}
        own["TORCHINDUCTOR_CACHE_DIR"] = str(
            self.folder / "inductor"
        )  # torch makes one in TMPDIR, and keeps it
        argv = [sys.executable, "-m", "edgekit", *COMMANDS[self.command]]
        with (self.folder / "said").open("ab") as said:
            return subprocess.Popen(
                argv, cwd=self.folder, env=os.environ | own, stdout=said, stderr=said, start_new_session=True
            )

    def finish(self) -> float:
        """Let the command end; the seconds that it took."""
        started = time.monotonic()
        if self.start().wait() != 0:
            raise SystemExit(f"{self.command} failed:\n{(self.folder / 'said').read_text()[-3000:]}")
        return time.monotonic() - started

    def files(self) -> dict[str, str]:
        """Of the output."""
        return contents(self.folder / "out")

    def steps(self) -> int:
        """How many steps the cache has."""
        return len(list((self.folder / "cache" / "steps").glob("*/*/step.json")))

    def left(self) -> list[str]:
        """What a run that has ended should not leave."""
        names = [p for place in ("cache", "out") for p in (self.folder / place).rglob(".*-*.*.*")]
        found = [str(p.relative_to(self.folder)) for p in (*names, *(self.folder / "tmp").iterdir())]
        found += [p.name for p in self.folder.glob(".*")]
        return found + [f"process {pid}" for pid in self._processes()]

    def _processes(self) -> Iterator[int]:
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in path.read_bytes().split(b"\0"):
                    yield int(path.parent.name)
            except OSError:
                continue


def contents(out: Path) -> dict[str, str]:
    """sha256 of every file below a folder, the seconds in manifests left out."""
    return {p.relative_to(out).as_posix(): _digest(p) for p in sorted(out.rglob("*")) if p.is_file()}


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.name == "manifest.json":
        document = json.loads(data)
        for step in document["steps"]:
            step.pop("seconds", None)
        data = json.dumps(document, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def kill(place: Place, when: Callable[[], bool]) -> bool:
    """Start the command and kill it when it is time; whether it had not ended before."""
    process = place.start()
    while process.poll() is None and not when():
        time.sleep(0.002)
    landed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return landed


def torture(
    folder: Path, command: str, kills: int, random_source: random.Random, *, every: int = 1
) -> Figures:
    """Kill ``command`` so many times at random moments, and once after each of its steps (or ``every`` few)."""
    figures, place = Figures(command=command), Place(folder, command)
    figures.seconds = round(place.finish(), 1)
    expected, steps = place.files(), place.steps()
    if command == "build":
        shutil.copytree(place.folder / "out", folder / ARTIFACTS, dirs_exist_ok=True)
    place = Place(folder, command)
    for number in range(1, steps + 1, every):
        if kill(place, lambda number=number: place.steps() >= number):  # type: ignore[misc]
            figures.after_a_step += 1
            figures.left_by_the_killed += len(place.left())
    _judge(place, figures, expected, "by step")
    while figures.random < kills and figures.finished_first <= kills:
        place = Place(folder, command)
        for _ in range(min(5, kills - figures.random)):
            end = time.monotonic() + random_source.uniform(0.1, 1.0) * figures.seconds
            if not kill(place, lambda end=end: time.monotonic() >= end):  # type: ignore[misc]
                figures.finished_first += 1
                break
            figures.random += 1
            figures.left_by_the_killed += len(place.left())
        _judge(place, figures, expected, f"random {figures.random}")
    return figures


def _judge(place: Place, figures: Figures, expected: dict[str, str], when: str) -> None:
    if (
        place.command != "package" or not (place.folder / "out").exists()
    ):  # a package is there as a whole, or not
        place.finish()
    time.sleep(1)  # a child of the killed sees the end of its stdin, and ends
    found = place.files()
    other = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
    figures.other_bytes += [f"{when}: {name}" for name in sorted(other)]
    figures.left_in_the_end += [f"{when}: {name}" for name in place.left()]
    print(f"{figures.command}: {when}: {len(other)} files differ, {len(place.left())} are left", flush=True)


def main() -> int:
    """The figures of each command, as a table and as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="at random, over all commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("kills"))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    folder, chance = asked.folder.resolve(), random.Random(asked.seed)
    shares = {"build": 0.5, "compress": 0.3, "package": 0.2}
    done = [torture(folder, c, round(asked.kills * share), chance) for c, share in shares.items()]
    for figures in done:
        print(f"{figures.command:9} {figures.seconds:6.1f} s, killed {figures.random} times at random and "
              f"{figures.after_a_step} after a step, {figures.left_by_the_killed} things left by the killed, "
              f"{len(figures.left_in_the_end)} in the end, {len(figures.other_bytes)} files otherwise")  # fmt: skip
    if asked.json:
        asked.json.write_text(json.dumps([dataclasses.asdict(f) for f in done], indent=2) + "\n")
    return 0 if all(figures.holds for figures in done) else 1


if __name__ == "__main__":
    sys.exit(main())
