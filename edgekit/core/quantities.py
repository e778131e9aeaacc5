"""Numbers with units as people write them: ``300KB``, ``1.5MiB``, ``5ms``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgekit.errors import ConfigError

BYTES: Mapping[str, float] = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
_MOST = 2.0**50
SECONDS: Mapping[str, float] = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
MILLISECONDS: Mapping[str, float] = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def quantity(text: str, units: Mapping[str, float], what: str) -> float:
    """``"5ms"`` as 5.0 with ``units`` that say what each is worth. Raises :class:`ConfigError`."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)", text.strip())
    unit = match[2].lower() if match else "?"
    if match is None or unit not in units or float(match[1]) <= 0:
        raise ConfigError(
            f"{what}: {text[:40]!r} is no quantity",
            hint=f"a number above 0 with one of: {', '.join(filter(None, units))}",
        )
    value = float(match[1]) * units[unit]
    if value > _MOST:
        raise ConfigError(
            f"{what}: {text[:40]} is more than any that is meant", hint="write a smaller number"
        )
    return value
