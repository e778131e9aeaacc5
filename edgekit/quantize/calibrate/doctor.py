"""The calibration doctor: are these samples what the model will meet?

Wrong calibration data goes unnoticed everywhere: the artifact builds, and is wrong. The samples are
compared with inputs that are known to be right (the evaluation samples, else the source's example inputs)
and with what any such data looks like; the ranges of one half with those of the other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.profile import InputProfile, exchange, profile
from edgekit.quantize.calibrate.twosample import chance_of, energy_distance
from edgekit.types import Finding, Sample, Severity

_T = TypeVar("_T")


LIMIT = 256
"""How many samples of each set are looked at, spread over all of it: sets are often sorted by class."""

_ERRORS = 5.0
"""How many standard errors beyond noise a correlation has to be."""
_FEW = 8  # reference samples below which only gross differences count
_SURE = 0.01
"""An error is called so where chance gives the like in fewer than one honest set of a hundred."""
_ALIKE = 0.1
_NEARER = 0.25
_MOSTLY = 0.9
_SMOOTH = 0.1
"""What neighbours of noise do not reach in their correlation."""
_KNOWN = "inputs known to be right"
_COLOURS = 16
"""Fewer pictures say nothing sure about their colours."""
_WRONG_ORDER = np.array([(0.406 - 0.485) / 0.229, (0.485 - 0.406) / 0.225, 0.0, 0.0])
"""What ImageNet's means of red and blue, subtracted in the wrong order, add to the outer channels' means."""


def diagnose(
    samples: Iterable[Sample],
    *,
    reference: Iterable[Sample] | Sequence[Mapping[str, npt.NDArray[Any]]] = (),
    example: Mapping[str, npt.NDArray[Any]] | None = None,
    calibration: Calibration | None = None,
) -> tuple[Finding, ...]:
    """All findings, errors first. ``reference``: inputs known to be right, the more the better. ``example``: the
    source's own inputs, beside them: what calibration and evaluation have in common may come from one wrong loader.

    ``calibration`` adds the split-half stability of the ranges. Looks at :data:`LIMIT` samples of each.
    """
    taken = _spread(samples)
    known: list[Sample | Mapping[str, npt.NDArray[Any]]] = _spread(reference)
    right = [r.inputs if isinstance(r, Sample) else r for r in known]
    findings: list[Finding] = []
    for name in sorted({n for s in taken for n in s.inputs}):
        mine = profile(name, [s.inputs[name] for s in taken if name in s.inputs])
        theirs = profile(name, [r[name] for r in right if name in r]) if right else None
        found = _values(mine, theirs)
        findings += found or (_beside_example(mine, example[name]) if example and name in example else [])
    if taken:
        findings += _duplicates([s.inputs for s in taken])
        findings += _same_samples([s.inputs for s in taken], right)
    if calibration is not None:
        findings += _stability(calibration)
    return tuple(sorted(findings, key=lambda f: (f.severity != Severity.ERROR, f.tensor, f.code)))


def _spread(items: Iterable[_T]) -> list[_T]:
    """Up to :data:`LIMIT` items, evenly spaced over all of an iterable whose length is not known."""
    kept: list[_T] = []
    stride = 1
    for index, item in enumerate(items):
        if index % stride:
            continue
        if len(kept) == LIMIT:
            kept, stride = kept[::2], stride * 2
            if index % stride:
                continue
        kept.append(item)
    return kept


def _values(mine: InputProfile, theirs: InputProfile | None) -> list[Finding]:
    """The gravest finding on an input's values: what is behind it would only repeat it."""
    if mine.not_finite:
        return [
            _finding("not-finite", mine, f"{mine.not_finite} of {mine.samples} samples hold NaN or infinity",
                     "mend or drop these samples", samples=mine.not_finite)
        ]  # fmt: skip
    if not mine.real:
        return []
    for check in (_constant, _scale, _layout, _noise, _normalization, _colour):
        finding = check(mine, theirs)
        if finding is not None:
            return [finding]
    return []


def _beside_example(mine: InputProfile, example: npt.NDArray[Any]) -> list[Finding]:
    """What evaluation has in common with the samples and the source's example inputs have not. An error where the
    example is a picture; what was made up to give a shape is none, and of other inputs nobody can tell."""
    theirs = profile(mine.name, [example])
    if not theirs.real or not mine.real or is_placeholder(theirs):
        return []
    for check in (_scale, _normalization):
        found = check(mine, theirs)
        if found is not None:
            return [
                replace(
                    found,
                    severity=found.severity if is_picture(theirs) else Severity.WARNING,
                    message=found.message.replace(_KNOWN, "source's example inputs")
                    + "; the evaluation samples are as the calibration samples are, and may be as wrong",
                    hint="give calibration and evaluation the preprocessing that the example inputs have, or the "
                    "source an example that is right",
                )
            ]
    return []


