"""What a search may take: time, trials, epochs, steps, calibration samples. Read without PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edgekit.compress.registry import registry
from edgekit.core.config import Options
from edgekit.errors import UnknownNameError
from edgekit.search.budget import parse_seconds

CALIBRATION_SAMPLES = 128
"""Fewer than a build's default: the search quantizes often."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long to search: seconds, and number of candidates. Those in the journal count, with the time that they
    took. ``epochs`` is how long one candidate may train; ``None`` lets the time decide. ``steps`` names the steps that
    may be chosen; empty for all. ``workers``: processes that measure candidates; the outcome does not depend on it but
    where the time does."""

    seconds: float = math.inf
    trials: int = 1000
    seed: int = 0
    epochs: float | None = None
    steps: tuple[str, ...] = ()
    workers: int = 1


def parse_limits(
    seconds: str | None,
    trials: int | None,
    seed: int | None,
    epochs: float | None = None,
    workers: int | None = None,
) -> Limits:
    """``--time``, ``--trials``, ``--seed``, ``--epochs`` and ``--workers``: ten minutes where neither time nor trials
    are given."""
    timed = seconds or ("10m" if trials is None else "")
    return Limits(
        seconds=parse_seconds(timed) if timed else math.inf,
        trials=trials or 1000,
        seed=0 if seed is None else seed,
        epochs=epochs,
        workers=workers or 1,
    )


def step_names(text: str | None) -> tuple[str, ...]:
    """``--steps``. Raises ``UnknownNameError``."""
    known = registry()
    names = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    for name in names:
        if name not in known:
            raise UnknownNameError("step", name, known)
    return names


def search_options(options: Options) -> Options:
    """The command's options, with fewer calibration samples."""
    return replace(options, samples=min(options.samples, CALIBRATION_SAMPLES))
