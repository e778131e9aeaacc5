"""Whether an exported model computes what its module does: the example, random inputs, other sizes."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekit.core.scores import without_rounding
from edgekit.errors import ExportError
from edgekit.graph import io
from edgekit.graph.export.behaviour import equal, hidden, refuse_unrepeatable
from edgekit.graph.float32 import Float32
from edgekit.graph.nested import attempt, call
from edgekit.types import OnnxModel, TorchModel

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from edgekit.types import Array

_RANDOM_INPUTS = 3
_LIMIT = 1e-3
"""Relative L2 distance of an output from the module's. Reordered float32 sums stay below 1e-5 in the
architectures measured; a wrong operator is above 1e-2."""
_WRONG = 1e-2
_ALLOWANCE = 4.0
"""Between the limit and ``_WRONG``, a distance up to this multiple of PyTorch's own rounding (its float32 against
its float64) is rounding too: blocked sums are two orders of summation, and some kernels round more coarsely."""
_QUANTIZED_LIMIT = 2e-2
"""The same for modules that round inside (fake quantization): one last bit may flip."""


def compare(model: TorchModel, exported: OnnxModel) -> tuple[float, int, tuple[str, ...]]:
    """Run module and ONNX on the example, on random inputs, and with other sizes of the dynamic axes.

    Gives the largest relative L2 distance, the number of inputs compared, and notes. Raises
    :class:`ExportError` when the distance is more than rounding explains.
    """
    session = io.session(exported.path)
    limit = _QUANTIZED_LIMIT if _rounds(exported) else _LIMIT
    worst, checked, notes = 0.0, 0, []
    if isinstance(model.module, Float32):
        notes.append("computed in float32, where forward asks for float16 or bfloat16")
    for which, inputs in _inputs(model):
        answers = [attempt(model.module, inputs), attempt(model.module, inputs)]
        error = next((a for a in answers if isinstance(a, Exception)), None)
        if error is not None:
            if which == EXAMPLE:
                raise error
            notes.append(f"the module does not take {which}: {first_line(error)}")
            continue
        expected, again = (a for a in answers if not isinstance(a, Exception))
        if not all(_same(a, b) for a, b in zip(expected.values(), again.values(), strict=True)):
            refuse_unrepeatable(model, inputs)
            if not equal(expected, again):
                raise hidden(model)
        if which != EXAMPLE and not _finite(expected):
            notes.append(f"the module overflows on {which}: not compared")
            continue
        results = run_onnx(session, inputs, which)
        for (name, tensor), got in zip(expected.items(), results.values(), strict=True):
            distance = _distance(name, tensor.detach().numpy(), got)
            worst = max(worst, distance)
            unsure = _noise(model.module, inputs, name) if limit < distance < _WRONG else 0.0
            if distance > max(limit, _ALLOWANCE * unsure):
                raise ExportError(
                    f"the ONNX computes something else: {name!r} is {distance:.2g} away (relative L2) on {which}",
                    hint="look for control flow that depends on values, and random or in-place operations in forward",
                )
            if distance > limit:
                notes.append(
                    f"{name!r} is ill-conditioned: PyTorch's float32 is {unsure:.1g} from its float64"
                )
        checked += 1
    return worst, checked, tuple(dict.fromkeys(notes))


def _noise(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], name: str) -> float:
    """How far the module's float32 output is from its float64 one (relative L2); 0 where it cannot run in it."""
    wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    try:
        double = copy.deepcopy(module).double()
    except (RuntimeError, TypeError):  # modules that do not copy: no excuse, then
        return 0.0
    exact = attempt(double, wide)  # dtypes may be fixed inside
    if isinstance(exact, Exception):
        return 0.0
    return _distance(name, exact[name].detach().numpy(), call(module, inputs)[name].detach().numpy())


def run_onnx(session: InferenceSession, inputs: Mapping[str, torch.Tensor], which: str) -> dict[str, Array]:
    """The ONNX model's outputs; :class:`ExportError` naming the inputs when it fails on them."""
    try:
        return io.run(session, {k: v.detach().numpy() for k, v in inputs.items()})
    except io.runtime_errors() as error:
        raise ExportError(
            f"the ONNX fails on {which}: {first_line(error)}", hint="the module takes them"
        ) from error


