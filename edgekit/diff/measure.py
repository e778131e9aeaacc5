"""How far each layer is off by itself, and whether its arithmetic explains that.

A layer reads the earlier form's tensors (teacher forcing), so that its error is its own. What rounding
would do to that layer is measured too: the earlier graph with weights as coarse as the later form's, on the
same. The *excess* of a layer is its error power over that expectation, channel by channel, in dB; naturally
noisy layers (depthwise convolutions, wide ranges) have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact.energy import decibels
from edgekit.artifact.slices import SliceTally
from edgekit.core import contained
from edgekit.diff.align import Anchor, Pass
from edgekit.diff.forms import Form
from edgekit.diff.onnx_form import OnnxForm

if TYPE_CHECKING:
    from edgekit.types import Array

_RELATIVE = {24: 1e-4, 11: 2e-3, 8: 1.5e-2}
"""What reordered sums in a float format may cost, relative to the tensor: ten times what was seen in healthy
graphs of the architectures measured."""
_FIXED = {"Tanh": 1 / 128, "Sigmoid": 1 / 256, "Softmax": 1 / 256, "LogSoftmax": 16 / 256}
"""Steps of 8 bits that the TFLite specification prescribes whatever the values are."""
_MOST = 200.0


@dataclass
class Tally:
    """Sums over the inputs for one pair of tensors."""

    signal: float = 0.0
    local: float = 0.0
    accumulated: float = 0.0
    clipped: float = 0.0
    """The part of ``local`` beyond the smallest and largest value that the layer gave."""
    broken: bool = False
    slices: SliceTally = field(default_factory=SliceTally)
    by_axis: dict[int, tuple[Array, Array]] = field(default_factory=dict)

    @property
    def local_db(self) -> float:
        """Signal to noise with the earlier form's inputs."""
        return -_MOST if self.broken else decibels(self.signal, self.local)

    @property
    def accumulated_db(self) -> float:
        """Signal to noise with the later form's own inputs."""
        return decibels(self.signal, self.accumulated)

    @property
    def explained(self) -> float:
        """Of the variance of its worst slice, what the layer by itself keeps (see :mod:`edgekit.artifact.slices`)."""
        worst = self.slices.worst()
        return 1.0 if worst is None else worst.explained

    @property
    def excess_db(self) -> float:
        """Error power over what rounding explains."""
        if self.broken:
            return _MOST
        ratios = [float(np.mean(noise / expected)) for noise, expected in self.by_axis.values()]
        return float(np.clip(10 * np.log10(max(max(ratios, default=0.0), 1e-20)), -_MOST, _MOST))


@dataclass
class Stage:
    """Two consecutive forms, their shared tensors, the tallies in the same order, and both forms' outputs,
    one row an input."""

    a: Form
    b: Form
    anchors: tuple[Anchor, ...]
    tallies: list[Tally]
    outputs_a: list[list[Array]] = field(default_factory=list)
    outputs_b: list[list[Array]] = field(default_factory=list)


def measure(a: Form, b: Form, anchors: Sequence[Anchor], samples: Iterable[Mapping[str, Array]]) -> Stage:
    """Run both forms on every input, free and teacher-forced."""
    stage = Stage(a=a, b=b, anchors=tuple(anchors), tallies=[Tally() for _ in anchors])
    coarse = _coarse(a, b)
    by_tensor = {anchor.b.tensor: anchor for anchor in anchors}
    for inputs in samples:
        contained.beat()
        run = Pass.of(a, b, inputs)
        stage.outputs_a.append([run.a[name] for name in a.outputs])
        stage.outputs_b.append([run.b[name] for name in b.outputs])
        injected = run.injected(by_tensor)
        own = b.forced(inputs, injected)
        rounding = _rounding(coarse, run, by_tensor, b.received(injected)) if coarse is not None else {}
        typical = float(np.median([_power(run.a[x.a.tensor]) for x in anchors])) if anchors else 0.0
        for anchor, tally in zip(stage.anchors, stage.tallies, strict=True):
            _add(tally, anchor, b, _Values.of(anchor, run, own, rounding), typical)
    return stage


