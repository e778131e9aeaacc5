"""Golden vectors: real inputs, the tensors that the model is fed, and what the runtime makes of them.

An app that scales by 255 instead of by mean and deviation, or swaps red and blue, usually keeps its top-1
class and is wrong all the same. The vectors catch it: the fed tensor has to agree bit for bit, the output
within the accelerator's tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ml_dtypes  # noqa: F401 - numpy then knows types of 4, 8 and 16 bits by name
import numpy as np

from edgekit.artifact import golden as stored
from edgekit.artifact.energy import SNR_CAP, decibels
from edgekit.artifact.manifest import Artifact
from edgekit.artifact.run import runnable
from edgekit.core.scores import without_rounding
from edgekit.devices.arrays import channels_first
from edgekit.devices.execute import run_artifact
from edgekit.errors import DataError, GateFailedError, SourceError
from edgekit.preprocess.contract import Preprocessing
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from edgekit.types import Array

STORED_CASES = 4
"""How many of the artifact's golden samples go into a package: enough to catch a mistake, little to ship."""

SLACK_DB = 3.0
"""How much lower than at the build the SNR may be on another machine before a golden counts as broken."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One golden case in memory: arrays by name, in the artifact's dtypes and layouts."""

    name: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    image: Array | None = None


def make_cases(artifact: Artifact, contract: Preprocessing | None) -> tuple[Case, ...]:
    """Replay the artifact's golden samples on its runtime, and add images where there is a contract.

    Raises:
        SourceError: the artifact has no golden file, or it does not hold what the manifest says.
        GateFailedError: what the runtime computes now is further from the stored outputs than at the build.
    """
    samples = _read(artifact)
    bind = runnable(artifact).bind
    inputs = [_feed(artifact.manifest.inputs, bind(sample)) for sample, _ in samples]
    outputs = run(artifact, inputs)
    _check_reproduces(artifact, [o for _, o in samples], outputs)
    cases = [
        Case(name=f"sample-{i}", inputs=fed, outputs=out, image=_image(contract, artifact, fed))
        for i, (fed, out) in enumerate(zip(inputs, outputs, strict=True))
    ][:STORED_CASES]
    return (*cases, *_image_cases(artifact, contract))


def references(artifact: Artifact) -> tuple[dict[str, Array], ...]:
    """What the source answered to the artifact's golden samples, by output."""
    return tuple(outputs for _, outputs in _read(artifact))


