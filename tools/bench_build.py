"""How long a build takes: MobileNetV2 at 224 to four INT8 targets, cold and again, phase by phase.

    python tools/bench_build.py [--runs 1] [--repeats 5] [--targets T,…] [--peers] [--json FILE]

Every build is a fresh process. ``cold`` has an empty cache; ``again`` finds everything in it. Wall seconds are what the
user waits, CPU seconds (of the process and of the runtimes that it starts) tell how busy the machine was besides. The
phases are the steps' own seconds, as the manifests have them; targets run side by side, so that their sum is more than
the wall time. ``--peers`` times ONNX Runtime's own quantizer and, where they are installed, NNCF's on the same network
and images. Budgets on two cores: 15 s cold, 0.6 s again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

if TYPE_CHECKING:
    from edgekit.types import TorchModel

TARGETS = "ort-int8,openvino-int8,tflite-int8,tensorrt-rtx-int8"
IMAGES = 32
COLD, AGAIN = 15.0, 0.6
ENTRY = "import sys; from edgekit.cli import main; sys.argv[0] = 'edgekit'; main()"


def network() -> TorchModel:
    """The source of the builds."""
    from bench_calibration import mobilenet

    return mobilenet()


def calibration(folder: Path) -> Path:
    """The calibration images as DATA that costs little to read."""
    from bench_calibration import images

    folder.mkdir()
    for i, array in enumerate(images(IMAGES)):
        np.savez(folder / f"{i:03}.npz", x=array)
    return folder


@dataclass(frozen=True)
class Took:
    """Seconds of one process with its children."""

    wall: float
    cpu: float


def timed(argv: list[str], cache: Path, accepted: tuple[int, ...] = (0,)) -> Took:
    """One fresh process; one that ends otherwise than ``accepted`` ends the benchmark with what it printed."""
    env = {**os.environ, "EDGEKIT_CACHE": str(cache)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in accepted:
        raise SystemExit(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return Took(wall=wall, cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def build(targets: str, work: Path, cache: Path) -> Took:
    """``edgekit build`` of the network. Its weights are random: that a gate refuses an artifact is no matter here."""
    here = Path(__file__).resolve()
    argv = [sys.executable, "-c", ENTRY, "build", f"{here}:network", "--target", targets]
    argv += [
        "--out",
        str(work / "out"),
        "--calib",
        str(work / "images"),
        "--no-speed-gate",
        "--allow-not-run",
    ]
    return timed(argv, cache, accepted=(0, 5))


def phases(cache: Path) -> dict[str, list[float]]:
    """The seconds of every step that ran, by its name."""
    found: dict[str, list[float]] = {}
    for record in sorted(cache.glob("steps/*/*/step.json"), key=lambda p: p.stat().st_mtime):
        found.setdefault(record.parent.parent.name, []).append(json.loads(record.read_bytes())["seconds"])
    return found


def peers(folder: Path) -> dict[str, Took]:
    """What the runtimes' own quantizers take for one target, from exported ONNX."""
    from bench_calibration import export

    export(folder / "model.onnx")
    found = {}
    for name, code in _PEERS.items():
        argv = [sys.executable, "-c", code, str(folder / "model.onnx"), str(folder / "images")]
        try:
            found[name] = timed([*argv, str(folder / f"{name}.onnx")], folder)
        except SystemExit as error:
            print(f"{name}: {str(error).splitlines()[-1]}", file=sys.stderr)
    return found


_PEERS = {
    "onnxruntime.quantization": """
import sys, numpy as np
from pathlib import Path
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
class Reader(CalibrationDataReader):
    def __init__(self, path): self.rows = iter([dict(np.load(f)) for f in sorted(Path(path).iterdir())])
    def get_next(self): return next(self.rows, None)
quantize_static(sys.argv[1], sys.argv[3], Reader(sys.argv[2]), quant_format=QuantFormat.QDQ, per_channel=True)
""",
    "nncf": """
import sys, numpy as np, nncf, onnx
from pathlib import Path
rows = [dict(np.load(f)) for f in sorted(Path(sys.argv[2]).iterdir())]
onnx.save(nncf.quantize(onnx.load(sys.argv[1]), nncf.Dataset(rows), subset_size=len(rows)), sys.argv[3])
""",
}


def main() -> int:
    """Run, print a table; exit 1 when a best time is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    cold, again, steps, others = [], [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        calibration(work / "images")
        for i in range(options.runs):
            cold.append(build(options.targets, work, work / f"cache{i}"))
            steps = phases(work / f"cache{i}")
        again = [
            build(options.targets, work, work / f"cache{options.runs - 1}") for _ in range(options.repeats)
        ]
        if options.peers:
            others = peers(work)

    for name, seconds in steps.items():
        print(f"  {name:20} {sum(seconds):6.2f}  {' + '.join(f'{s:.2f}' for s in seconds)}")
    over = False
    for name, took, budget in (("cold", cold, COLD), ("again", again, AGAIN)):
        walls = [t.wall for t in took]
        over |= min(walls) > budget
        cpu = min(t.cpu for t in took)
        print(
            f"{name:6} best {min(walls):6.2f}  median {statistics.median(walls):6.2f}  cpu {cpu:6.2f}  budget {budget}"
        )
    for name, took in others.items():
        print(f"{name:26} {took.wall:6.2f}  cpu {took.cpu:6.2f}")
    if options.json:
        rows = {"cold": cold, "again": again, **{k: [v] for k, v in others.items()}}
        document = {"phases": steps, **{k: [asdict(t) for t in v] for k, v in rows.items()}}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