EXAMPLE = "the example inputs"


def _inputs(model: TorchModel) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """The example, random inputs like it, and the example at other sizes of the dynamic axes."""
    yield EXAMPLE, {k: v.clone() for k, v in model.example_inputs.items()}
    for seed in range(1, _RANDOM_INPUTS + 1):
        generator = torch.Generator().manual_seed(seed)
        yield (
            f"random inputs (seed {seed})",
            {k: _random_like(v, generator) for k, v in model.example_inputs.items()},
        )
    example = axis_sizes(model)
    larger = {name: size + 1 + i for i, (name, size) in enumerate(example.items())}
    smaller = {name: max(1, size - 1) for name, size in example.items()}
    for variant in (larger, smaller):
        if variant != example:
            said = ", ".join(f"{n} = {s}" for n, s in variant.items())
            yield f"inputs with {said}", resized(model, variant)


def axis_sizes(model: TorchModel) -> dict[str, int]:
    """The example's size of every dynamic axis by the axis' name."""
    return {
        label: model.example_inputs[name].shape[axis]
        for name, axes in model.dynamic_axes.items()
        for axis, label in axes.items()
    }


def resized(model: TorchModel, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """The example inputs with other sizes of the dynamic axes: repeated or cut, so that values stay valid."""
    resized = {}
    for name, tensor in model.example_inputs.items():
        for axis, label in model.dynamic_axes.get(name, {}).items():
            index = torch.arange(sizes[label]) % max(1, tensor.shape[axis])
            tensor = tensor.index_select(axis, index)
        resized[name] = tensor.contiguous()
    return resized


def _finite(outputs: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in outputs.values() if t.is_floating_point())


def _random_like(example: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values of the example's kind: its mean and spread, its range for integers, its share of True.

    What looks like a mask (0 and 1) keeps its first place: attention over nothing is not defined, and PyTorch
    and its exporter fill it differently.
    """
    if example.numel() == 0:
        return example.clone()
    if example.dtype == torch.bool:
        return _first_kept(torch.rand(example.shape, generator=generator) < example.float().mean(), example)
    if example.is_floating_point():
        spread = float(example.std()) if example.numel() > 1 else 0.0
        noise = torch.randn(example.shape, generator=generator) * (spread or 1.0) + float(example.mean())
        return noise.clamp(float(example.min()) - spread, float(example.max()) + spread) if spread else noise
    low, high = int(example.min()), int(example.max())
    values = torch.randint(low, high + 1, example.shape, generator=generator, dtype=example.dtype)
    return _first_kept(values, example) if (low, high) == (0, 1) else values


def _first_kept(mask: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    if mask.ndim:
        mask[..., 0] = example[..., 0]
    return mask


def _distance(name: str, expected: Array, got: Array) -> float:
    """Relative L2 distance; for integers and booleans the share of elements that differ, halved by none."""
    if expected.shape != got.shape:
        raise ExportError(
            f"the ONNX gives {name!r} the shape {got.shape}, the module {expected.shape}",
            hint="the shape depends on values or on Python state: make it depend on the inputs' shapes only",
        )
    if expected.size == 0:
        return 0.0
    if expected.dtype.kind not in "fc":
        return float(np.mean(expected != got))
    a, b = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return float("inf")
    if finite.all():
        b = without_rounding(a, b)
    norm = float(np.linalg.norm(a[finite]))
    difference = float(np.linalg.norm(a[finite] - b[finite]))
    # An output that is all (nearly) zero has no scale of its own: measure against one.
    return difference / norm if norm > 1e-6 * np.sqrt(finite.sum() or 1) else difference


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point())


def _rounds(exported: OnnxModel) -> bool:
    ops = {n.op_type for n in io.read_proto(exported.path).graph.node}
    return bool(ops & {"QuantizeLinear", "DequantizeLinear", "Round"})


def first_line(error: BaseException) -> str:
    """What an error says, in one line, without the exporter's wrapping."""
    while error.__cause__ is not None and type(error).__module__.startswith("torch.onnx"):
        error = error.__cause__
    text = getattr(error, "message", None) or str(error)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(text).splitlines()]
    line = next((li for li in lines if li), "")
    return f"{type(error).__name__}: {line[:300]}"
