"""What happens to one architecture, each stage in a process of its own."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError

LIMIT = 1e-4
"""Relative max error that an fp32 artifact may have against PyTorch."""

TRANSPARENT_DB, SLACK_DB = 40.0, 3.0
"""An int8 artifact passes if it is as near to PyTorch as the same Q/DQ graph is in ONNX Runtime, less 3 dB;
random weights tell how well a graph is lowered, not how well a trained model quantizes."""

CALIBRATION_SAMPLES = 8
SEED = 0

Arrays = Mapping[str, np.ndarray]


def export(name: str, folder: Path) -> dict[str, Any]:
    """Build the module, let batch norms settle, export and optimize; keep inputs and PyTorch's outputs."""
    import torch

    from edgekit.graph import export as exporter
    from edgekit.graph import passes
    from edgekit.graph.nested import call
    from edgekit.types import TorchModel
    from zoo_models import registry, settle

    torch.manual_seed(SEED)
    architecture = registry()[name]
    try:
        module = architecture.build().eval()
        settle(architecture, module)
        inputs = dict(architecture.inputs(module, 1))
        with torch.no_grad():
            outputs = {k: v.numpy() for k, v in call(module, inputs).items()}
    except Exception as error:  # noqa: BLE001 - the zoo's own mistake: shown, not hidden
        return _failure("broken", error)
    try:
        with torch.no_grad():
            raw = exporter.export(TorchModel(module=module, example_inputs=inputs), folder / "raw.onnx")
        passes.optimize(raw, folder / "model.onnx")
        (folder / "raw.onnx").unlink()
    except EdgekitError as error:
        return _failure("not exported", error)
    np.savez(folder / "inputs.npz", **{k: v.numpy() for k, v in inputs.items()})
    np.savez(folder / "outputs.npz", **{f"{i:02d}": v for i, v in enumerate(outputs.values())})
    parameters = sum(p.numel() for p in module.parameters())
    return {"status": "pass", "parameters": parameters}


def compare(name: str, folder: Path, precision: str) -> dict[str, Any]:
    """Compile, run in LiteRT, compare with PyTorch's outputs."""
    from edgekit.backends.tflite.compiler import check_onnx, compile_onnx
    from edgekit.graph import io

    inputs, reference = load(folder / "inputs.npz"), list(load(folder / "outputs.npz").values())
    facts: dict[str, Any] = {}
    path = folder / "model.onnx"
    if precision == "int8":
        try:
            check_onnx(io.load(path))
        except EdgekitError as error:
            return _refused(error)
        try:
            path = quantize(name, folder)
        except EdgekitError as error:
            return _failure("not quantized", error)
        facts["onnx_snr_db"] = round(snr(in_onnxruntime(path, inputs), reference), 1)
    model = io.load(path)
    start = time.perf_counter()
    try:
        compiled = compile_onnx(model)
    except EdgekitError as error:
        return _refused(error)
    except Exception as error:  # noqa: BLE001 - an error of the compiler is a result of the zoo
        return _failure("error", error)
    seconds = time.perf_counter() - start
    facts |= {"compile_seconds": round(seconds, 3), "bytes": len(compiled.data)}
    try:
        outputs, partitions = run(bytes(compiled.data), inputs, [o.name for o in compiled.outputs])
    except (RuntimeError, ValueError) as error:
        return _failure("not run", error) | facts
    facts |= partitions
    if [o.shape for o in outputs] != [r.shape for r in reference]:
        shapes = f"{[o.shape for o in outputs]} instead of {[r.shape for r in reference]}"
        return {"status": "wrong shape", "message": shapes} | facts
    errors = [relative_error(a, r) for a, r in zip(outputs, reference, strict=True)]
    if precision == "int8":
        facts["snr_db"] = round(snr(outputs, reference), 1)
        near = facts["snr_db"] >= min(facts["onnx_snr_db"], TRANSPARENT_DB) - SLACK_DB
        return {"status": "pass" if near else "inaccurate"} | facts
    worst = max(errors)
    return {"status": "pass" if worst <= LIMIT else "inaccurate", "error": worst} | facts