def run(artifact: Artifact, samples: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
    """The artifact's outputs on its real runtime, in a fresh process, for inputs in its own dtypes."""
    as_stored = replace(runnable(artifact), channels_moved=(), quantize=False)
    with run_artifact(as_stored, samples) as result:
        return list(result.outputs)


def relative_error(actual: Array, expected: Array) -> float:
    """``max|a - e| / max|e|``; infinite where ``actual`` has another shape or is not finite."""

    if actual.shape != expected.shape:
        return math.inf
    wide, answered = expected.astype("f8"), actual.astype("f8")
    if expected.dtype.kind == "f" and np.isfinite(wide).all():
        answered = without_rounding(wide, answered)
    difference = np.abs(answered - wide).max(initial=0.0)
    if not np.isfinite(difference):
        return 0.0 if np.array_equal(actual, expected, equal_nan=True) else math.inf
    peak = float(np.abs(wide).max(initial=0.0))
    return float(difference) / peak if peak else (0.0 if difference == 0 else math.inf)


def dequantized(spec: TensorSpec, array: Array) -> Array:
    """Real values of an output."""
    if spec.scale is None or array.dtype.kind not in "iu":
        return array
    real: Array = (array.astype("f8") - (spec.zero_point or 0)) * spec.scale
    return real


def _read(artifact: Artifact) -> list[tuple[dict[str, Array], dict[str, Array]]]:
    record = artifact.manifest.golden
    if record is None:
        raise SourceError(
            f"{artifact.directory} has no golden samples, so a package of it could not test itself",
            hint="build it on a machine that can run it, without --allow-not-run",
        )
    path = artifact.directory / record.file
    samples = list(zip(*stored.read(path), strict=True))[: record.samples]
    names = ({s.name for s in artifact.manifest.inputs}, {s.name for s in artifact.manifest.outputs})
    for i, (inputs, outputs) in enumerate(samples):
        if not names[0] <= set(inputs) or not names[1] <= set(outputs):
            raise SourceError(
                f"{path}: sample {i} lacks some of {', '.join(sorted(names[0] | names[1]))}",
                hint="build the artifact again",
            )
    return samples


def _feed(specs: Sequence[TensorSpec], sample: Mapping[str, Array]) -> dict[str, Array]:
    """A stored sample in the runtime's layout, quantized where the input asks for it."""

    fed: dict[str, Array] = {}
    for spec in specs:
        array = sample[spec.name]
        if not _fits(spec, array.shape):
            raise DataError(
                f"the golden input {spec.name} has shape {list(array.shape)}, the model takes {spec}",
                hint="build the artifact again",
            )
        dtype = np.dtype(spec.dtype)
        if dtype.kind in "iu" and array.dtype.kind == "f" and spec.scale is not None:
            limits = np.iinfo(dtype)
            array = np.clip(np.rint(array / spec.scale) + (spec.zero_point or 0), limits.min, limits.max)
        fed[spec.name] = np.ascontiguousarray(array).astype(dtype).reshape(array.shape)
    return fed


def _fits(spec: TensorSpec, shape: Sequence[int]) -> bool:
    return len(spec.shape) == len(shape) and all(
        isinstance(d, str) or d == s for d, s in zip(spec.shape, shape, strict=True)
    )


def _check_reproduces(
    artifact: Artifact, expected: Sequence[Mapping[str, Array]], actual: Sequence[Mapping[str, Array]]
) -> None:
    manifest = artifact.manifest
    record = manifest.golden
    assert record is not None
    restored = (channels_first(row, manifest.channels_moved) for row in actual)
    pairs = [
        (dequantized(spec, a[spec.name]), e[spec.name])
        for a, e in zip(restored, expected, strict=True)
        for spec in manifest.outputs
    ]
    if any(a.shape != e.shape for a, e in pairs):
        raise SourceError(
            f"{artifact.directory}: the golden outputs have other shapes than the runtime's",
            hint="build the artifact again",
        )
    signal = sum(float((e.astype("f8") ** 2).sum()) for _, e in pairs)
    noise = sum(float(((a.astype("f8") - e.astype("f8")) ** 2).sum()) for a, e in pairs)
    now = decibels(signal, noise) if math.isfinite(noise) else -SNR_CAP
    then = record.parity.snr_db if record.parity else manifest.target.tolerance.snr_db
    # Above 80 dB float32 noise is compared with float32 noise.
    if then is not None and now < min(then - SLACK_DB, 80.0):
        raise GateFailedError(
            f"the golden vectors do not reproduce: {now:.1f} dB now, {then:.1f} dB when it was built",
            hint="the model or its golden file was changed, or the runtime is another: build it again here",
            gates=("golden",),
        )


def _image(contract: Preprocessing | None, artifact: Artifact, fed: Mapping[str, Array]) -> Array | None:
    """The image behind a stored sample, where the contract takes it there and back bit for bit."""
    # With a second input an image alone would not be the case.
    if contract is None or len(fed) != 1:
        return None
    spec = next(s for s in artifact.manifest.inputs if s.name == contract.input)
    return contract.invert(fed[spec.name], spec)


def _image_cases(artifact: Artifact, contract: Preprocessing | None) -> list[Case]:
    """Two drawn images, one wider and one higher than the model's size, so that resizing is tested too."""
    if contract is None or len(artifact.manifest.inputs) != 1:
        return []
    spec = artifact.manifest.inputs[0]
    height, width = contract.size
    # Larger than the crop, unequally: swapped axes and off-centre crops then show.
    if contract.resize is None:
        sizes = [(height + 5, width + 9), (height + 2, width)]
    else:
        sizes = [(height + height // 3 + 1, 2 * width + 3), (2 * height + 1, width + width // 4 + 2)]
    images = [drawn_image(h, w, seed) for seed, (h, w) in enumerate(sizes)]
    inputs = [{spec.name: contract.apply(image, spec)} for image in images]
    outputs = run(artifact, inputs)
    return [
        Case(name=f"drawn-{i}", inputs=fed, outputs=out, image=image)
        for i, (image, fed, out) in enumerate(zip(images, inputs, outputs, strict=True))
    ]


def drawn_image(height: int, width: int, seed: int) -> Array:
    """A smooth uint8 ``[height, width, 3]`` image whose channels, rows and columns all differ.

    Integer arithmetic only, so that it is the same everywhere.
    """

    y = np.arange(height, dtype=np.int64)[:, None] * 255 // max(height - 1, 1)
    x = np.arange(width, dtype=np.int64)[None] * 255 // max(width - 1, 1)
    red = (x + (37 + 60 * seed)) * (255 - y) // 292
    green = (255 - x) * (y + 24) // 279 + 20 * seed
    blue = (((x * 3 + y * 2) // 64 + seed) % 2) * 150 + (x + y) // 5
    image: Array = np.clip(np.stack([red, green, blue], axis=-1), 0, 255).astype(np.uint8)
    return image