def is_picture(inputs: InputProfile) -> bool:
    """Whether neighbouring values go together, as in what a camera gives and in nothing that was drawn at random."""
    return inputs.smoothness is not None and inputs.smoothness > _SMOOTH


def is_placeholder(inputs: InputProfile) -> bool:
    """Whether the values are one constant, or a picture of noise: made up to give a shape."""
    return inputs.constant > 0 or (inputs.smoothness is not None and inputs.smoothness <= _SMOOTH)


def _constant(mine: InputProfile, theirs: InputProfile | None) -> Finding | None:
    if theirs is not None and theirs.constant > 0.5 * theirs.samples:
        return None
    for code, count, what in (
        ("zeros", mine.zero, "nothing but zeros"),
        ("constant", mine.constant, "one value"),
    ):
        if count > 0.1 * mine.samples:
            return _finding(
                code, mine, f"{count} of {mine.samples} samples hold {what}",
                "check that the loader fills the arrays it yields", samples=count,
            )  # fmt: skip
    return None


def _scale(mine: InputProfile, theirs: InputProfile | None) -> Finding | None:
    if theirs is None or theirs.rms == 0.0:
        return None
    ratio = mine.rms / theirs.rms
    limit = 8 if theirs.samples >= _FEW else 16
    if 1 / limit < ratio < limit:
        return None
    near = "; 255 is the factor between bytes and 0 to 1" if 100 < max(ratio, 1 / ratio) < 650 else ""
    return _finding(
        "scale", mine, f"values are {ratio:.3g} times as large as in the {_KNOWN}{near}",
        "give calibration the preprocessing that evaluation has", ratio=ratio,
    )  # fmt: skip


def _layout(mine: InputProfile, theirs: InputProfile | None) -> Finding | None:
    """Channels-last pixels read as channels-first repeat with the number of channels."""
    if theirs is None or mine.period is None or theirs.period is None:
        return None
    # Of small arrays chance alone reaches a tenth.
    chance = _ERRORS * math.hypot(mine.period_error, theirs.period_error)
    if mine.period < 0.05 or theirs.period > 0.02 or mine.period - theirs.period < max(0.08, chance):
        return None
    return _finding(
        "layout", mine, "neighbouring values repeat with the number of channels: pixels in another axis order",
        "transpose (H, W, C) arrays to (C, H, W); do not reshape them", period=mine.period,
    )  # fmt: skip


def _noise(mine: InputProfile, theirs: InputProfile | None) -> Finding | None:
    if mine.smoothness is None or mine.smoothness > _SMOOTH:
        return None
    if theirs is not None and (theirs.smoothness is None or theirs.smoothness < mine.smoothness + 0.25):
        return None
    return _finding(
        "noise", mine, f"neighbouring values are unrelated (correlation {mine.smoothness:.2f}): random noise",
        "calibrate on real inputs: ranges from noise do not hold for them",
        severity=Severity.ERROR if theirs is not None else Severity.WARNING, correlation=mine.smoothness,
    )  # fmt: skip


def _colour(mine: InputProfile, theirs: InputProfile | None) -> Finding | None:
    """RGB read as BGR: the samples differ from those that are right, and do not once their channels are exchanged.

    Both halves are needed. Pictures of other scenes differ, too, and lie nearer by chance after the exchange as often
    as not; that they then cannot be told apart is no chance.
    """
    if theirs is None or mine.colours is None or theirs.colours is None:
        return None
    if min(mine.samples, theirs.samples) < _COLOURS:
        return None
    if mine.grey or theirs.grey:
        return _grey(mine, theirs)
    spread = theirs.colours.std(axis=0) + 1e-9
    samples, right = mine.colours / spread, theirs.colours / spread
    turned = exchange(mine.colours) / spread
    straight = chance_of(samples, right)
    if straight > _SURE / 2:
        return None
    distance = energy_distance(samples, right)
    for shift in (0.0, _WRONG_ORDER):
        undone = turned + shift / spread
        exchanged = chance_of(undone, right)
        if exchanged >= _ALIKE and energy_distance(undone, right) <= _NEARER * distance:
            return _finding(
                "colour-order", mine, "the first and the last channel are exchanged (RGB against BGR)",
                "read images in the channel order that the model was trained on",
                straight=straight, exchanged=exchanged,
            )  # fmt: skip
    return None


def _grey(mine: InputProfile, theirs: InputProfile) -> Finding | None:
    without, known = mine.grey / mine.samples, theirs.grey / theirs.samples
    if abs(without - known) < _MOSTLY:
        return None
    return _finding(
        "grey", mine, f"{without:.0%} of the pictures have no colour, and {known:.0%} of the {_KNOWN}",
        "calibrate on pictures like those that the model will meet", severity=Severity.WARNING, grey=without,
    )  # fmt: skip


