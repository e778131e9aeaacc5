"""Our p50 beside the runtime's own benchmark tool, on one artifact, interleaved: ``bench_peers.py MODEL [ROUNDS]``.

.onnx and .xml go against OpenVINO's benchmark_app, .tflite against ai-edge-litert's litert-benchmark, each with
one thread. Prints a line a round and the ratio of the medians. (litert-benchmark rounds to 10 µs: take a model of
milliseconds.)
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.devices.bench import BenchSettings, bench_artifact
from edgekit.devices.pack import pack
from edgekit.devices.runnable import Runnable
from edgekit.devices.transports.local import LocalTransport
from edgekit.devices.transports.process import Patience

RUNS = 300


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Medians of the rounds' p50, in milliseconds, and how much the rounds of the restless side scatter."""

    peer: str
    ours: float
    theirs: float
    scatter: float

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return self.ours / self.theirs

    def __str__(self) -> str:
        return (
            f"edgekit {self.ours:.4f} ms, {self.peer} {self.theirs:.4f} ms: ratio {self.ratio:.3f} "
            f"(rounds scatter by {self.scatter:.1%})"
        )


def main() -> None:
    print(compare(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 6))


def compare(model: Path, rounds: int) -> Comparison:
    """Both tools in turn, the first of a round changing; at least two rounds."""
    lite = model.suffix == ".tflite"
    backend, peer = ("tflite", litert_benchmark) if lite else ("openvino", benchmark_app)
    variant = Runnable(backend=backend, main=model, inputs=inputs(backend, model), options={"threads": 1})
    settings = BenchSettings(processes=1, seconds=1.0, iterations=RUNS, wait_s=600)
    ours: list[float] = []
    theirs: list[float] = []
    for i in range(rounds):
        for side in ("ours", "theirs") if i % 2 == 0 else ("theirs", "ours"):
            if side == "ours":
                ours.append(bench_artifact(variant, settings=settings).p50_ms)
            else:
                theirs.append(peer(model))
        print(f"{i + 1}: edgekit {ours[-1]:.4f} ms, {peer.__name__} {theirs[-1]:.4f} ms", flush=True)
    return Comparison(
        peer=peer.__name__,
        ours=statistics.median(ours),
        theirs=statistics.median(theirs),
        scatter=max(statistics.stdev(x) / statistics.mean(x) for x in (ours, theirs)),
    )


def inputs(backend: str, model: Path) -> dict[str, np.ndarray]:
    """Random inputs of the model's shapes, dynamic axes 1, as the runtime's own session names them."""
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from edgekit_agent import runner; "
        "s = runner.load(sys.argv[2], {'threads': 1}); "
        "print(json.dumps([{k: i[k] for k in ('name', 'dtype', 'shape')} for i in s.inputs]))"
    )
    lines: list[str] = []
    transport = LocalTransport()
    try:
        with tempfile.TemporaryDirectory() as folder:
            agent = pack(backend).write(Path(folder))
            argv = [sys.executable, "-c", code, str(agent), str(model)]
            transport.run(argv, stdin=b"", on_line=lines.append, patience=Patience(whole=60))
    finally:
        transport.close()
    generator = np.random.default_rng(0)
    return {
        s["name"]: generator.random([d if isinstance(d, int) and d > 0 else 1 for d in s["shape"]]).astype(
            s["dtype"]
        )
        for s in json.loads(lines[-1])
    }


def benchmark_app(model: Path) -> float:
    tool = Path(sys.executable).with_name("benchmark_app")
    shapes = ",".join(f"{n}[{','.join(map(str, a.shape))}]" for n, a in inputs("openvino", model).items())
    argv = [
        tool,
        "-m",
        model,
        "-d",
        "CPU",
        "-api",
        "sync",
        "-hint",
        "none",
        "-nstreams",
        "1",
        "-nthreads",
        "1",
    ]
    argv += ["-niter", str(RUNS), "-infer_precision", "f32", "-shape", shapes]
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Median:\s+([\d.]+) (ms|us)", text)
    assert found, text[-2000:]
    return float(found[1]) / (1000 if found[2] == "us" else 1)


def litert_benchmark(model: Path) -> float:
    tool = Path(sys.executable).with_name("litert-benchmark")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "r.json"
        argv = [tool, "--model", model, "--num_runs", str(RUNS), "--warmup_runs", "50", "--num_threads", "1"]
        subprocess.run([*argv, "--result_json", out], check=True, capture_output=True)
        found = json.loads(out.read_text())
    for key, value in _numbers(found):
        if re.search(r"median|p50", key):
            return value
    raise SystemExit(f"no median in {json.dumps(found)[:500]}")


def _numbers(value: object, key: str = "") -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [n for k, v in value.items() for n in _numbers(v, f"{key}.{k}")]
    return [(key.lower(), float(value))] if isinstance(value, int | float) else []


if __name__ == "__main__":
    main()
