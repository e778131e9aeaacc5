"""``--limit NAME=VALUE``: limits of gates that the user sets for a build or verification, in place of the target's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from edgekit.core.declared import parse_fraction
from edgekit.core.quantities import BYTES, MILLISECONDS, quantity
from edgekit.errors import ConfigError, UnknownOptionError
from edgekit.types import Option, Tolerance


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the user sets: fields of the target's tolerance by name, and limits that no target has."""

    tolerance: Mapping[str, float] = field(default_factory=dict)
    size_bytes: int | None = None
    latency_ms: float | None = None
    memory_bytes: int | None = None

    @property
    def timed(self) -> bool:
        """Whether the artifact has to be timed to judge it."""
        return self.latency_ms is not None or self.memory_bytes is not None

    def applied(self, tolerance: Tolerance) -> Tolerance:
        """The target's tolerance with these limits in it."""
        return replace(tolerance, **self.tolerance)


def parse(given: Mapping[str, Option], *, where: str = "--limit") -> Limits:
    """The limits that ``given`` spells.

    Raises :class:`UnknownOptionError` with the nearest for a name that is no limit, :class:`ConfigError` for a value.
    """
    tolerance: dict[str, float] = {}
    own: dict[str, float] = {}
    for name, value in given.items():
        if name not in _NAMES:
            raise UnknownOptionError("limit", name, _NAMES, where=where)
        kept, read = _NAMES[name]
        (own if kept in _OWN else tolerance)[kept] = read(value, f"{where} {name}")
    size, memory = (int(own[f]) if f in own else None for f in ("size_bytes", "memory_bytes"))
    return Limits(tolerance=tolerance, size_bytes=size, memory_bytes=memory, latency_ms=own.get("latency_ms"))


def _decibels(value: Option, what: str) -> float:
    text = str(value).strip()
    number = _float(text[:-2] if text.lower().endswith("db") else text, what, "decibels, like 30 or 30dB")
    if not -200 <= number <= 200:
        raise ConfigError(f"{what}: {text} dB", hint="an SNR is between -200 and 200 dB")
    return number


def _share(value: Option, what: str) -> float:
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    return parse_fraction(str(value), what=what)


def _amount(value: Option, what: str) -> float:
    """A loss in the metric's own unit; points of a percentage may be written as such."""
    text = str(value).strip()
    if text.endswith(("%", "pt", "pts")):
        return parse_fraction(text, what=what)
    number = _float(text, what, "a number from 0 on, like 0.01 or 1%")
    if number < 0:
        raise ConfigError(f"{what}: {text} is below 0", hint="a number from 0 on, like 0.01")
    return number


def _float(text: str, what: str, like: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise ConfigError(f"{what}: {text!r} is no number", hint=f"write {like}") from error
    if not math.isfinite(number):
        raise ConfigError(f"{what}: {text} is no limit", hint=f"write {like}")
    return number


def _bytes(value: Option, what: str) -> float:
    return round(quantity(str(value), BYTES, what))


def _milliseconds(value: Option, what: str) -> float:
    return quantity(str(value), {"": 1.0, **MILLISECONDS}, what)


_OWN = ("size_bytes", "latency_ms", "memory_bytes")
_NAMES: Mapping[str, tuple[str, Callable[[Option, str], float]]] = {
    "snr": ("snr_db", _decibels),
    "slices": ("explained", _share),
    "samples": ("sample_snr_db", _decibels),
    "integers": ("integer_agreement", _share),
    "boxes": ("boxes", _share),
    "masks": ("masks", _share),
    "rollout": ("rollout", _share),
    "decisions": ("decisions", _share),
    "relative-error": ("relative_error", _amount),
    "agreement": ("top1_agreement", _share),
    "metric-drop": ("metric_drop", _amount),
    "placement": ("placement", _share),
    "integer-weights": ("integer_weights", _share),
    "coverage": ("coverage", _share),
    "perplexity": ("perplexity", _amount),
    "token-agreement": ("token_agreement", _share),
    "greedy": ("greedy", _share),
    "size": ("size_bytes", _bytes),
    "latency": ("latency_ms", _milliseconds),
    "memory": ("memory_bytes", _bytes),
}
NAMES = tuple(_NAMES)
"""What can be set."""


def of_row(tolerance: Tolerance) -> dict[str, float]:
    """The limits that a target's row sets, by the names of ``--limit``."""
    rows = {name: getattr(tolerance, field, None) for name, (field, _) in _NAMES.items() if field not in _OWN}
    return {name: value for name, value in rows.items() if value is not None}
