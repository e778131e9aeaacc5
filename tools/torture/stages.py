"""What happens to one module: built for every target in one go, run on other inputs, compared with PyTorch, judged."""

from __future__ import annotations

import copy
import functools
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import edgekit
from edgekit.errors import EdgekitError, GateFailedError, UnsupportedOperatorsError
from torture.case import Case

TARGETS = {
    "fp32": ("ort-fp32", "openvino-fp32", "tflite-fp32"),
    "int8": ("ort-int8", "openvino-int8", "tflite-int8"),
}
FRESH = 3
"""Inputs that the build has not seen."""

CALIBRATION = 24
NEAR_DB = {"fp32": 60.0, "int8": 9.0}
"""What an output that passed must have on fresh inputs, against PyTorch: the gates' limits (80 dB, 12 dB) less what
three small inputs may be worse."""
HALF_DB = 30.0
SAME = {"fp32": 0.99, "int8": 0.8}
"""The share of equal elements of integer and boolean outputs."""

RIGHT, REFUSED, WRONG, DEFECT, UNCLEAR = "right", "refused", "WRONG", "TRACEBACK", "UNCLEAR"

Result = dict[str, Any]


def run(case: Case, precisions: Sequence[str]) -> dict[str, Result]:
    """A result by target."""
    torch.manual_seed(0)
    module = case.build().eval()
    plain = _copied(case, module)
    targets = [t for p in precisions if p == "fp32" or _weighs(module) for t in TARGETS[p]]
    if not targets:
        return {}
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        try:
            built = _build(case, module, targets, Path(folder))
        except EdgekitError as error:
            return {t: _refused(case, error) for t in targets}
        except Exception as error:  # noqa: BLE001 - what this tool is for
            return {t: _defect(error) for t in targets}
        results = {f.target: _refused(case, f.error) for f in built.failures}
        results |= {a.target: _compared(case, plain, a) for a in built.artifacts}
    return {t: results[t] for t in targets}


def share_the_registry() -> None:
    """Let the exporter read its library of operators once in this process, not in every export: two thirds of the time.

    Nothing that edgekit calls adds to a registry after it was made.
    """
    from torch.onnx._internal.exporter import _registration

    made = functools.cache(_registration.ONNXRegistry.from_torchlib)
    setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(made))  # noqa: B010 - a class method, typed


def _copied(case: Case, module: nn.Module) -> nn.Module:
    """The module as it was before edgekit touched it: by a copy, or made again where it does not copy."""
    if isinstance(module, torch.jit.ScriptModule):
        torch.manual_seed(0)
        return case.build().eval()
    return copy.deepcopy(module)


def _weighs(module: nn.Module) -> bool:
    """Whether there is a weight that INT8 could be for."""
    return any(tensor.dim() > 1 for tensor in module.state_dict().values() if isinstance(tensor, Tensor))


def _build(case: Case, module: nn.Module, targets: Sequence[str], out: Path) -> edgekit.BuildResult:
    from edgekit import load

    source: Any = load.from_module(module, case.example(1), dynamic_axes=case.dynamic)
    names = list(source.example_inputs)
    data = [_named(names, case.example(100 + i)) for i in range(CALIBRATION)]
    needs = any(t.endswith("int8") for t in targets)
    return edgekit.build(
        source,
        targets=targets,
        calibration=data if needs else None,
        out=out,
        options=edgekit.Options(speed_gate=False),
    )


def _named(names: Sequence[str], example: Any) -> dict[str, np.ndarray]:
    """Tensors in the order of the call, under edgekit's names."""
    return {n: t.numpy() for n, t in zip(names, tensors(example), strict=True)}


def tensors(value: Any) -> list[Tensor]:
    """The tensors of what a module takes or returns, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in tensors(v)]
    if hasattr(value, "__dataclass_fields__"):
        return [t for f in value.__dataclass_fields__ for t in tensors(getattr(value, f))]
    return []


# --- the comparison -----------------------------------------------------------------------------------


def _compared(case: Case, module: nn.Module, artifact: edgekit.Artifact) -> Result:
    """Right, or WRONG with the first output that is far from PyTorch's."""
    fixed = all(spec.is_static for spec in artifact.manifest.inputs)
    precision = "int8" if artifact.target.endswith("int8") else "fp32"
    examples = [case.example(1000 + i) for i in range(FRESH)]
    if case.other is not None and not fixed:
        examples += [case.example(2000 + i, other=True) for i in range(FRESH)]
    names = [spec.name for spec in artifact.manifest.inputs]
    used = _used(artifact, case)
    try:
        given = [{n: a for n, a in _named(used, e).items() if n in names} for e in examples]
        answers = list(artifact.predict(given))
    except EdgekitError as error:
        return {
            "status": WRONG,
            "message": f"passed, and does not run on other inputs: {error.message[:300]}",
        }
    worst = float("inf")
    for example, answer in zip(examples, answers, strict=True):
        expected = reference(module, example)
        got = list(answer.values())
        problem, decibel = _far(got, expected, precision, _near(case, precision))
        if problem:
            return {"status": WRONG, "message": problem}
        worst = min(worst, decibel)
    said = "fixed shapes" if case.other is not None and fixed else ""
    return {"status": RIGHT, "snr_db": round(min(worst, 200.0), 1)} | ({"message": said} if said else {})


