"""edgekit's INT8 against each runtime's own quantizer, on real weights, in one run.

    python tools/compare_quantizers.py [NETWORK…] [--runtime NAME]… [--limit N] [--out docs/quantizers.md]

Peers: ONNX Runtime's ``quantize_static``, NNCF for OpenVINO, litert-quantizer for LiteRT, each with several
settings, of which the table shows the best by the network's own figure: the comparison favours the peer.
A peer that is not installed is left out, and the table says so. Latencies are medians, taken in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from real_networks import DATA, NETWORKS, Inputs, Items, Network, agreement

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from edgekit import catalog, export, graph, passes
from edgekit.calibrate import Calibration, calibrate
from edgekit.quantize import QuantizeOptions, quantize
from edgekit.types import OnnxModel

Run = Callable[[Inputs], np.ndarray]
Peers = Mapping[str, Callable[[], Path]]
ROOT = Path(__file__).resolve().parent.parent
_TIMED = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One artifact's figures."""

    network: str
    runtime: str
    quantizer: str
    setting: str
    score: float
    snr: float
    milliseconds: float


# --- runtimes ----------------------------------------------------------------------------------------------


def onnxruntime_run(path: Path) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def openvino_run(path: Path) -> Run:
    import openvino

    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(path), "CPU", properties)
    return lambda inputs: compiled(inputs)[0]


def litert_run(path: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()

    sources, results = runner.get_input_details(), runner.get_output_details()
    (output,) = results

    def run(inputs: Inputs) -> np.ndarray:
        fed = {n: stored(a, sources[n]) for n, a in inputs.items()}
        return real(runner(**fed)[output].copy(), results[output])

    return run


def stored(array: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """A float array as a quantized input takes it; others as they are."""
    if tensor["dtype"] == array.dtype.type:
        return array
    scale, zero = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.rint(array / scale) + zero, limits.min, limits.max).astype(tensor["dtype"])


def real(array: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """What a quantized output stands for."""
    scale, zero = tensor["quantization"]
    return (array.astype(np.float32) - zero) * np.float32(scale) if scale else array


# --- peers: settings, and what makes the file of each -------------------------------------------------------


def onnxruntime_peers(model: Path, network: Network, folder: Path) -> Peers:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, inputs: list[Inputs]) -> None:
            self.rest = iter(inputs)

        def get_next(self) -> Inputs | None:
            return next(self.rest, None)

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)

    def make(method: str, count: int) -> Path:
        out = folder / f"peer-{method}.onnx"
        quantize_static(
            str(prepared), str(out), Reader(list(network.calibration[:count])), quant_format=QuantFormat.QDQ,
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )  # fmt: skip
        return out

    settings = {"MinMax": 128, "Percentile": 32, "Entropy": 32}  # the last two keep all activations in memory
    return {f"quantize_static U8S8 {m}": functools.partial(make, m, n) for m, n in settings.items()}


def openvino_peers(model: Path, network: Network, folder: Path) -> Peers:
    os.environ["NNCF_TELEMETRY"] = "0"
    import nncf
    import openvino

    kind = nncf.ModelType.TRANSFORMER if "MiniLM" in network.name else None

    def make(fast: bool) -> Path:
        out = folder / f"peer-{fast}.xml"
        made = nncf.quantize(
            openvino.Core().read_model(str(model)), nncf.Dataset(list(network.calibration)),
            preset=nncf.QuantizationPreset.MIXED, model_type=kind, fast_bias_correction=fast,
            subset_size=min(len(network.calibration), 300),
        )  # fmt: skip
        openvino.save_model(made, str(out), compress_to_fp16=False)
        return out

    names = {True: "NNCF mixed, fast bias correction", False: "NNCF mixed, bias correction"}
    return {name: functools.partial(make, fast) for fast, name in names.items()}