def quantize(name: str, folder: Path, target: str = "tflite-int8") -> Path:
    """The model with Q/DQ by the target's scheme, calibrated on random inputs."""
    import torch

    from edgekit.core import targets
    from edgekit.graph import io
    from edgekit.load.samples import from_iterable
    from edgekit.quantize.calibrate.collect import calibrate
    from edgekit.quantize.driver import quantize as insert
    from edgekit.quantize.float_model import FloatModel
    from edgekit.quantize.options import QuantizeOptions
    from zoo_models import registry

    torch.manual_seed(SEED + 1)
    architecture = registry()[name]
    module = torch.nn.Module() if not _needs_module(architecture.name) else architecture.build()
    items = [
        {k: v.numpy() for k, v in architecture.inputs(module, 1).items()} for _ in range(CALIBRATION_SAMPLES)
    ]
    model = io.describe(folder / "model.onnx")
    renamed = [dict(zip(model.input_names, item.values(), strict=False)) for item in items]
    samples = from_iterable(renamed, model.inputs)
    calibration = calibrate(model, samples, out=folder / "calibration")
    out = folder / ("int8.onnx" if target == "tflite-int8" else f"{target}.onnx")
    quantized, _ = insert(FloatModel(model, calibration), targets.find(target), QuantizeOptions(), out)
    return quantized.path


def _needs_module(name: str) -> bool:
    """Whether the inputs' names come from the module's signature."""
    return name.startswith(("torchvision/", "timm/"))


def in_onnxruntime(path: Path, inputs: Arrays, *, optimized: bool = True) -> list[np.ndarray]:
    """The graph's outputs; ``optimized``: whether the runtime may rewrite it."""
    from edgekit.graph import io

    session = io.session(path, optimized=optimized)
    taken = {i.name for i in session.get_inputs()}
    return list(session.run(None, {k: v for k, v in inputs.items() if k in taken}))


def snr(outputs: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """10 log10(signal / noise) over all float outputs, at most 200 dB."""
    pairs = [(o.astype(np.float64), r.astype(np.float64)) for o, r in zip(outputs, reference, strict=True)]
    floats = [(o, r) for (o, r), kind in zip(pairs, reference, strict=True) if kind.dtype.kind == "f"]
    noise = sum(float(np.square(o - r).sum()) for o, r in floats)
    signal = sum(float(np.square(r).sum()) for _, r in floats)
    if not noise or not signal:
        return 200.0
    return min(200.0, 10 * float(np.log10(signal / noise)))


def noise(name: str) -> dict[str, Any]:
    """How far PyTorch's own float32 outputs are from its float64 outputs: what rounding alone does."""
    import torch

    from edgekit.graph.nested import call
    from zoo_models import registry, settle

    torch.manual_seed(SEED)
    architecture = registry()[name]
    module = architecture.build().eval()
    settle(architecture, module)
    inputs = dict(architecture.inputs(module, 1))
    with torch.no_grad():
        narrow = [v.numpy() for v in call(module, inputs).values()]
        double = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        wide = [v.numpy() for v in call(module.double(), double).values()]
    return {"status": "pass", "error": max(relative_error(a, b) for a, b in zip(narrow, wide, strict=True))}


def run(data: bytes, inputs: Arrays, names: list[str]) -> tuple[list[np.ndarray], dict[str, int]]:
    """The file's outputs in order, and how many operators and delegate partitions it runs as."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    signature = interpreter.get_signature_runner("serving_default")
    taken = signature.get_input_details()
    fed = {k: _as(v, taken[k]["dtype"]) for k, v in inputs.items() if k in taken}
    results = signature(**fed)
    operators = interpreter._get_ops_details()
    partitions = sum(op["op_name"] == "DELEGATE" for op in operators)
    counts = {"operators": _operators(operators), "partitions": partitions}
    return [np.asarray(results[name]) for name in names], counts


def relative_error(actual: np.ndarray, reference: np.ndarray) -> float:
    """max |a - r| / max |r| where the reference is finite; the share of different elements for integers."""
    if reference.size == 0:
        return 0.0
    if reference.dtype.kind != "f":
        return float((actual != reference).mean())
    finite = np.isfinite(reference)
    if not np.array_equal(np.nan_to_num(actual[~finite]), np.nan_to_num(reference[~finite])):
        return float("inf")
    if not finite.any():
        return 0.0
    wide, exact = actual[finite].astype(np.float64), reference[finite].astype(np.float64)
    if not np.isfinite(wide).all():
        return float("inf")
    scale = np.abs(exact).max()
    return float(np.abs(wide - exact).max() / (scale if scale > 0 else 1.0))


def _operators(details: list[dict[str, Any]]) -> int:
    return sum(op["op_name"] != "DELEGATE" for op in details)


def _as(array: np.ndarray, dtype: Any) -> np.ndarray:
    return array.astype(dtype) if array.dtype != dtype else array


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {k: archive[k] for k in archive.files}


def _refused(error: EdgekitError) -> dict[str, Any]:
    status = "refused" if error.exit_code == 4 else "error"
    return _failure(status, error) | {"nodes": error.to_json().get("nodes", [])}


def _failure(status: str, error: BaseException) -> dict[str, Any]:
    return {
        "status": status,
        "message": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)[-12:]),
    }
