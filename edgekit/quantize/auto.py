"""Measure, then keep what helps: range methods and weight corrections compared on the model itself.

A candidate is quantized and run in ONNX Runtime on a few calibration samples; it is judged by the
signal-to-noise ratio of the outputs. The graph of every scheme runs there, whatever its target, and its Q/DQ in float:
on a processor whose sums saturate a target that runs elsewhere is judged as it will run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.quantize.float_model import FloatModel
from edgekit.quantize.inputs import Outputs, answers
from edgekit.quantize.options import CORRECTIONS, RANGES, WEIGHTED_MSE, QuantizeOptions, applicable
from edgekit.types import OnnxModel, Scheme

if TYPE_CHECKING:
    from edgekit.types import Array

_GAIN = 0.1  # dB: less is noise, and every correction is one more thing to explain
_SWITCH = 0.5  # dB: what another range method must gain on the samples that gave the ranges

Make = Callable[[QuantizeOptions], OnnxModel]
"""Quantizes with given options, for :func:`settle` to run."""


def snr(reference: Sequence[Outputs], outputs: Iterable[Outputs]) -> float:
    """Signal-to-noise ratio in dB: the worst of the float outputs, each over all samples.

    ``outputs`` are taken one after the other, none is kept.
    """
    names = [name for name, first in reference[0].items() if first.dtype == np.float32]
    noise = dict.fromkeys(names, 0.0)
    for right, given in zip(reference, outputs, strict=True):
        for name in names:
            noise[name] += _noise(right[name], given[name])
    ratios = []
    for name in names:
        signal = sum(float(np.square(r[name], dtype=np.float64).sum()) for r in reference)
        ratios.append(10 * np.log10(max(signal, 1e-300) / max(noise[name], signal * 1e-20, 1e-300)))
    return float(min(ratios, default=200.0))


def _noise(right: Array, given: Array) -> float:
    """The energy of the error; all of the answer's where it has another length (a decoder that stops earlier)."""
    if right.shape != given.shape:
        return float(np.square(right, dtype=np.float64).sum())
    return float(np.square(right.astype(np.float64) - given).sum())


def settle(
    floats: FloatModel, options: QuantizeOptions, make: Make, scheme: Scheme
) -> tuple[QuantizeOptions, tuple[str, ...]]:
    """Replace ``auto`` in method and corrections by what suits the scheme; the options to use, and what was
    measured, a note each."""
    possible = applicable(scheme)
    asked = tuple(c for c in options.corrections if c != "auto")
    free = asked != options.corrections
    if options.method != "auto" and not free:
        return options, ()
    if floats.samples is None or len(floats.samples) == 0:
        method = "mse" if options.method == "auto" else options.method
        corrections = tuple(c for c in _ordered((*asked, "bias")) if c in possible) if free else asked
        return dataclasses.replace(options, method=method, corrections=corrections), ()

    def measure(candidate: QuantizeOptions) -> float:
        return snr(floats.reference, answers(make(candidate).path, floats.probes))

    return _search(dataclasses.replace(options, corrections=asked), possible if free else (), measure)


def _search(
    options: QuantizeOptions, corrections: Sequence[str], measure: Callable[[QuantizeOptions], float]
) -> tuple[QuantizeOptions, tuple[str, ...]]:
    """Corrections one after the other on the method that is best most often, then the other methods."""
    free = options.method == "auto"
    best = dataclasses.replace(options, method=WEIGHTED_MSE) if free else options
    figure = measure(best)
    notes = []
    for name in corrections:
        if name in best.corrections:
            continue
        candidate = dataclasses.replace(best, corrections=_ordered((*best.corrections, name)))
        new = measure(candidate)
        better = new > figure + _GAIN
        notes.append(f"correction {name}: {figure:.1f} to {new:.1f} dB, {'kept' if better else 'left out'}")
        best, figure = (candidate, new) if better else (best, figure)
    if free:
        others = {m: measure(dataclasses.replace(best, method=m)) for m in RANGES if m != best.method}
        figures = ", ".join(f"{m} {f:.1f}" for m, f in ({best.method: figure} | others).items())
        notes.append(f"output SNR in dB by range method: {figures}")
        top = max(others, key=lambda m: others[m])
        if others[top] > figure + _SWITCH:
            best = dataclasses.replace(best, method=top)
    return best, tuple(notes)


def _ordered(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(c for c in CORRECTIONS if c in names)