def litert_peers(model: Path, network: Network, folder: Path) -> Peers:
    from litert_quantizer import recipe
    from litert_quantizer.quantizer import Quantizer

    lite = compiled(model, folder / "float.tflite")

    def make(name: str) -> Path:
        quantizer = Quantizer(str(lite))
        quantizer.load_quantization_recipe(recipe.static_wi8_ai8(recipe.AlgorithmName[name]))
        key = next(iter(litert_signatures(lite)))
        seen = quantizer.calibrate({key: list(network.calibration)}, num_threads=1)
        out = folder / f"peer-{name}.tflite"
        out.write_bytes(bytes(quantizer.quantize(seen).quantized_model))
        return out

    return {
        f"litert-quantizer {n}": functools.partial(make, n) for n in ("MIN_MAX_UNIFORM_QUANT", "OCTAV", "MSE")
    }


def litert_signatures(path: Path) -> list[str]:
    from ai_edge_litert.interpreter import Interpreter

    return list(Interpreter(str(path)).get_signature_list())


def compiled(model: Path, out: Path) -> Path:
    from edgekit.backends.tflite.compiler import compile_onnx

    out.write_bytes(bytes(compile_onnx(graph.load(model)).data))
    return out


# --- the comparison ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How a runtime runs a file, which target is ours, and what its peers make."""

    target: str
    run: Callable[[Path], Run]
    peers: Callable[[Path, Network, Path], Peers]


RUNTIMES = {
    "onnxruntime": Runtime("ort-int8", onnxruntime_run, onnxruntime_peers),
    "openvino": Runtime("openvino-int8", openvino_run, openvino_peers),
    "litert": Runtime("tflite-int8", litert_run, litert_peers),
}


def main() -> None:
    """Run the comparison and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--runtime", action="append", choices=list(RUNTIMES))
    parser.add_argument("--limit", type=int, default=500, help="evaluation inputs at most")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "quantizers.md")
    options = parser.parse_args()
    rows, missing = [], []
    for key in options.networks:
        network = NETWORKS[key]()
        network = shortened(network, options.limit)
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(network, options.runtime or list(RUNTIMES), Path(folder), missing)
        options.out.write_text(table(rows, sorted(set(missing)), options.limit), encoding="utf-8")


def shortened(network: Network, limit: int) -> Network:
    """Fewer evaluation inputs; figures with labels need them all."""
    if network.score is not agreement:
        return network
    return dataclasses.replace(network, evaluation=network.evaluation[:limit])


def compare(network: Network, runtimes: list[str], folder: Path, missing: list[str]) -> list[Row]:
    """All rows of one network."""
    model = passes.optimize(export.export(network.model, folder / "export.onnx"), folder / "optimized.onnx")
    shapes = {n: tuple(a.shape) for n, a in network.calibration[0].items()}
    if not all(i.is_static for i in model.inputs):
        model = passes.fix_shapes(model, shapes, folder / "model.onnx")
    samples = Items(network.calibration)
    calibration = calibrate(model, samples, out=folder / "calibration")
    run = onnxruntime_run(model.path)
    reference = np.concatenate([run(i) for i in network.evaluation])
    rows = []
    for name in runtimes:
        files = ours(model, calibration, samples, RUNTIMES[name], folder)
        peers = made(name, RUNTIMES[name], (model.path, network, folder), missing)
        candidates = [("edgekit", *files), *(("peer", s, p) for s, p in peers)]
        rows += measure(network, name, candidates, reference)
    return rows


def made(
    name: str, runtime: Runtime, source: tuple[Path, Network, Path], missing: list[str]
) -> list[tuple[str, Path]]:
    """The files of a runtime's peers; what is not installed or fails is told in the table."""
    try:
        settings = runtime.peers(*source)
    except ImportError as error:
        missing.append(f"{name}: {error.name} is not installed")
        return []
    files = []
    for setting, make in settings.items():
        try:
            files.append((setting, make()))
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way
            told = " ".join(str(error).split())[:120]
            missing.append(f"{source[1].name}, {setting}: {type(error).__name__}: {told}")
    return files


