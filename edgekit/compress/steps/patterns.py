"""Options that name layers, ``"conv1=16,fc*=6"``: patterns as in a shell, of which the first that fits counts."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from edgekit.errors import ConfigError

T = TypeVar("T")


def split(text: str) -> list[str]:
    """``"head*, stem"`` to patterns."""
    return [p.strip() for p in text.split(",") if p.strip()]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns fits."""
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)


def check(patterns: Iterable[str], layers: Sequence[str], purpose: str) -> None:
    """Raise ``ConfigError`` for a pattern that fits none of the ``layers`` that can be … (``purpose``)."""
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            raise ConfigError(
                f"no layer is called {pattern!r}",
                hint=f"layers that can be {purpose}: {', '.join(layers) or 'none'}",
            )


def rules(text: str, value: Callable[[str], T], *, what: str, hint: str) -> list[tuple[str, T]]:
    """``"fc1=0.97,head*=0.5"`` to pairs of a pattern and its value.

    ``value`` reads one and raises ``ValueError`` for what it is not; that becomes a ``ConfigError``, which says
    ``what`` is missing.
    """
    pairs = []
    for item in filter(None, text.split(",")):
        pattern, _, rest = item.partition("=")
        try:
            if not pattern:
                raise ValueError("no name")
            pairs.append((pattern, value(rest)))
        except ValueError as error:
            raise ConfigError(f"{item!r} gives no layer {what}", hint=hint) from error
    return pairs


def first(pairs: Iterable[tuple[str, T]], name: str, default: T) -> T:
    """The value of the first pattern that fits ``name``."""
    return next((value for pattern, value in pairs if fnmatch.fnmatchcase(name, pattern)), default)