def _used(artifact: edgekit.Artifact, case: Case) -> list[str]:
    """The names of all tensors of the call: those that the graph dropped have one, too."""
    names = [spec.name for spec in artifact.manifest.inputs]
    count = len(tensors(case.example(1)))
    return names + [f"unused {i}" for i in range(count - len(names))]


def reference(module: nn.Module, example: Any) -> list[np.ndarray]:
    """What PyTorch gives, called as a user calls it."""
    again = _cloned(example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(again, Mapping):
            result = module(**again)
        else:
            result = module(*again) if isinstance(again, tuple) else module(again)
    return [t.detach().resolve_conj().resolve_neg().numpy() for t in tensors(result)]


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {k: _cloned(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cloned(v) for v in value)
    return value


def _near(case: Case, precision: str) -> float:
    return min(NEAR_DB[precision], HALF_DB) if case.half else NEAR_DB[precision]


def _far(got: list[np.ndarray], expected: list[np.ndarray], precision: str, near: float) -> tuple[str, float]:
    """What is wrong with an answer, or nothing; and its worst signal-to-noise ratio in dB."""
    if [g.shape for g in got] != [e.shape for e in expected]:
        return f"shapes {[g.shape for g in got]} instead of {[e.shape for e in expected]}", 0.0
    worst = float("inf")
    for i, (g, e) in enumerate(zip(got, expected, strict=True)):
        if not e.size:
            continue
        if e.dtype.kind in "fc":
            decibel = _snr(g, e)
            worst = min(worst, decibel)
            if decibel < near:
                return f"output {i}: {decibel:.1f} dB", decibel
        elif (share := float(np.mean(g == e))) < SAME[precision]:
            return f"output {i}: {share:.0%} of its elements are equal", 0.0
    return "", worst


def _snr(got: np.ndarray, expected: np.ndarray) -> float:
    a, b = expected.astype(np.float64), got.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)) or not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("-inf")
    finite = np.isfinite(a)
    noise = float(np.square(a[finite] - b[finite]).sum())
    signal = float(np.square(a[finite]).sum())
    return 10 * float(np.log10(max(signal, 1e-12) / noise)) if noise > 1e-14 else float("inf")


# --- refusals -----------------------------------------------------------------------------------------


def _refused(case: Case, error: EdgekitError) -> Result:
    """A refusal, clear when it names what is wrong; anything unexpected is a defect."""
    told = {"exit_code": error.exit_code, "message": _short(error), "error": type(error).__name__}
    if error.exit_code not in (3, 4, 5):
        return told | {"status": DEFECT}
    return told | {"status": REFUSED if _names(case, error) else UNCLEAR}


def _names(case: Case, error: EdgekitError) -> bool:
    if isinstance(error, UnsupportedOperatorsError):
        return all(n.op and n.node and n.reason for n in error.nodes)
    if isinstance(error, GateFailedError):
        return bool(error.gates)
    said = f"{error.message} {error.hint}"
    return any(w in said for w in case.reason) or bool(re.search(r"operator \w+::\w+|in module \w", said))


def _short(error: EdgekitError) -> str:
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    return " ".join(lines)[:900]


def _defect(error: BaseException) -> Result:
    trace = traceback.format_exception(error)
    return {
        "status": DEFECT,
        "message": f"{type(error).__name__}: {str(error)[:300]}",
        "traceback": "".join(trace)[-3000:],
    }


def summary(results: Mapping[str, Mapping[str, Result]]) -> Iterator[str]:
    """A line a target: how many of each status."""
    for target in [t for group in TARGETS.values() for t in group]:
        statuses = [r[target]["status"] for r in results.values() if target in r]
        if statuses:
            counts = {s: statuses.count(s) for s in (RIGHT, REFUSED, WRONG, DEFECT, UNCLEAR)}
            share = 100 * counts[RIGHT] / len(statuses)
            said = ", ".join(f"{n} {s}" for s, n in counts.items() if n)
            yield f"{target}: {share:.1f} % of {len(statuses)} right ({said})"