def ours(
    model: OnnxModel, calibration: Calibration, samples: Items, runtime: Runtime, folder: Path
) -> tuple[str, Path]:
    """edgekit's artifact with everything on auto."""
    target = catalog.target(runtime.target)
    options = QuantizeOptions(method="auto", corrections=("auto",))
    out = folder / f"{runtime.target}.onnx"
    quantized, report = quantize(model, calibration, target, options, out, samples)
    path = (
        compiled(quantized.path, folder / "edgekit.tflite")
        if runtime.target == "tflite-int8"
        else quantized.path
    )
    return f"auto: {', '.join((report.method, *report.corrections))}", path


def measure(
    network: Network, runtime: str, candidates: list[tuple[str, str, Path]], reference: np.ndarray
) -> list[Row]:
    """Score every candidate; time ours and the best peer in turns."""
    runs = [(quantizer, setting, RUNTIMES[runtime].run(path)) for quantizer, setting, path in candidates]
    times: list[list[float]] = [[] for _ in runs]
    for i in range(_TIMED):
        for (_, _, run), taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run(network.evaluation[i % len(network.evaluation)])
            taken.append((time.perf_counter() - start) * 1e3)
    rows = []
    for (quantizer, setting, run), taken in zip(runs, times, strict=True):
        outputs = np.concatenate([run(i) for i in network.evaluation])
        noise = float(np.square(outputs.astype(np.float64) - reference).sum())
        row = Row(
            network=network.name, runtime=runtime, quantizer=quantizer, setting=setting,
            score=network.score(outputs, reference), milliseconds=statistics.median(taken),
            snr=10 * float(np.log10(np.square(reference, dtype=np.float64).sum() / max(noise, 1e-30))),
        )  # fmt: skip
        print(row, flush=True)
        rows.append(row)
    return rows


def table(rows: list[Row], missing: list[str], limit: int) -> str:
    """The page: the best peer beside ours, every setting below."""
    lines = [
        "# INT8 quantizers compared", "",
        f"Made by `tools/compare_quantizers.py --limit {limit}` on real weights and inputs (the data sets are not part",
        "of the project). The score is top-1 agreement with float32 in percent; for MiniLM it is the change of SST-2",
        "accuracy in points. Peers have several settings; the best by score is shown. Times are medians in ms, one",
        "thread, taken in turns on a shared machine: compare within a row only.", "",
        "| network | runtime | edgekit | SNR dB | ms | best peer | SNR dB | ms | peer's setting |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    keys = dict.fromkeys((r.network, r.runtime) for r in rows)
    for network, runtime in keys:
        mine = next(r for r in rows if (r.network, r.runtime, r.quantizer) == (network, runtime, "edgekit"))
        peers = [r for r in rows if (r.network, r.runtime, r.quantizer) == (network, runtime, "peer")]
        best = max(peers, key=lambda r: (r.score, r.snr), default=None)
        theirs = (
            f"{best.score:.2f} | {best.snr:.1f} | {best.milliseconds:.2f} | {best.setting}"
            if best
            else "- | - | - | -"
        )
        lines.append(
            f"| {network} | {runtime} | {mine.score:.2f} | {mine.snr:.1f} | {mine.milliseconds:.2f} | {theirs} |"
        )
    lines += [
        "",
        "## Every setting",
        "",
        "| network | runtime | quantizer | score | SNR dB | ms |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        name = f"edgekit {r.setting}" if r.quantizer == "edgekit" else r.setting
        lines.append(
            f"| {r.network} | {r.runtime} | {name} | {r.score:.2f} | {r.snr:.1f} | {r.milliseconds:.2f} |"
        )
    lines += ["", *(f"Left out: {m}." for m in missing)] if missing else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    assert DATA.is_dir(), f"no data sets at {DATA}: set EDGEKIT_DATA"
    main()
