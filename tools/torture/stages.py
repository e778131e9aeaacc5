"""What happens to one module: built for every target in one go, run on other inputs, compared with PyTorch, judged."""

from __future__ import annotations

import functools
import random
import re
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import edgekit
from edgekit.errors import EdgekitError, GateFailedError, UnsupportedOperatorsError
from torture import direct
from torture.case import CASES, Case
from torture.judge import FRESH, far, named, near, reference, tensors

TARGETS = {
    "fp32": ("ort-fp32", "openvino-fp32", "tflite-fp32"),
    "int8": ("ort-int8", "openvino-int8", "tflite-int8"),
}
RIGHT, REFUSED, WRONG, DEFECT, UNCLEAR = "right", "refused", "WRONG", "TRACEBACK", "UNCLEAR"

CALIBRATION = 24
_SEED = 15

Result = dict[str, Any]


def run(case: Case, precisions: Sequence[str], *, short: bool = False) -> dict[str, Result]:
    """A result by target. ``short``: what is right without a whole build is not built (``direct``)."""
    module, plain = _made(case), _made(case)
    targets = [t for p in precisions if p == "fp32" or _weighs(module) for t in TARGETS[p]]
    at_once = _at_once(case, module, plain) if short and "fp32" in precisions else {}
    left = [t for t in targets if t not in at_once]
    built = _built(case, _made(case), plain, left) if left else {}
    return {t: (at_once | built)[t] for t in targets}


def _at_once(case: Case, module: nn.Module, plain: nn.Module) -> dict[str, Result]:
    try:
        found = direct.decibels(case, module, plain)
    except Exception:  # noqa: BLE001 - a whole build says what is wrong
        return {}
    return {
        t: {"status": RIGHT, "snr_db": round(min(db, 200.0), 1), "how": "direct"} for t, db in found.items()
    }


def _built(case: Case, module: nn.Module, plain: nn.Module, targets: Sequence[str]) -> dict[str, Result]:
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        try:
            built = _build(case, module, targets, Path(folder))
        except EdgekitError as error:
            return {t: _refused(case, error) for t in targets}
        except Exception as error:  # noqa: BLE001 - what this tool is for
            return {t: _defect(error) for t in targets}
        results = {f.target: _refused(case, f.error) for f in built.failures}
        return results | {a.target: _compared(case, plain, a) for a in built.artifacts}


def _made(case: Case) -> nn.Module:
    """The module, the same every time."""
    torch.manual_seed(0)
    return case.build().eval()


def share_the_registry() -> None:
    """Let the exporter read its library of operators once in this process, not in every export: two thirds of the time.

    Nothing that edgekit calls adds to a registry after it was made.
    """
    from torch.onnx._internal.exporter import _registration

    made = functools.cache(_registration.ONNXRegistry.from_torchlib)
    setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(made))  # noqa: B010 - a class method, typed


def sample(count: int) -> list[str]:
    """Up to ``count`` modules of each family that have weights, by chance and the same each time."""
    families: dict[str, list[str]] = {}
    for name, case in CASES.items():
        if _weighs(_made(case)):
            families.setdefault(case.family, []).append(name)
    generator = random.Random(_SEED)
    return [n for found in families.values() for n in generator.sample(found, min(count, len(found)))]


def _weighs(module: nn.Module) -> bool:
    """Whether there is a weight that INT8 could be for."""
    return any(tensor.dim() > 1 for tensor in module.state_dict().values() if isinstance(tensor, Tensor))


def _build(case: Case, module: nn.Module, targets: Sequence[str], out: Path) -> edgekit.BuildResult:
    from edgekit import load

    source: Any = load.from_module(module, case.example(1), dynamic_axes=case.dynamic)
    names = list(source.example_inputs)
    data = [named(names, case.example(100 + i)) for i in range(CALIBRATION)]
    needs = any(t.endswith("int8") for t in targets)
    device = (
        "local" if needs else ""
    )  # integers for this processor: those of any saturate where it lacks VNNI
    return edgekit.build(
        source,
        targets=targets,
        calibration=data if needs else None,
        out=out,
        options=edgekit.Options(speed_gate=False, device=device),
    )


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
        given = [{n: a for n, a in named(used, e).items() if n in names} for e in examples]
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
        problem, decibel = far(got, expected, precision, near(case, precision))
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
    return any(w in said for w in case.reason) or bool(
        re.search(r"operator \w+::\w+|in module \w|\.py:\d+\)", said)
    )


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