def _normalization(mine: InputProfile, theirs: InputProfile | None) -> Finding | None:
    if theirs is None or theirs.deviation == 0.0:
        return None
    shift = (mine.mean - theirs.mean) / theirs.deviation
    spread = mine.deviation / theirs.deviation
    one_sided = (mine.low >= 0.0) != (theirs.low >= 0.0)
    if theirs.samples < _FEW and not theirs.low < 0.0 <= mine.low:
        return None
    gross = abs(shift) >= (0.6 if one_sided else 1.2) or not 0.4 < spread < 2.5
    if not gross and (1 / 1.6 < spread < 1.6 or not _spread_apart(mine, theirs)):
        return None
    return _finding(
        "normalization", mine,
        f"mean {mine.mean:.3g} and deviation {mine.deviation:.3g}; the {_KNOWN} have "
        f"{theirs.mean:.3g} and {theirs.deviation:.3g}",
        "give calibration the mean and standard deviation that evaluation has",
        severity=Severity.ERROR if gross and one_sided else Severity.WARNING, shift=shift, spread=spread,
    )  # fmt: skip


def _spread_apart(mine: InputProfile, theirs: InputProfile) -> bool:
    """Whether the samples' means and deviations differ by more than chance gives."""
    if mine.levels is None or theirs.levels is None or min(mine.samples, theirs.samples) < _FEW:
        return False
    scale = theirs.levels.std(axis=0) + 1e-9
    return chance_of(mine.levels / scale, theirs.levels / scale) <= _SURE / 2


def _same_samples(
    mine: Sequence[Mapping[str, npt.NDArray[Any]]], right: Sequence[Mapping[str, npt.NDArray[Any]]]
) -> list[Finding]:
    """Calibration samples among those that figures are measured on."""
    if len(right) < _FEW:
        return []  # an example input may well be one of the samples
    known = {_content(r) for r in right}
    shared = sum(_content(m) in known for m in mine)
    if shared <= 0.1 * len(mine):
        return []
    return [
        Finding(
            code="evaluation-data",
            severity=Severity.WARNING,
            tensor=", ".join(sorted(mine[0])),
            message=f"{shared} of {len(mine)} calibration samples are evaluation samples, too: figures on them flatter",
            hint="calibrate on samples that are not evaluated on",
            evidence={"shared": float(shared)},
        )
    ]


def _content(inputs: Mapping[str, npt.NDArray[Any]]) -> bytes:
    return hashlib.sha256(b"".join(inputs[n].tobytes() for n in sorted(inputs))).digest()


def _duplicates(inputs: Sequence[Mapping[str, npt.NDArray[Any]]]) -> list[Finding]:
    keys = [b"".join(i[n].tobytes() for n in sorted(i)) for i in inputs]
    repeated = len(keys) - len(set(keys))
    if repeated <= max(1, 0.1 * len(keys)):
        return []
    severity = Severity.ERROR if len(set(keys)) == 1 else Severity.WARNING
    return [
        Finding(
            code="duplicates",
            severity=severity,
            tensor=", ".join(sorted(inputs[0])),
            message=f"{repeated} of {len(keys)} samples repeat another",
            hint="draw samples without replacement; check that the loader does not yield one array it reuses",
            evidence={"repeated": float(repeated)},
        )
    ]


_UNSTABLE = 0.2


def _stability(calibration: Calibration) -> list[Finding]:
    """Ranges of the even against those of the odd samples: too few samples show as a difference."""
    differences: dict[str, float] = {}
    for name, s in calibration.tensors.items():
        width = s.high - s.low
        if width > 0.0 and not s.masked:
            ends = (s.half_high[0] - s.half_high[1], s.half_low[0] - s.half_low[1])
            differences[name] = float(max(abs(e) for e in ends) / width)
    if not differences:
        return []
    typical = float(np.median(list(differences.values())))
    if calibration.samples >= 8 and typical <= _UNSTABLE:
        return []
    worst = max(differences, key=lambda n: differences[n])
    return [
        Finding(
            code="too-few-samples",
            severity=Severity.WARNING,
            tensor=worst,
            message=f"{calibration.samples} samples; ranges of one half differ from the other's by "
            f"{typical:.0%} of the range at the median tensor, by {differences[worst]:.0%} at {worst!r}",
            hint="give more samples (100 to 500 are usual), or a method that clips outliers",
            evidence={"samples": float(calibration.samples), "median_difference": typical},
        )
    ]


def _finding(
    code: str,
    mine: InputProfile,
    message: str,
    hint: str,
    severity: Severity = Severity.ERROR,
    **evidence: float,
) -> Finding:
    return Finding(
        code=code, severity=severity, tensor=mine.name, message=f"input {mine.name!r}: {message}", hint=hint,
        evidence={name: float(value) for name, value in evidence.items()},
    )  # fmt: skip
