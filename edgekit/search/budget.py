"""What a compressed model may cost: ``drop<=1pt,ekz<=300KB,file<=1MB,latency<=5ms@pi5``.

``drop<=1pt@95%`` says how sure it has to be: the bound of the drop's interval at that confidence is what is compared.
A model has three sizes: ``file``, what a device maps; ``download``, what a store sends of it (deflate); ``ekz``,
coded by ``edgekit pack``, which ``size`` is another word for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.core.declared import parse_fraction
from edgekit.core.quantities import BYTES, MILLISECONDS, quantity
from edgekit.errors import ConfigError

CONFIDENCE = 0.9
"""How sure it is by default that the drop holds on other data of the same kind."""

_HINT = (
    "for example --budget 'drop<=1pt,ekz<=300KB,latency<=5ms@pi5'; also file<= and download<=; each part may be left "
    "out, but not all"
)
SIZES = ("ekz", "file", "download")
"""The sizes of a model, the one that is made smallest by default first."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of a model's files: coded by ``edgekit pack`` (``ekz``), as they lie on the device (``file``), as a store
    sends them (``download``: deflate, as in an APK or IPA)."""

    ekz: int
    file: int
    download: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits; ``None`` is no limit. ``drop`` is of the metric (0 to 1) and held with ``confidence`` (0.5: as
    measured, without a margin for chance), ``ekz``, ``file`` and ``download`` bytes (:class:`Sizes`), ``latency_ms``
    the median on ``device``."""

    drop: float | None = None
    confidence: float = CONFIDENCE
    ekz: int | None = None
    file: int | None = None
    download: int | None = None
    latency_ms: float | None = None
    device: str = "local"

    @property
    def counted(self) -> str:
        """The size that is made as small as the drop allows: ``ekz``, unless other sizes alone are limited."""
        limited = [name for name in SIZES if getattr(self, name) is not None]
        return limited[0] if limited else SIZES[0]

    def smallest(self, sizes: Sizes) -> int:
        """The size that counts."""
        found: int = getattr(sizes, self.counted)
        return found

    def excess(self, drop: float, sizes: Sizes, latency_ms: float | None) -> tuple[float, ...]:
        """By how much each limit is passed, relative to it; 0 or less is within."""
        found = []
        if self.drop is not None:
            found.append((drop - self.drop) / max(self.drop, 1e-3))
        for name in SIZES:
            limit = getattr(self, name)
            if limit is not None:
                found.append((getattr(sizes, name) - limit) / limit)
        if self.latency_ms is not None and latency_ms is not None:
            found.append((latency_ms - self.latency_ms) / self.latency_ms)
        return tuple(found)

    def holds(self, drop: float, sizes: Sizes, latency_ms: float | None) -> bool:
        """Whether all limits are kept. Metrics are counted in samples: rounding of the last bit is forgiven."""
        return all(x <= 1e-9 for x in self.excess(drop, sizes, latency_ms))

    def __str__(self) -> str:
        sure = "" if self.confidence == CONFIDENCE else f"@{100 * self.confidence:g}%"
        parts = [] if self.drop is None else [f"drop<={100 * self.drop:g}pt{sure}"]
        limits = {name: getattr(self, name) for name in SIZES}
        parts += [f"{name}<={limit}B" for name, limit in limits.items() if limit is not None]
        parts += [] if self.latency_ms is None else [f"latency<={self.latency_ms:g}ms@{self.device}"]
        return ",".join(parts)


def parse(text: str) -> Budget:
    """The budget that ``text`` spells. Raises ``ConfigError``."""
    given: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = re.fullmatch(r"(drop|size|ekz|file|download|latency)\s*<=?\s*(.+)", part)
        if match is None:
            raise ConfigError(f"{part!r} is no limit", hint=_HINT)
        word = "ekz" if match[1] == "size" else match[1]
        if word in given:
            raise ConfigError(f"two limits for {word}", hint=_HINT)
        given[word] = match[2].strip()
    if not given:
        raise ConfigError("the budget is empty", hint=_HINT)
    latency, _, device = given.get("latency", "").partition("@")
    drop, _, sure = given.get("drop", "").partition("@")
    return Budget(
        drop=parse_fraction(drop, what="drop") if "drop" in given else None,
        confidence=_confidence(sure) if sure else CONFIDENCE,
        **{name: round(quantity(given[name], BYTES, name)) for name in SIZES if name in given},
        latency_ms=quantity(latency, MILLISECONDS, "latency") if latency else None,
        device=device.strip() or "local",
    )


def _confidence(text: str) -> float:
    found = parse_fraction(text, what="confidence")
    if not 0.5 <= found < 1:
        raise ConfigError(
            f"a confidence of {text.strip()}", hint="50% (no margin) to below 100%, for example drop<=1pt@95%"
        )
    return found


def parse_seconds(text: str) -> float:
    """``"90"``, ``"90s"``, ``"10m"``, ``"2h"`` in seconds. Raises ``ConfigError``."""
    return quantity(text, {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}, "time")
