"""The short way: export, lower and run in this process, without a build's gates, samples and fresh processes.

A few seconds a module. What is not right here goes through a whole build, which says whether it is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit import load
from edgekit.backends.onnxruntime.artifact import lower as lower_onnxruntime
from edgekit.backends.openvino.artifact import lower as lower_openvino
from edgekit.backends.openvino.artifact import runtime as openvino
from edgekit.backends.tflite.artifact import lower as lower_tflite
from edgekit.core import targets
from edgekit.graph import export, io, passes
from edgekit.types import Lowered, OnnxModel, TorchModel
from torture.case import Case
from torture.judge import FRESH, far, named, near, reference

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], list[np.ndarray]]


def decibels(case: Case, module: nn.Module, plain: nn.Module) -> dict[str, float]:
    """The worst signal-to-noise ratio of each float32 target that is right."""
    source = load.from_module(module, case.example(1), dynamic_axes=case.dynamic)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        with torch.no_grad():
            exported = export.export(source, folder / "exported.onnx")
        model = passes.optimize(exported, folder / "model.onnx")
        for target, prepare in _RUNTIMES.items():
            try:
                decibel = _decibel(
                    case, plain, source, prepare(_shaped(target, source, model), folder), target
                )
            except Exception:  # noqa: BLE001 - a whole build says what is wrong
                continue
            if decibel is not None:
                found[target] = decibel
    return found


def _shaped(target: str, source: TorchModel, model: OnnxModel) -> OnnxModel:
    if not targets.find(target).fixed_shapes or all(spec.is_static for spec in model.inputs):
        return model
    shapes = {n: tuple(t.shape) for n, t in source.example_inputs.items() if n in model.input_names}
    return passes.fix_shapes(model, shapes, model.path.with_name("fixed.onnx"))


def _decibel(case: Case, plain: nn.Module, source: TorchModel, run: Run, target: str) -> float | None:
    """The worst over inputs that the export has not seen; ``None`` where one is far."""
    examples = [case.example(1000 + i) for i in range(FRESH)]
    if case.other is not None and not targets.find(target).fixed_shapes:
        examples += [case.example(2000 + i, other=True) for i in range(FRESH)]
    worst = float("inf")
    for example in examples:
        got = run(named(list(source.example_inputs), example))
        problem, decibel = far(got, reference(plain, example), "fp32", near(case, "fp32"))
        if problem:
            return None
        worst = min(worst, decibel)
    return worst


# --- runtimes -----------------------------------------------------------------------------------------


def _onnxruntime(model: OnnxModel, folder: Path) -> Run:
    (out := folder / "ort").mkdir()
    lowered = lower_onnxruntime(model, targets.find("ort-fp32"), {}, out)
    session = io.session(out / lowered.files[0])
    taken = {i.name for i in session.get_inputs()}
    return lambda inputs: list(session.run(None, {k: v for k, v in inputs.items() if k in taken}))


def _openvino(model: OnnxModel, folder: Path) -> Run:
    (out := folder / "openvino").mkdir()
    lowered = lower_openvino(model, targets.find("openvino-fp32"), {}, out)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino().Core().compile_model(str(out / lowered.files[0]), "CPU", hint)
    taken = {name for value in compiled.inputs for name in value.get_names()}

    def run(inputs: Arrays) -> list[np.ndarray]:
        results = compiled({k: v for k, v in inputs.items() if k in taken})
        return [np.array(results[value]) for value in compiled.outputs]

    return run


def _tflite(model: OnnxModel, folder: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    (out := folder / "tflite").mkdir()
    lowered = lower_tflite(model, targets.find("tflite-fp32"), {}, out)
    interpreter = Interpreter(str(out / lowered.files[0]), num_threads=1)
    signature = interpreter.get_signature_runner("serving_default")
    details: Mapping[str, Any] = signature.get_input_details()

    def run(inputs: Arrays) -> list[np.ndarray]:
        fed = {k: _moved(v, k, lowered, last=True) for k, v in inputs.items() if k in details}
        results = signature(**{k: v.astype(details[k]["dtype"]) for k, v in fed.items()})
        return [_moved(results[spec.name], spec.name, lowered, last=False) for spec in lowered.outputs]

    return run


def _moved(array: np.ndarray, name: str, lowered: Lowered, *, last: bool) -> np.ndarray:
    """Channels where the file has them, or where the source has them."""
    if name not in lowered.channels_moved:
        return array
    return np.moveaxis(array, 1, -1) if last else np.moveaxis(array, -1, 1)


_RUNTIMES = {"ort-fp32": _onnxruntime, "openvino-fp32": _openvino, "tflite-fp32": _tflite}
