"""Does the benchmark itself hold? ``bench_harness.py aa|ratio|overhead|peers [options]``; exit code 1 if it does not.

``aa``        The same artifact against itself, under synthetic load: at most 5 % of the verdicts may be wrong.
``ratio``     An artifact with 1.3 times the layers of another, under the same load: no verdict the wrong way round.
``overhead``  What the timing loop adds to one inference: less than 5 µs.
``peers``     p50 beside the runtime's own benchmark tool, interleaved (see ``bench_peers.py``): within 2 %. Wants a
              machine that does nothing else.

The statistics are the product's: ten fresh processes a side, interleaved, and its verdict. Replicates are shortened
(``--seconds``, ``--warmup``). With ``--out FILE`` a comparison is one JSON line, and a run that was cut off goes on;
what was kept is judged again by the method as it is now.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["EDGEKIT_LOCK"] = f"-harness-{os.getpid()}"  # its load is part of it: it need not wait for others

import numpy as np

from edgekit.devices.bench import BenchSettings, compare_artifacts
from edgekit.devices.runnable import Runnable
from edgekit.devices.statistics import paired_difference, wilson

SAME = "no detectable difference"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("aa", "ratio", "overhead", "peers", "load"))
    parser.add_argument("--count", type=int, help="comparisons (aa: 100, ratio: 20), rounds (peers: 9)")
    parser.add_argument("--processes", type=int, default=BenchSettings.processes)
    parser.add_argument("--seconds", type=float, default=0.05, help="steady state of one process")
    parser.add_argument("--warmup", type=float, default=0.2, help="warm-up of one process, at most")
    parser.add_argument("--load", type=int, default=1, help="processes of synthetic load")
    parser.add_argument("--out", type=Path, help="keep each comparison here, and go on from it")
    parser.add_argument("--model", type=Path, help="for peers: .onnx, .xml or .tflite")
    options = parser.parse_args()
    return {"aa": aa, "ratio": ratio, "overhead": overhead, "peers": peers, "load": load}[options.what](
        options
    )


def aa(options: argparse.Namespace) -> int:
    rows = comparisons(options, options.count or 100, layers=(3, 3))
    wrong = [r for r in rows if r["verdict"] != SAME]
    share = wilson(len(wrong), len(rows), confidence=0.95)
    print(
        f"A/A: {len(wrong)} of {len(rows)} verdicts wrong ({len(wrong) / len(rows):.1%}, 95 % interval "
        f"{share.low:.1%} to {share.high:.1%}); median change that would have been found "
        f"{statistics.median(r['detectable'] for r in rows):.1%}; largest ratio among equals "
        f"{max(max(r['ratio'], 1 / r['ratio']) for r in rows):.3f}"
    )
    return int(len(wrong) > 0.05 * len(rows))


def ratio(options: argparse.Namespace) -> int:
    rows = comparisons(options, options.count or 20, layers=(10, 13))
    found = [r["verdict"] for r in rows]
    print(
        f"1.3 times the layers: slower {found.count('slower')}, {SAME} {found.count(SAME)}, faster "
        f"{found.count('faster')} of {len(found)}; ratios {min(r['ratio'] for r in rows):.2f} to "
        f"{max(r['ratio'] for r in rows):.2f}, median {statistics.median(r['ratio'] for r in rows):.3f}"
    )
    return int("faster" in found)


def comparisons(options: argparse.Namespace, count: int, *, layers: tuple[int, int]) -> list[dict[str, Any]]:
    rows = [judged_again(x) for x in kept(options.out)]
    settings = BenchSettings(processes=options.processes, seconds=options.seconds, warmup_s=options.warmup)
    with tempfile.TemporaryDirectory() as folder, synthetic_load(options.load):
        first, second = (
            chain(Path(folder) / f"{side}.onnx", n) for side, n in zip("ab", layers, strict=True)
        )
        while len(rows) < count:
            start = time.monotonic()
            found = compare_artifacts(first, second, settings=settings)
            difference = found.difference
            row = {
                "verdict": difference.verdict,
                "ratio": difference.ratio,
                "p_value": difference.p_value,
                "detectable": difference.detectable,
                "validity": [found.first.validity, found.second.validity],
                "p50_ms": [found.first.p50_ms, found.second.p50_ms],
                "samples": [[statistics.median(p) for p in m.samples] for m in (found.first, found.second)],
                "seconds": round(time.monotonic() - start, 1),
            }
            rows.append(row)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            print(
                f"{len(rows)}: {row['verdict']}, ratio {difference.ratio:.3f}, p {difference.p_value:.3f}, "
                f"{row['seconds']} s, {found.first.validity}",
                flush=True,
            )
    return rows


def kept(out: Path | None) -> list[dict[str, Any]]:
    return [json.loads(x) for x in out.read_text().splitlines()] if out is not None and out.exists() else []


def judged_again(row: dict[str, Any]) -> dict[str, Any]:
    """A kept comparison by today's method: the medians of its processes are all that a verdict rests on."""
    difference = paired_difference(*([[median] for median in side] for side in row["samples"]))
    found = {n: getattr(difference, n) for n in ("verdict", "ratio", "p_value", "detectable")}
    return row | found


