"""Measure, then keep what helps: range methods and weight corrections compared on the model itself.

A candidate is quantized and run in ONNX Runtime on a few calibration samples; it is judged by the
signal-to-noise ratio of the outputs. The graph of every scheme runs there, whatever its target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgekit.graph import io as graphs
from edgekit.quantize.options import CORRECTIONS, RANGES, WEIGHTED_MSE, QuantizeOptions, applicable
from edgekit.types import OnnxModel, Sample, Samples, Scheme

_PROBES = 48
_GAIN = 0.1  # dB: less is noise, and every correction is one more thing to explain

_SWITCH = 0.5  # dB: what another range method must gain on the samples that gave the ranges

Make = Callable[[QuantizeOptions], OnnxModel]
"""Quantizes with given options, for :func:`settle` to run."""


def probes(samples: Samples) -> list[Sample]:
    """A few samples, evenly spaced."""
    places = set(np.linspace(0, len(samples) - 1, min(_PROBES, len(samples))).astype(int))
    return [s for i, s in enumerate(samples) if i in places]


def run(path: Path, samples: Sequence[Sample]) -> list[dict[str, np.ndarray]]:
    """The outputs of a model on each sample."""
    session = graphs.session(path)
    return [graphs.run(session, s.inputs) for s in samples]


def snr(reference: Sequence[dict[str, np.ndarray]], got: Sequence[dict[str, np.ndarray]]) -> float:
    """Signal-to-noise ratio in dB: the worst of the float outputs, each over all samples."""
    ratios = []
    for name, first in reference[0].items():
        if first.dtype != np.float32:
            continue
        signal = sum(float(np.square(r[name], dtype=np.float64).sum()) for r in reference)
        noise = sum(
            float(np.square(r[name].astype(np.float64) - g[name]).sum())
            for r, g in zip(reference, got, strict=True)
        )
        ratios.append(10 * np.log10(max(signal, 1e-300) / max(noise, signal * 1e-20, 1e-300)))
    return float(min(ratios, default=200.0))


def settle(
    model: OnnxModel, options: QuantizeOptions, samples: Samples | None, make: Make, scheme: Scheme
) -> tuple[QuantizeOptions, tuple[str, ...]]:
    """Replace ``auto`` in method and corrections by what suits the scheme; the options to use, and what was
    measured, a note each."""
    can = applicable(scheme)
    asked = tuple(c for c in options.corrections if c != "auto")
    corrections = asked != options.corrections
    if options.method != "auto" and not corrections:
        return options, ()
    if samples is None or len(samples) == 0:
        method = "mse" if options.method == "auto" else options.method
        kept = tuple(c for c in _ordered((*asked, "bias")) if c in can) if corrections else asked
        return dataclasses.replace(options, method=method, corrections=kept), ()
    chosen = probes(samples)
    reference = run(model.path, chosen)

    def measure(candidate: QuantizeOptions) -> float:
        return snr(reference, run(make(candidate).path, chosen))

    return _search(dataclasses.replace(options, corrections=asked), can if corrections else (), measure)


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
        got = measure(candidate)
        better = got > figure + _GAIN
        notes.append(f"correction {name}: {figure:.1f} to {got:.1f} dB, {'kept' if better else 'left out'}")
        best, figure = (candidate, got) if better else (best, figure)
    if free:
        others = {m: measure(dataclasses.replace(best, method=m)) for m in RANGES if m != best.method}
        told = ", ".join(f"{m} {f:.1f}" for m, f in ({best.method: figure} | others).items())
        notes.append(f"output SNR in dB by range method: {told}")
        top = max(others, key=lambda m: others[m])
        if others[top] > figure + _SWITCH:
            best = dataclasses.replace(best, method=top)
    return best, tuple(notes)


def _ordered(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(c for c in CORRECTIONS if c in names)
