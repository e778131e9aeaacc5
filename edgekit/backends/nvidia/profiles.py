"""The options ``axes`` and ``compute_capabilities``: for which shapes, and for which GPUs, an engine is built."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from edgekit.errors import ConfigError, UnknownNameError
from edgekit.types import Option, TensorSpec

Profiles: TypeAlias = Mapping[str, tuple[tuple[int, ...], ...]]
"""Smallest, usual and largest shape by the input's name."""

LARGEST = (1 << 31) - 1
"""Of a dimension, in TensorRT."""

BATCH = (1, 1, 8)
OTHER = (1, 128, 512)
"""Smallest, usual and largest size of a dynamic dimension that no option names: the first dimension, the others."""


def profiles(inputs: Sequence[TensorSpec], text: str) -> Profiles:
    """Smallest, usual and largest shape of every input with dynamic dimensions.

    ``text`` is the option ``axes``: ``"batch=1:1:8,sequence=1:128:512"``. Raises for a dimension that the
    model does not have and for sizes out of order.
    """
    sizes = axis_sizes(text)
    names = {d for spec in inputs for d in spec.shape if isinstance(d, str)}
    for name in sizes:
        if name not in names:
            raise UnknownNameError("dynamic dimension", name, names, where="--set axes")
    shapes = {}
    for spec in inputs:
        if not spec.is_static:
            triples = [
                (d, d, d) if isinstance(d, int) else sizes.get(d, BATCH if i == 0 else OTHER)
                for i, d in enumerate(spec.shape)
            ]
            shapes[spec.name] = tuple(zip(*triples, strict=True))
    return shapes


def axis_sizes(text: str) -> dict[str, tuple[int, int, int]]:
    """Smallest, usual and largest size by the dimension's name. Raises :class:`ConfigError`."""
    sizes: dict[str, tuple[int, int, int]] = {}
    for part in filter(str.strip, text.split(",")):
        name, triple = _axis(part)
        if name in sizes:
            raise ConfigError(f"--set axes: {name} is there twice", hint="name each dimension once")
        sizes[name] = triple
    return sizes


def _axis(part: str) -> tuple[str, tuple[int, int, int]]:
    name, _, numbers = part.strip().partition("=")
    try:
        low, usual, high = (int(n) for n in numbers.split(":"))
    except ValueError as e:
        raise ConfigError(f"--set axes: {part.strip()!r}", hint="write name=smallest:usual:largest") from e
    if not 0 < low <= usual <= high <= LARGEST:
        raise ConfigError(
            f"--set axes: {part.strip()[:60]!r} is out of order",
            hint=f"smallest ≤ usual ≤ largest, from 1 to {LARGEST:,}",
        )
    if not name.strip():
        raise ConfigError(
            f"--set axes: {part.strip()!r} names no dimension", hint="write name=smallest:usual:largest"
        )
    return name.strip(), (low, usual, high)


def compute_capabilities(text: Option) -> tuple[str, ...]:
    """``"SM86,8.9"`` → ``("SM86", "SM89")``."""
    names = tuple(
        p.strip().upper().removeprefix("SM").replace(".", "") for p in str(text).split(",") if p.strip()
    )
    for name in names:
        if not re.fullmatch(r"[1-9]\d{1,2}", name, re.ASCII):
            raise ConfigError(f"compute capability {name[:20]!r}", hint="for example SM86,SM89 or 8.6,8.9")
    return tuple(dict.fromkeys(f"SM{name}" for name in names))
