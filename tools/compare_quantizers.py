"""edgekit's INT8 against each runtime's own quantizer, on real weights, in one run.

    python tools/compare_quantizers.py [NETWORK…] [--runtime NAME]… [--limit N] [--out docs/quantizers.md]
    python tools/compare_quantizers.py --only make --work DIR …   # the files and their figures
    python tools/compare_quantizers.py --only time --work DIR …   # latencies, on a quiet machine, and the page
    python tools/compare_quantizers.py --only make --work DIR --local --section "Without VNNI" …   # a section of it

Peers: ONNX Runtime's ``quantize_static``, NNCF for OpenVINO, litert-quantizer for LiteRT, each with several
settings, of which the table shows the best by the network's own figure: the comparison favours the peer.
NNCF and litert-quantizer are not among edgekit's packages: run this with the Python of an environment that has them
beside edgekit's. A peer that is not installed is left out, and the page says so.

``--local`` quantizes for this machine's processor, as ``edgekit build --device local`` does; ONNX Runtime's quantizer
then reduces the range as well. ``--section`` puts the figures of the files, without latencies, into the page that is
there.

Latency: every file of a row in turns, each time in a process of its own (see ``time_artifact.py``), in an order that
rotates from round to round; the quickest round counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the environment of the peers need not have edgekit installed

from real_networks import DATA, NETWORKS, Inputs, Items, Network, agreement  # noqa: E402
from time_artifact import RUNS  # noqa: E402

from edgekit.core import plugins, targets  # noqa: E402
from edgekit.devices.target_device import adaptation_here  # noqa: E402
from edgekit.graph import export, io, passes  # noqa: E402
from edgekit.quantize.calibrate.collect import calibrate  # noqa: E402
from edgekit.quantize.driver import quantize  # noqa: E402
from edgekit.quantize.float_model import FloatModel  # noqa: E402
from edgekit.quantize.options import QuantizeOptions  # noqa: E402
from edgekit.types import Target  # noqa: E402

Peers = Mapping[str, Callable[[], Path]]
_TIMED = 30  # runs a process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One artifact's figures. ``file`` is relative to the folder of its network."""

    network: str
    runtime: str
    quantizer: str
    setting: str
    file: str
    score: float
    snr: float
    milliseconds: float = float("nan")


# --- peers: settings, and what makes the file of each -------------------------------------------------------


def onnxruntime_peers(model: Path, network: Network, folder: Path, local: bool) -> Peers:
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
            calibrate_method=CalibrationMethod[method], reduce_range=local,
        )  # fmt: skip
        return out

    settings = {"MinMax": 128, "Percentile": 32, "Entropy": 32}  # the last two keep all activations in memory
    return {f"quantize_static U8S8 {m}": functools.partial(make, m, n) for m, n in settings.items()}


def openvino_peers(model: Path, network: Network, folder: Path, local: bool) -> Peers:
    del local  # NNCF looks after overflow by itself
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


def litert_peers(model: Path, network: Network, folder: Path, local: bool) -> Peers:
    del local  # INT8 by INT8 does not saturate
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

    out.write_bytes(bytes(compile_onnx(io.load(model)).data))
    return out


# --- the comparison ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Which target is ours, and what the runtime's peers make."""

    target: str
    peers: Callable[[Path, Network, Path, bool], Peers]


RUNTIMES = {
    "onnxruntime": Runtime("ort-int8", onnxruntime_peers),
    "openvino": Runtime("openvino-int8", openvino_peers),
    "litert": Runtime("tflite-int8", litert_peers),
}


