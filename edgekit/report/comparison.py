"""Two builds of the same targets held against each other: what got better, what got worse, and what nobody can tell.

A build's times were taken when it was built, on a machine that has since done other things: processes of one run say
how much they vary among each other, and nothing of how the machine changed in between. So a latency from two runs is
worse only where the whole interval of the ratio is beyond :data:`DRIFT`; ``edgekit bench NEW --vs OLD`` takes them in
turns, and sees one per cent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact import proof
from edgekit.artifact.manifest import BUILT, Manifest
from edgekit.artifact.summary import size
from edgekit.devices.statistics import bootstrap_medians
from edgekit.report.collect import Entry
from edgekit.types import Measurement

if TYPE_CHECKING:
    from edgekit.types import Array

DRIFT = 0.05
"""What the median of one artifact differs by between two runs on one quiet machine, at most times."""
_RESAMPLES = 2000
_FEWEST = 3
"""Of fewer processes nothing is known of how they vary."""


class Change(StrEnum):
    """What a figure did from the old build to the new one."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    UNSURE = "unsure"
    MISSING = "not comparable"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of one target. ``loss``: how much worse the new build is, as a share of the old one (of metrics: in
    their own unit), and what it is surely; ``None`` where that has no meaning."""

    target: str
    name: str
    old: str
    new: str
    change: Change
    why: str = ""
    loss: float | None = None

    def regressed(self, limit: float) -> bool:
        """Whether it is worse by more than ``limit``: a share, or in a metric's own unit; a verdict always is."""
        return self.change is Change.WORSE and (self.loss is None or self.loss > limit)


def compare(old: Sequence[Entry], new: Sequence[Entry]) -> tuple[Figure, ...]:
    """Every figure of the targets in ``old`` and ``new``, matched by target, in the order of ``old``; one that is gone
    is worse."""
    before, after = ({e.name: e for e in entries} for entries in (old, new))
    found: list[Figure] = []
    for name in dict.fromkeys((*before, *after)):
        found += _target(name, before.get(name), after.get(name))
    return tuple(found)


def _target(name: str, old: Entry | None, new: Entry | None) -> Iterator[Figure]:
    if old is None or new is None:
        lost = old is not None and old.artifact.manifest.status in BUILT
        change = Change.WORSE if lost else Change.MISSING
        states = ("–" if e is None else str(e.artifact.manifest.status) for e in (old, new))
        why = "it was not built" if new is None else "it is new"
        yield Figure(target=name, name="verdict", old=next(states), new=next(states), change=change, why=why)
        return
    a, b = old.artifact.manifest, new.artifact.manifest
    yield _verdict(name, old, new)
    yield _amount(name, "size", a.size, b.size)
    yield from _metrics(name, a, b)
    yield from _times(name, old, new)


def _verdict(target: str, old: Entry, new: Entry) -> Figure:
    a, b = old.artifact.manifest, new.artifact.manifest
    good = [m.status in BUILT and not e.changed for m, e in ((a, old), (b, new))]
    change = Change.SAME if good[0] == good[1] else Change.BETTER if good[1] else Change.WORSE
    why = "; ".join(f"{g.name}: {g.message}" for g in b.gates if g.verdict == "fail") or new.changed
    return Figure(
        target=target,
        name="verdict",
        old=str(a.status),
        new=str(b.status),
        change=change,
        why=why if not good[1] else "",
    )


def _amount(target: str, name: str, old: int | None, new: int | None) -> Figure:
    """Bytes: they are what they are."""
    if old is None or new is None or old <= 0:
        texts = ("–" if v is None else size(v) for v in (old, new))
        return Figure(target=target, name=name, old=next(texts), new=next(texts), change=Change.MISSING)
    loss = new / old - 1
    change = Change.SAME if new == old else Change.WORSE if new > old else Change.BETTER
    return Figure(target=target, name=name, old=size(old), new=size(new), change=change, loss=loss)


def _metrics(target: str, a: Manifest, b: Manifest) -> Iterator[Figure]:
    """Metric and agreement, on the same samples alone."""
    if a.parity is None or b.parity is None:
        return
    same = (
        _evaluated(a) == _evaluated(b)
        and a.parity.samples == b.parity.samples
        and a.parity.data == b.parity.data
    )
    sign = 1 if a.parity.higher_is_better else -1
    names = (a.parity.metric_name or "metric", "agreement", "SNR, dB")
    rows = (
        (names[0], a.parity.metric, b.parity.metric, sign, a.parity.row_loss),
        (names[1], a.parity.top1_agreement, b.parity.top1_agreement, 1, 1 / max(a.parity.agreement_rows, 1)),
    )
    for name, old, new, better, row in rows:
        if old is None or new is None:
            continue
        loss = better * (old - new)
        change, why = _moved(loss, row) if same else (Change.MISSING, "measured on other samples")
        yield Figure(
            target=target, name=name, old=f"{old:.4f}", new=f"{new:.4f}", change=change, why=why, loss=loss
        )
    texts = (f"{p.snr_db:.1f}" for p in (a.parity, b.parity))
    apart = b.parity.snr_db - a.parity.snr_db
    moved = Change.SAME if abs(apart) < _AUDIBLE_DB else Change.BETTER if apart > 0 else Change.WORSE
    yield Figure(
        target=target,
        name=names[2],
        old=next(texts),
        new=next(texts),
        change=moved if same else Change.MISSING,
        why="" if same else "measured on other samples",
        loss=0.0,  # gates judge it; it is shown
    )


