"""One pass over the samples: run the tapped model, fold every run into the statistics."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.core.parallel import in_order
from edgekit.errors import DataError
from edgekit.graph import io as graphs
from edgekit.quantize.calibrate.calibration import VERSION, Calibration, TensorStatistics
from edgekit.quantize.calibrate.histogram import Histogram
from edgekit.quantize.calibrate.profile import MASK
from edgekit.quantize.calibrate.taps import OFFSET, OUTPUTS, Layout, Tap, Tapped, tap
from edgekit.types import OnnxModel, Sample, Samples

if TYPE_CHECKING:
    import onnxruntime

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""

Floats = npt.NDArray[np.float32]
Inputs = dict[str, npt.NDArray[Any]]

_VALUES = 1 << 19  # histogram values a tensor, over all samples, where it has that many elements
_LEAST, _MOST = 1024, 1 << 16  # a sample's share of them
_SIDE_BY_SIDE = 8
"""So many samples at a time at most: each has all of the model's activations in memory."""
_PENDING = 1 << 22  # float32 values held back before they are counted (16 MiB)


def calibrate(
    model: OnnxModel, samples: Samples, *, out: Path, progress: Progress | None = None
) -> Calibration:
    """Run ``model`` on every sample once and write the statistics of its activations to ``out``.

    Memory does not depend on the number of samples. The result depends on the model and the set of
    samples, not on their order (averages beyond float rounding excepted: ``half_*``, which tell the even
    from the odd samples).

    Raises :class:`DataError` for samples that do not fit the model's inputs, and for NaN or infinity in
    any activation, naming tensor and sample.
    """
    if len(samples) == 0:
        raise DataError("there are no calibration samples", hint="pass a data source that yields inputs")
    cap = min(max(_VALUES // len(samples), _LEAST), _MOST)
    tapped = tap(model, cap)
    collector = _Collector(tapped)
    for done, run in enumerate(observed(model, samples, tapped, cap), 1):
        collector.add(run, done - 1)
        if progress is not None:
            progress(done, len(samples))
    fingerprint = f"calibration {VERSION} {model.sha256} {samples.fingerprint} {cap}"
    calibration = Calibration(
        tensors=collector.result(),
        aliases=tapped.aliases,
        samples=len(samples),
        fingerprint=hashlib.sha256(fingerprint.encode()).hexdigest(),
    )
    calibration.save(out)
    return calibration


def observed(model: OnnxModel, samples: Samples, tapped: Tapped, cap: int) -> Iterator[dict[str, Any]]:
    """What each sample gives, in order, as :meth:`Layout.separate` has it; without NaN and infinity (but -inf).

    Raises :class:`DataError` as :func:`calibrate` does.
    """
    layout, guard = Layout(tapped.taps), _Guard(model, cap, tapped)
    for index, (inputs, values) in enumerate(_runs(tapped, samples, model)):
        run = layout.separate(*values)
        while bad := _not_finite(run, tapped.taps):
            run = layout.separate(*guard.run(inputs, index, bad))
        yield run


def _not_finite(run: dict[str, Any], taps: Sequence[Tap]) -> frozenset[str]:
    """The tensors of one run that hold NaN or infinity; -inf, as masks have it, is none."""
    bad = np.isnan(run["mean"]) | np.isnan(run["low"]) | np.isnan(run["high"]) | np.isposinf(run["high"])
    if not bad.any():
        return frozenset()
    starts = np.concatenate(([0], np.cumsum([t.channels for t in taps])))
    places = np.searchsorted(starts, np.flatnonzero(bad), side="right") - 1
    return frozenset(taps[i].tensor for i in places)


def _runs(
    tapped: Tapped, samples: Samples, model: OnnxModel
) -> Iterator[tuple[Inputs, list[npt.NDArray[Any]]]]:
    """Each sample's inputs and what it gives, in order.

    Samples side by side on a thread each take two thirds of the time of one after the other on all threads: small
    reductions gain nothing from several threads.
    """
    session = graphs.session(model.path, changed=tapped.model, threads=1)

    def run(feed: tuple[int, Inputs]) -> tuple[Inputs, list[npt.NDArray[Any]]]:
        index, inputs = feed
        try:
            return inputs, list(session.run(list(OUTPUTS), inputs | {OFFSET: _offset(inputs)}))
        except graphs.runtime_errors() as error:
            raise DataError(
                f"the model fails on calibration sample {index}: {error}",
                hint="check the sample's shapes and values (token ids inside the vocabulary?)",
            ) from error

    yield from in_order(run, ((i, _feed(s, model, i)) for i, s in enumerate(samples)), most=_SIDE_BY_SIDE)


class _Guard:
    """Runs samples that make an activation NaN or infinite on the way to finite outputs.

    A row of attention that is masked altogether is NaN behind Softmax until the model's own Where puts zeros in its
    place; 1 / 0 in a branch that is not chosen is infinite. No range comes from such values: they are left out.
    """

    def __init__(self, model: OnnxModel, cap: int, tapped: Tapped) -> None:
        self._model, self._cap, self._taps = model, cap, tapped.taps
        self._guarded: frozenset[str] = frozenset()
        self._session: onnxruntime.InferenceSession | None = None

    def run(self, inputs: Inputs, index: int, bad: frozenset[str]) -> list[npt.NDArray[Any]]:
        """The sample again, without what is NaN or infinite in the tensors ``bad`` and in those met before.

        Raises :class:`DataError` where one of them is an input or, with such values, an output.
        """
        inside = bad - set(self._model.input_names)
        if not inside <= self._guarded or self._session is None:
            self._guarded |= inside
            tapped = tap(self._model, self._cap, guarded=self._guarded)
            self._session = graphs.session(self._model.path, changed=tapped.model, threads=1)
        names = [o.name for o in self._model.outputs]
        values = self._session.run([*OUTPUTS, *names], inputs | {OFFSET: _offset(inputs)})
        outputs = dict(zip(names, values[len(OUTPUTS) :], strict=True))
        broken = {n for n, a in outputs.items() if a.dtype.kind == "f" and _broken(a)}
        if broken or inside != bad:
            named = next(t.tensor for t in self._taps if t.tensor in bad)
            raise DataError(
                f"calibration sample {index} makes tensor {named!r} NaN or infinite",
                hint="if it is an input, mend the sample; else the float model itself overflows on this sample",
            )
        return list(values[: len(OUTPUTS)])


def _broken(array: npt.NDArray[Any]) -> bool:
    """NaN, or infinite; -inf is what masks and logarithms of zero are."""
    return bool(np.isnan(array).any() or np.isposinf(array).any())


def _feed(sample: Sample, model: OnnxModel, index: int) -> dict[str, npt.NDArray[Any]]:
    """The sample's arrays, checked against the model's inputs."""
    inputs: dict[str, npt.NDArray[Any]] = {}
    for spec in model.inputs:
        where = f"calibration sample {index}, input {spec.name!r}"
        if spec.name not in sample.inputs:
            have = ", ".join(sorted(sample.inputs)) or "none"
            raise DataError(f"{where} is missing; it has: {have}", hint=f"yield an array for {spec}")
        array = np.asarray(sample.inputs[spec.name], order="C")  # a scalar stays one
        if array.dtype.name != spec.dtype:
            raise DataError(f"{where} is {array.dtype.name}", hint=f"the model takes {spec}")
        fits = array.ndim == len(spec.shape) and all(
            isinstance(d, str) or d == n for d, n in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.size == 0:
            raise DataError(f"{where} has shape {list(array.shape)}", hint=f"the model takes {spec}")
        inputs[spec.name] = array
    return inputs


def _offset(inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """A number from the sample's content, so that the subsample is the same wherever the sample comes."""
    digest = 0
    for name in sorted(inputs):
        flat = inputs[name].ravel()
        digest = zlib.crc32(flat[:: max(1, flat.size // 256)].tobytes(), digest)
    return np.array([digest], np.int64)


class _Collector:
    """The running statistics of all taps, as flat arrays over taps and over all taps' channels."""

    def __init__(self, tapped: Tapped) -> None:
        self.taps = tapped.taps
        self.histograms = [Histogram() for _ in self.taps]
        self.pending: list[list[Floats]] = [[] for _ in self.taps]
        self.held = 0
        self.samples = 0
        n = len(self.taps)
        self.counts = np.zeros(n, np.int64)
        self.half_low = np.full((2, n), np.inf, np.float32)
        self.half_high = np.full((2, n), -np.inf, np.float32)
        self.sum_low, self.sum_high = np.zeros(n), np.zeros(n)
        self.masked = np.zeros(n, bool)
        self.starts = np.zeros(n + 1, np.int64)
        self.low = self.high = np.zeros(0, np.float32)
        self.mean = np.zeros(0)

    def add(self, run: dict[str, Any], index: int) -> None:
        """Fold in one run of the tapped model."""
        low, high = run["low"], run["high"]
        if self.samples == 0:
            self.starts = np.concatenate(([0], np.cumsum([t.channels for t in self.taps])))
            self.low, self.high = np.full_like(low, np.inf), np.full_like(high, -np.inf)
            self.mean = np.zeros(low.size)
        masked = np.minimum.reduceat(low, self.starts[:-1]) < MASK
        if masked.any():
            self.masked |= masked
            low, high = np.where(low < MASK, 0, low), np.where(high < MASK, 0, high)
        np.minimum(self.low, low, out=self.low)
        np.maximum(self.high, high, out=self.high)
        self.mean += np.where(np.abs(run["mean"]) > -MASK, 0.0, run["mean"])
        tensor_low = np.minimum.reduceat(low, self.starts[:-1])
        tensor_high = np.maximum.reduceat(high, self.starts[:-1])
        half = index % 2
        np.minimum(self.half_low[half], tensor_low, out=self.half_low[half])
        np.maximum(self.half_high[half], tensor_high, out=self.half_high[half])
        self.sum_low += tensor_low
        self.sum_high += tensor_high
        self.samples += 1
        self._hold(run["samples"])

    def _hold(self, samples: Sequence[Floats]) -> None:
        """Keep a run's subsamples until there are enough to count a tensor's at a time."""
        for held, part in zip(self.pending, samples, strict=True):
            held.append(part)
            self.held += part.size
        if self.held >= _PENDING:
            self._count()

    def _count(self) -> None:
        for i, (histogram, parts) in enumerate(zip(self.histograms, self.pending, strict=True)):
            values = np.concatenate(parts) if parts else np.zeros(0, np.float32)
            if self.masked[i]:
                values = values[values >= MASK]
            self.counts[i] += values.size
            histogram.add(values)
            parts.clear()
        self.held = 0

    def result(self) -> dict[str, TensorStatistics]:
        """Everything seen so far, by tensor."""
        self._count()
        found = {}
        for i, tapped in enumerate(self.taps):
            channels = slice(int(self.starts[i]), int(self.starts[i + 1]))
            low, high = float(self.half_low[:, i].min()), float(self.half_high[:, i].max())
            halves = (self.half_low[:, i], self.half_high[:, i])
            if self.samples == 1:  # the odd half is empty: both halves are the one sample
                halves = (np.full(2, low, np.float32), np.full(2, high, np.float32))
            self.histograms[i].grow(max(abs(low), abs(high)))
            found[tapped.tensor] = TensorStatistics(
                count=int(self.counts[i]),
                low=low,
                high=high,
                average_low=float(self.sum_low[i] / self.samples),
                average_high=float(self.sum_high[i] / self.samples),
                channel_axis=tapped.axis,
                channel_low=self.low[channels].copy(),
                channel_high=self.high[channels].copy(),
                channel_mean=(self.mean[channels] / self.samples).astype(np.float32),
                half_low=halves[0].copy(),
                half_high=halves[1].copy(),
                histogram=self.histograms[i],
                masked=bool(self.masked[i]),
            )
        return found