def main() -> None:
    """Make, time, write the page: all of it, or the part asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--runtime", action="append", choices=list(RUNTIMES))
    parser.add_argument("--limit", type=int, default=500, help="evaluation inputs at most")
    parser.add_argument("--rounds", type=int, default=6, help="of timing")
    parser.add_argument("--only", choices=("make", "time"))
    parser.add_argument("--local", action="store_true", help="for this machine's processor")
    parser.add_argument("--section", help="of the page; the rest stays as it is")
    parser.add_argument("--work", type=Path, help="where the files lie between making and timing")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "quantizers.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        if options.only != "time":
            for key in options.networks:
                make(key, work / key, options.runtime or list(RUNTIMES), options.limit, local=options.local)
        if options.section:
            found = [read(work / key) for key in options.networks]
            rows = [r for rows, _ in found for r in rows]
            put_section(options.out, options.section, rows, options.limit)
            return
        if options.only != "make":
            found = [timed(work / key, options.rounds) for key in options.networks]
            missing = sorted({m for _, left_out in found for m in left_out})
            rows = [row for timings, _ in found for row in timings]
            options.out.write_text(table(rows, missing, options.limit), encoding="utf-8")


def shortened(network: Network, limit: int) -> Network:
    """Fewer evaluation inputs; figures with labels need them all."""
    if network.score is not agreement:
        return network
    return dataclasses.replace(network, evaluation=network.evaluation[:limit])


def make(key: str, folder: Path, runtimes: list[str], limit: int, *, local: bool) -> None:
    """Every quantizer's files of one network, and their figures in ``rows.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    network = shortened(NETWORKS[key](), limit)
    np.savez(folder / "inputs.npz", **network.evaluation[0])
    model = passes.optimize(export.export(network.model, folder / "export.onnx"), folder / "optimized.onnx")
    shapes = {n: tuple(a.shape) for n, a in network.calibration[0].items()}
    if not all(i.is_static for i in model.inputs):
        model = passes.fix_shapes(model, shapes, folder / "model.onnx")
    samples = Items(network.calibration)
    calibration = calibrate(model, samples, out=folder / "calibration")
    run = RUNS["onnxruntime"](model.path)
    reference = np.concatenate([run(i) for i in network.evaluation])
    rows: list[Row] = []
    missing: list[str] = []
    for name in runtimes:
        files = ours(FloatModel(model, calibration, samples), target_of(RUNTIMES[name], local), folder)
        peers = made(name, RUNTIMES[name], (model.path, network, folder, local), missing)
        candidates = [("edgekit", *files), *(("peer", s, p) for s, p in peers)]
        rows += [judged(network, name, candidate, reference, folder) for candidate in candidates]
    document = {"rows": [dataclasses.asdict(r) for r in rows], "missing": missing}
    (folder / "rows.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def made(
    name: str, runtime: Runtime, source: tuple[Path, Network, Path, bool], missing: list[str]
) -> list[tuple[str, Path]]:
    """The files of a runtime's peers; what is not installed or fails is told in the table."""
    settings: Peers
    try:
        settings = runtime.peers(*source)
    except ImportError as error:
        missing.append(f"{name}: {error.name} is not installed")
        return []
    files = []
    for setting, build in settings.items():
        try:
            files.append((setting, build()))
        except ImportError as error:
            missing.append(f"{name}: {error.name} is not installed")
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way
            told = " ".join(str(error).split())[:120]
            missing.append(f"{source[1].name}, {setting}: {type(error).__name__}: {told}")
    return files


def target_of(runtime: Runtime, local: bool) -> Target:
    """edgekit's row, for any processor or for this one."""
    target = targets.find(runtime.target)
    choice = adaptation_here(target) if local else None
    if choice is None or target.scheme is None:
        return target
    bits = choice.weight_bits or target.scheme.weight_bits
    return dataclasses.replace(target, scheme=dataclasses.replace(target.scheme, weight_bits=bits))


def ours(floats: FloatModel, target: Target, folder: Path) -> tuple[str, Path]:
    """edgekit's artifact with everything on auto."""
    assert target.scheme is not None
    bits = target.scheme.weight_bits
    options = QuantizeOptions(method="auto", corrections=("auto",), weight_bits=bits)
    out = folder / f"{target.name}.onnx"
    quantized, report = quantize(floats, target, options, out)
    made = folder / target.name
    made.mkdir(exist_ok=True)
    settings = {o.name: o.default for o in target.options}
    lowered = plugins.backend(target.backend).lower(quantized, target, settings, made)
    setting = f"auto: {', '.join((report.method, *report.corrections))}" + (", 7 bits" if bits == 7 else "")
    return setting, made / lowered.files[0]