_AUDIBLE_DB = 1.0


def _moved(loss: float, row: float) -> tuple[Change, str]:
    """A loss of a metric on the same rows: fewer rows than two are chance."""
    if abs(loss) < 1e-9:
        return Change.SAME, ""
    if abs(loss) < 2 * row - 1e-9:
        return Change.UNSURE, f"less than two rows ({proof.percent(2 * row)})"
    return (Change.WORSE if loss > 0 else Change.BETTER), ""


def _evaluated(manifest: Manifest) -> object:
    record = manifest.details.get("evaluation")
    return record.get("fingerprint") if isinstance(record, Mapping) else None


def _times(target: str, old: Entry, new: Entry) -> Iterator[Figure]:
    """Latency and memory by device, on the same processor with the same threads alone."""
    before, after = ({m.device: m for m in e.artifact.manifest.measurements} for e in (old, new))
    for device in dict.fromkeys((*before, *after)):
        a, b = before.get(device), after.get(device)
        name = f"latency on {device}"
        if a is None or b is None or (why := _other(a, b)):
            why = "measured in one of them alone" if a is None or b is None else why
            texts = ("–" if m is None else f"{m.p50_ms:.4g} ms" for m in (a, b))
            yield Figure(
                target=target, name=name, old=next(texts), new=next(texts), change=Change.MISSING, why=why
            )
            continue
        ratio = _ratio(old.times.get(device, ()), new.times.get(device, ()))
        yield _latency(target, name, a, b, ratio)
        memory = _amount(target, f"memory on {device}", a.peak_memory, b.peak_memory)
        if memory.change is not Change.MISSING:
            yield _about(memory)


def _other(a: Measurement, b: Measurement) -> str:
    """Why two measurements cannot be compared."""
    if a.threads != b.threads:
        return f"{a.threads} and {b.threads} threads"
    processors = []
    for facts in (a.facts, b.facts):
        device = facts.get("device")
        processors.append(str(device.get("processor")) if isinstance(device, Mapping) else "")
    return "" if processors[0] == processors[1] else f"{processors[0]} and {processors[1]}"


def _ratio(old: Sequence[Sequence[float]], new: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """The 95 % interval of new over old: processes resampled, then calls within them; ``None`` of too few."""
    if min(len(old), len(new)) < _FEWEST:
        return None
    generator = np.random.default_rng(0)
    medians = [_medians([np.sort(np.asarray(p)) for p in side], generator) for side in (old, new)]
    low, high = np.quantile(medians[1] / medians[0], [0.025, 0.975])
    return float(low), float(high)


def _medians(processes: Sequence[Array], generator: np.random.Generator) -> Array:
    chosen = generator.integers(0, len(processes), (_RESAMPLES, len(processes)))
    drawn = np.empty(chosen.shape)
    for index, process in enumerate(processes):
        where = chosen == index
        drawn[where] = bootstrap_medians(process, int(where.sum()), generator)
    medians: Array = np.median(drawn, axis=1)
    return medians


def _latency(
    target: str, name: str, a: Measurement, b: Measurement, ratio: tuple[float, float] | None
) -> Figure:
    loss = b.p50_ms / a.p50_ms - 1 if a.p50_ms > 0 else math.inf
    noisy = [m.validity for m in (a, b) if m.validity != "VALID"]
    if ratio is None:
        change, why = Change.UNSURE, f"fewer than {_FEWEST} processes with raw times"
    elif noisy:
        change, why = Change.UNSURE, f"a run was {noisy[0]}"
    elif ratio[0] > 1 + DRIFT:
        change, why, loss = Change.WORSE, _interval(ratio), ratio[0] - 1
    elif ratio[1] < 1 - DRIFT:
        change, why = Change.BETTER, _interval(ratio)
    elif ratio[0] > 1 - DRIFT and ratio[1] < 1 + DRIFT:
        change, why = Change.SAME, _interval(ratio)
    else:
        change, why = Change.UNSURE, f"{_interval(ratio)}: edgekit bench NEW --vs OLD tells"
    texts = (f"{m.p50_ms:.4g} ms" for m in (a, b))
    return Figure(
        target=target, name=name, old=next(texts), new=next(texts), change=change, why=why, loss=loss
    )


def _interval(ratio: tuple[float, float]) -> str:
    return f"{ratio[0]:.3f} to {ratio[1]:.3f} times the old one's"


def _about(figure: Figure) -> Figure:
    """Of memory less than a twentieth is where the allocator happened to be."""
    if figure.loss is not None and abs(figure.loss) < DRIFT:
        return Figure(
            target=figure.target,
            name=figure.name,
            old=figure.old,
            new=figure.new,
            change=Change.SAME,
            loss=0.0,
        )
    return figure