@dataclass(frozen=True, kw_only=True)
class _Values:
    """One tensor in the earlier form's layout: as it is there, local, free-running, and coarsely rounded."""

    true: Array
    local: Array
    free: Array
    rounded: Array | None

    @classmethod
    def of(
        cls, anchor: Anchor, run: Pass, own: Mapping[str, Array], rounding: Mapping[str, Array]
    ) -> _Values:
        true = run.a[anchor.a.tensor].astype(np.float64)
        tensor = anchor.b.tensor
        return cls(
            true=true,
            local=anchor.view.back(own[tensor], true.shape).astype(np.float64),
            free=anchor.view.back(run.b[tensor], true.shape).astype(np.float64),
            rounded=rounding.get(anchor.a.tensor),
        )


def _coarse(a: Form, b: Form) -> Form | None:
    """The earlier form with weights as coarse as the later's; itself where they are that already."""
    if not isinstance(a, OnnxForm):
        return None
    return a.rounded(b.weight_bits) if b.weight_bits < a.weight_bits and b.weight_bits <= 8 else a


def _rounding(
    coarse: Form, run: Pass, anchors: Mapping[str, Anchor], received: Mapping[str, Array]
) -> dict[str, Array]:
    """The earlier form's layers with coarse weights, each on what the later form's layers read."""
    values = {}
    for name, anchor in anchors.items():
        true = run.a[anchor.a.tensor]
        values[anchor.a.tensor] = anchor.view.back(received[name], true.shape).astype(true.dtype)
    return coarse.forced(run.inputs, values)


def _step(value: Array, bits: int) -> float:
    """Distance of neighbours when the whole range of ``value``, zero included, has ``bits`` bits."""
    good = value[np.isfinite(value)]
    if not bits or not good.size:
        return 0.0
    reach = max(float(good.max()), 0.0) - min(float(good.min()), 0.0)
    return reach / float(2**bits - 1)


def _add(tally: Tally, anchor: Anchor, b: Form, values: _Values, typical: float) -> None:
    true = values.true
    good = np.isfinite(true)
    # Where the earlier form itself is not finite nothing can be said; where only the later one is, it is wrong.
    tally.broken |= bool((good & ~np.isfinite(values.local)).any())
    clean = np.where(good, true, 0.0)
    noise = np.where(good & np.isfinite(values.local), values.local - clean, 0.0) ** 2
    drift = np.where(good & np.isfinite(values.free), values.free - clean, clean) ** 2
    tally.signal += float((clean**2).sum())
    tally.local += float(noise.sum())
    tally.accumulated += float(drift.sum())
    tally.slices.add(clean, clean + np.where(good & np.isfinite(values.local), values.local - clean, 0.0))
    tally.clipped += float(noise[(clean > values.local.max()) | (clean < values.local.min())].sum())
    expected = np.zeros_like(true)
    if values.rounded is not None:
        expected = np.where(good, values.rounded.astype(np.float64) - clean, 0.0) ** 2
    floor = _floor(anchor, b, clean, typical)
    # Which axis holds the channels is not known: axis 1 or the last. One lost channel of hundreds must count.
    for axis in {1 % max(true.ndim, 1), true.ndim - 1} if true.ndim else {0}:
        n, q = _by_channel(noise, axis), _by_channel(expected + floor, axis)
        before = tally.by_axis.get(axis)
        if before is not None and before[0].shape == n.shape:
            n, q = before[0] + n, before[1] + q
        tally.by_axis[axis] = (n, q)


def _floor(anchor: Anchor, b: Form, true: Array, typical: float) -> Array:
    """Mean error power that storing or summing the tensor explains, per element (broadcast to its shape)."""
    relative = _RELATIVE[b.float_bits if b.weight_bits > 16 else min(b.float_bits, 11)]
    # A tensor that is almost zero everywhere must not look infinitely wrong.
    power = max(_power(true), 1e-8 * typical, 1e-30)
    spread = anchor.view.spread(true.shape)
    bits = anchor.b.bits or (8 if b.weight_bits <= 8 else 0)
    step = spread * max(_step(true / spread, bits), _FIXED.get(anchor.a.op, 0.0) if bits == 8 else 0.0)
    return np.asarray(relative**2 * power + step**2 / 12)  # a uniform error of one step has this variance


def _by_channel(value: Array, axis: int) -> Array:
    if value.ndim == 0:
        return value.reshape(1)
    return np.asarray(value.mean(axis=tuple(i for i in range(value.ndim) if i != axis)))


def _power(value: Array) -> float:
    good = value[np.isfinite(value)].astype(np.float64)
    return float(np.mean(good**2)) if good.size else 0.0