def judged(
    network: Network, runtime: str, candidate: tuple[str, str, Path], reference: np.ndarray, folder: Path
) -> Row:
    """One file's score and SNR over the evaluation inputs."""
    quantizer, setting, path = candidate
    run = RUNS[runtime](path)
    outputs = np.concatenate([run(i) for i in network.evaluation])
    noise = float(np.square(outputs.astype(np.float64) - reference).sum())
    row = Row(
        network=network.name, runtime=runtime, quantizer=quantizer, setting=setting,
        file=str(path.relative_to(folder)),
        score=network.score(outputs, reference),
        snr=10 * float(np.log10(np.square(reference, dtype=np.float64).sum() / max(noise, 1e-30))),
    )  # fmt: skip
    print(row, file=sys.stderr, flush=True)
    return row


def read(folder: Path) -> tuple[list[Row], list[str]]:
    """The rows of one network, and what is missing among them."""
    document = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    return [Row(**r) for r in document["rows"]], document["missing"]


def timed(folder: Path, rounds: int) -> tuple[list[Row], list[str]]:
    """The rows of one network with their latencies, and what is missing among them."""
    rows, missing = read(folder)
    found: list[Row] = []
    for runtime in dict.fromkeys(r.runtime for r in rows):
        mine = [r for r in rows if r.runtime == runtime]
        best = dict.fromkeys(mine, float("inf"))
        for turn in range(rounds):
            place = turn % len(mine)
            for row in (*mine[place:], *mine[:place]):
                best[row] = min(best[row], latency(runtime, folder / row.file, folder / "inputs.npz"))
        found += [dataclasses.replace(r, milliseconds=best[r]) for r in mine]
        for row in found[-len(mine) :]:
            print(f"{row.network} {runtime} {row.setting}: {row.milliseconds:.3f} ms", file=sys.stderr)
    return found, missing


def latency(runtime: str, file: Path, inputs: Path) -> float:
    """Median milliseconds in a fresh process."""
    script = Path(__file__).with_name("time_artifact.py")
    argv = [sys.executable, str(script), runtime, str(file), str(inputs), str(_TIMED)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def table(rows: list[Row], missing: list[str], limit: int) -> str:
    """The page: the best peer beside ours, every setting below."""
    lines = [
        "# INT8 quantizers compared", "",
        f"Made by `tools/compare_quantizers.py --limit {limit}` on real weights and inputs (the data sets are not part",
        "of the project). The score is top-1 agreement with float32 in percent; for MiniLM it is the change of SST-2",
        "accuracy in points. Peers have several settings; the best by score is shown. Times are in ms, one thread: a",
        "file's quickest median over several rounds, a process of its own each: compare within a row only.", "",
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


def put_section(page: Path, title: str, rows: list[Row], limit: int) -> None:
    """The rows under ``title``, at the page's end or in place of what is there."""
    choice = adaptation_here(targets.find("ort-int8"))
    processor = f"{choice.arch} without {', '.join(choice.lacks)}" if choice else "this processor"
    before, _, rest = page.read_text(encoding="utf-8").partition(f"## {title}\n")
    after = "".join(f"## {part}" for part in rest.split("## ")[1:])
    lines = [
        f"The same with `--limit {limit} --local` on {processor}, quantized for it. Latencies were not taken.", "",
        "| network | runtime | quantizer | score | SNR dB |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for r in rows:
        name = f"edgekit {r.setting}" if r.quantizer == "edgekit" else r.setting
        lines.append(f"| {r.network} | {r.runtime} | {name} | {r.score:.2f} | {r.snr:.1f} |")
    text = f"{before.rstrip()}\n\n## {title}\n\n" + "\n".join(lines) + f"\n\n{after}"
    page.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    assert DATA.is_dir(), f"no data sets at {DATA}: set EDGEKIT_DATA"
    main()