def chain(path: Path, layers: int) -> Runnable:
    """So many equal convolutions, one after the other: their number is the work."""
    import onnx
    from onnx import helper as h
    from onnx import numpy_helper as nh

    generator, shape = np.random.default_rng(0), [1, 32, 24, 24]
    weights = [generator.normal(scale=0.06, size=(32, 32, 3, 3)).astype("f") for _ in range(layers)]
    nodes = [h.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], pads=[1] * 4) for i in range(layers)]
    ends = [h.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in ("x0", f"x{layers}")]
    graph = h.make_graph(
        nodes, "chain", ends[:1], ends[1:], [nh.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    )
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10), path)
    sample = {"x0": generator.normal(size=shape).astype("f")}
    return Runnable(backend="onnxruntime", main=path, inputs=sample, options={"threads": 1})


@contextlib.contextmanager
def synthetic_load(count: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, __file__, "load", "--count", str(i)]) for i in range(count)]
    try:
        yield
    finally:
        for child in running:
            child.kill()
            child.wait()


def load(options: argparse.Namespace) -> int:
    """Bursts of work on a processor and its caches, 5 ms to 0.5 s long, with pauses of the same kind between them."""
    chance, field = random.Random(options.count), np.zeros(4_000_000)
    parent = os.getppid()
    while os.getppid() == parent:
        end = time.monotonic() + 0.005 * 100 ** chance.random()
        while time.monotonic() < end:
            field[: chance.randrange(1000, field.size)] += 1.0
        time.sleep(0.005 * 100 ** chance.random())
    return 0


def overhead(options: argparse.Namespace) -> int:
    """The agent's own loop around a call that does nothing."""
    from edgekit.devices.agent.timing import steady

    class Session:
        def invoke(self) -> None:
            pass

    inside, whole = [], []
    for _ in range(options.count or 9):
        start = time.perf_counter_ns()
        times = steady(Session().invoke, {"iterations": 20_000, "max_iterations": 20_000, "seconds": 0})
        whole.append((time.perf_counter_ns() - start) / len(times) / 1e3)
        inside.append(statistics.median(times) * 1e3)
    counted, all_ = statistics.median(inside), statistics.median(whole)
    print(f"overhead: {counted:.2f} µs in each recorded time, {all_:.2f} µs an iteration of the loop")
    return int(all_ >= 5)


def peers(options: argparse.Namespace) -> int:
    import bench_peers

    os.environ.pop("EDGEKIT_LOCK", None)
    with tempfile.TemporaryDirectory() as folder:
        short, long = (chain(Path(folder) / f"{n}.onnx", n).model for n in (10, 20))
        models = [options.model] if options.model else [short, tflite(long)]
        found = [bench_peers.compare(model, options.count or 9) for model in models]
    for comparison in found:
        print(comparison)
    return int(any(abs(comparison.ratio - 1) > 0.02 for comparison in found))


def tflite(model: Path) -> Path:
    """The same model as our compiler makes it for LiteRT."""
    from edgekit.backends import tflite
    from edgekit.core import targets
    from edgekit.graph import io

    target = targets.known()["tflite-fp32"]
    lowered = tflite.lower(io.describe(model), target, {}, model.parent)
    return model.parent / lowered.files[0]


if __name__ == "__main__":
    sys.exit(main())
