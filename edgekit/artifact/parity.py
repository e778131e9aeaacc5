"""Is the artifact the model? Its outputs against the reference's, streamed, and the gates upon them.

The reference is the PyTorch module (or the fp32 ONNX graph); the outputs come from the real runtime
(:mod:`edgekit.devices.execute`). Nothing here keeps more than one sample in memory, except a metric over
the whole set.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, repeat, zip_longest
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact.boxes import BoxTally
from edgekit.artifact.classes import ClassTally, class_axis
from edgekit.artifact.energy import SNR_CAP, decibels, row_snr
from edgekit.artifact.judge import Judge, Judged
from edgekit.artifact.masks import MaskTally
from edgekit.artifact.rounding import RoundingTally, as_rounding, worst_rounding
from edgekit.artifact.slices import SliceTally
from edgekit.artifact.task import Metric, Task, could_hold_scores, looks_embedded
from edgekit.core.scores import without_rounding
from edgekit.errors import BackendError, DataError
from edgekit.types import Parity

if TYPE_CHECKING:
    from edgekit.types import Array

LOW_QUANTILE = 0.05
_VALUES_OF_A_SAMPLE = 16
"""Of fewer values a sample has no energy to speak of: a regression that crosses 0 is not quiet there."""


def compare(
    reference: Iterable[Mapping[str, Array]],
    outputs: Iterable[Mapping[str, Array]],
    *,
    task: Task | None = None,
    origin: Iterable[Mapping[str, Array]] | None = None,
    exact: Iterable[Mapping[str, Array]] = (),
    noise: bool = False,
    places: Mapping[str, Collection[int]] | None = None,
) -> Parity:
    """How far ``outputs`` are from ``reference``, matched by name, sample by sample.

    Integer references (class indices) are judged by equality and stay out of SNR, cosine and relative
    error. A NaN or infinity on one side only counts in ``nonfinite`` and sets SNR to -200 dB.

    ``origin``: outputs of the source before a recipe changed it; the task's metric is held against them, all else
    against ``reference``. ``exact``: the reference in float64 for the first samples, as far as it is known; how far
    ``reference`` is from it bounds what can be asked of an artifact (``Parity.rounding``). ``noise``: the inputs are
    noise; ``places``: axes of outputs along which no index means anything (see :mod:`edgekit.artifact.slices`).

    Raises :class:`BackendError` when the artifact lacks an output or gives another shape or number of
    samples, :class:`DataError` when labels do not fit.
    """
    task = task or Task()
    tallies: dict[str, _Tally] = {}
    judge, recipe = Judge(task), Judge(task if origin is not None else Task())
    samples = 0
    firsts: Iterable[Mapping[str, Array] | None] = repeat(None) if origin is None else origin
    doubles: Iterator[Mapping[str, Array]] = chain(exact, repeat({}))
    for (expected, got), before, double in zip(_pairs(reference, outputs), firsts, doubles, strict=False):
        for name, ref in expected.items():
            out = _matching(name, ref, got, samples)
            slices = SliceTally(noise=noise, places=(places or {}).get(name, ()))
            tally = tallies.setdefault(name, _Tally(slices=slices))
            scores = could_hold_scores(name, ref, task)
            embedded = scores and ref.ndim == 2 and looks_embedded(ref, task)
            tally.add(ref, out, double.get(name), scores=scores, embedded=embedded)
            if (axis := class_axis(name, ref, task)) is not None:
                tally.classes.add(ref, out, axis)
            tally.boxes.add(name, ref, out, task)
            tally.masks.add(name, ref, out, task)
        judge.add(before or expected, got, samples)
        recipe.add(before or expected, expected, samples)
        samples += 1
    if not samples:
        raise DataError("there is nothing to compare", hint="pass at least one sample")
    left = recipe.result()
    return replace(_parity(samples, tallies, judge), recipe_metric=None if left is None else left.artifact)


def _pairs(
    reference: Iterable[Mapping[str, Array]], outputs: Iterable[Mapping[str, Array]]
) -> Iterator[tuple[Mapping[str, Array], Mapping[str, Array]]]:
    # Not zip(strict=True): the ValueError that it raises cannot be told from one that the samples raise themselves.
    for expected, got in zip_longest(reference, outputs):
        if expected is None or got is None:
            raise BackendError(
                "the artifact and the reference gave different numbers of samples",
                hint="run the artifact again; if it stays so, report it",
            )
        yield expected, got


def _matching(name: str, ref: Array, got: Mapping[str, Array], sample: int) -> Array:
    if name not in got:
        raise BackendError(
            f"the artifact has no output {name!r}; it has: {', '.join(got)}",
            hint="outputs are matched by name: rebuild the artifact",
        )
    out = got[name]
    if out.shape != ref.shape:
        raise BackendError(
            f"sample {sample}: output {name!r} has the shape {list(out.shape)}, the reference {list(ref.shape)}",
            hint="it computes something else: a decoder that stops by its own answers stops elsewhere, and needs "
            "float activations (--exclude, or another target); where no length depends on the data, report it",
        )
    if ref.dtype.kind == "f" and out.dtype.kind in "iu":
        raise BackendError(
            f"output {name!r} is {out.dtype} where the reference is {ref.dtype}",
            hint="compare real values: run the artifact with quantize=True, which applies scale and zero-point",
        )
    return out


@dataclass(kw_only=True)
class _Tally:
    """Sums over the samples of one output."""

    integer: bool = False
    signal: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    max_error: float = 0.0
    max_ref: float = 0.0
    rows: int = 0
    cosine_sum: float = 0.0
    cosine_min: float = 1.0
    nonfinite: int = 0
    values: int = 0
    finite: int = 0
    compared: int = 0
    agreeing: int = 0
    embedded: bool = True
    bounded: bool = True
    slices: SliceTally = field(default_factory=SliceTally)
    classes: ClassTally = field(default_factory=ClassTally)
    boxes: BoxTally = field(default_factory=BoxTally)
    masks: MaskTally = field(default_factory=MaskTally)
    row_snr: list[float] = field(default_factory=list)
    rounding: RoundingTally = field(default_factory=RoundingTally)

    def add(self, ref: Array, out: Array, exact: Array | None, *, scores: bool, embedded: bool) -> None:
        """One sample. It takes only embeddings, all through, to make the output one."""
        self.integer = ref.dtype.kind in "iub"
        self.embedded &= embedded
        rows = ref.shape[0] if ref.ndim >= 2 else 1
        self.rows += rows
        if self.integer:
            self.compared += ref.size
            self.agreeing += int((ref == out).sum())
        r, a = ref.astype(np.float64).reshape(rows, -1), out.astype(np.float64).reshape(rows, -1)
        same_infinity = np.isinf(r) & (r == a)
        good = np.isfinite(r) & np.isfinite(a)
        self.nonfinite += int((~(good | same_infinity)).sum())
        self.values += good.size
        self.finite += int(good.sum())
        if scores and ref.ndim == 2 and ref.shape[1]:
            whole = (good | same_infinity).all(axis=1)
            self.compared += rows
            self.agreeing += int(((r.argmax(axis=1) == a.argmax(axis=1)) & whole).sum())
        r, a = np.where(good, r, 0.0), np.where(good, a, 0.0)
        if r.size:
            self.max_abs = max(self.max_abs, float(np.abs(a - r).max()))
        if not self.integer:
            a = without_rounding(r.reshape(ref.shape), a.reshape(ref.shape)).reshape(r.shape)
        self._distances(r, a)
        if not self.integer:
            self.bounded &= bool(r.size) and float(r.min()) >= 0 and float(r.max()) <= 1
            if r.shape[1] >= _VALUES_OF_A_SAMPLE:
                self.row_snr += row_snr(r, a)
            double = as_rounding(r, exact)
            self.slices.add(
                r.reshape(ref.shape),
                a.reshape(ref.shape),
                None if double is None else double.reshape(ref.shape),
            )
            if double is not None:
                self.rounding.add(r, double)

    def _distances(self, r: Array, a: Array) -> None:
        if not r.size:
            return
        difference = a - r
        self.signal += float((r * r).sum())
        self.noise += float((difference * difference).sum())
        self.max_error = max(self.max_error, float(np.abs(difference).max()))
        self.max_ref = max(self.max_ref, float(np.abs(r).max()))
        lengths = np.linalg.norm(r, axis=1) * np.linalg.norm(a, axis=1)
        products = (r * a).sum(axis=1)
        # A row of zeros has no direction: it is like another row of zeros and unlike anything else.
        empty = np.where((np.abs(r).max(axis=1) == 0) & (np.abs(a).max(axis=1) == 0), 1.0, 0.0)
        cosines = np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1), empty)
        self.cosine_sum += float(cosines.sum())
        self.cosine_min = min(self.cosine_min, float(cosines.min()))

    def summary(self) -> dict[str, float]:
        """The figures of one output."""
        figures = {"rows": float(self.rows), "max_abs": self.max_abs, "nonfinite": float(self.nonfinite)}
        if self.values and not self.finite:
            figures[UNSEEN] = 1.0
        if self.compared and not self.embedded:
            figures["agreement"] = self.agreeing / self.compared
        if (share := self.classes.share()) is not None:
            figures["agreement"] = share
        if self.integer:
            return figures
        if (worst := self.slices.worst()) is not None:
            figures |= {"explained": worst.explained, "axis": float(worst.axis), "index": float(worst.index)}
        if self.row_snr and not self.bounded:
            # What lies between 0 and 1 is judged by its size: a score of 1e-5 for "nothing" may be anything small.
            figures["sample_snr_db"] = sorted(self.row_snr)[int(LOW_QUANTILE * len(self.row_snr))]
        broken = self.nonfinite > 0
        return (
            figures
            | self.boxes.figures()
            | self.masks.figures()
            | {
                "relative_error": self.max_error / self.max_ref if self.max_ref else self.max_error,
                "snr_db": -SNR_CAP if broken else decibels(self.signal, self.noise),
                "cosine": -1.0 if broken else self.cosine_sum / max(self.rows, 1),
                "cosine_min": -1.0 if broken else self.cosine_min,
            }
        )


UNSEEN = "all infinite"
"""The figure of an output of which no value could be compared: all were the same infinities."""


def _where(name: str, figures: Mapping[str, float]) -> str:
    """Which slice the figures are of."""
    if "explained" not in figures:
        return ""
    if figures["axis"] < 0:
        return name
    return f"{name}, index {figures['index']:.0f} of axis {figures['axis']:.0f}"


def _parity(samples: int, tallies: Mapping[str, _Tally], judge: Judge) -> Parity:
    per_output = {name: tally.summary() for name, tally in tallies.items()}
    real = [f for f in per_output.values() if "snr_db" in f]
    agreements = {n: f["agreement"] for n, f in per_output.items() if "agreement" in f}
    integers = {n: agreements[n] for n, t in tallies.items() if t.integer and t.compared}
    lost = min(per_output, key=lambda n: per_output[n].get("explained", math.inf))
    boxes = {n: f["boxes"] for n, f in per_output.items() if "boxes" in f}
    masks = {n: f["masks"] for n, f in per_output.items() if "masks" in f}
    per_sample = [f["sample_snr_db"] for f in per_output.values() if "sample_snr_db" in f]
    parity = Parity(
        samples=samples,
        rows=max(t.rows for t in tallies.values()),
        nonfinite=sum(t.nonfinite for t in tallies.values()),
        max_abs=max(f["max_abs"] for f in per_output.values()),
        relative_error=max((f["relative_error"] for f in real), default=0.0),
        snr_db=min((f["snr_db"] for f in real), default=SNR_CAP),
        cosine=min((f["cosine"] for f in real), default=1.0),
        top1_agreement=min(agreements.values(), default=None),
        agreement_rows=_rows_of_the_least(agreements, tallies),
        integer_agreement=min(integers.values(), default=None),
        integer_rows=_rows_of_the_least(integers, tallies),
        explained=per_output[lost].get("explained"),
        explained_at=_where(lost, per_output[lost]),
        sample_snr_db=min(per_sample, default=None),
        boxes=min(boxes.values(), default=None),
        box_rows=_rows_of_the_least(boxes, tallies),
        masks=min(masks.values(), default=None),
        mask_rows=_rows_of_the_least(masks, tallies),
        rounding=worst_rounding([t.rounding for t in tallies.values()]),
        noise=any(t.slices.noise for t in tallies.values()),
        per_output=per_output,
    )
    judged = judge.result()
    return parity if judged is None else _with_metric(parity, judged, judge.task.metric)


def _rows_of_the_least(agreements: Mapping[str, float], tallies: Mapping[str, _Tally]) -> int:
    """What is independent behind the smallest agreement: rows, not the integers in one of them."""
    return tallies[min(agreements, key=lambda n: agreements[n])].rows if agreements else 0


def _with_metric(parity: Parity, judged: Judged, metric: Metric | None) -> Parity:
    higher = metric is None or metric.higher_is_better
    interval, drop = judged.interval, None
    if judged.artifact is not None:
        drop = judged.source - judged.artifact if higher else judged.artifact - judged.source
    return replace(
        parity,
        metric_name=metric.name if metric else "accuracy",
        higher_is_better=higher,
        metric=judged.artifact,
        reference_metric=judged.source,
        metric_drop=drop,
        drop_interval=None if interval is None else (interval.low, interval.high),
        drop_method="" if interval is None else interval.method,
        labelled=judged.labelled,
        metric_rows=judged.rows,
        row_loss=judged.row_loss,
        changed_rows=judged.changed,
        guess=judged.guess,
    )
