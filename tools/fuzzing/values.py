"""Numbers and texts on which readers go wrong."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable

NUMBERS = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    32767,
    65536,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    -(2**63),
    2**64,
)
FLOATS = (0.0, -0.0, 1e-300, 1e300, -1e300, 0.5, math.nan, math.inf, -math.inf)
WORDS = (
    "", " ", "\0", "a\0b", "\n", "\x1b[2J", "\u202e", "\ud800", "é", "💥", "%s%n", "{0}", "__class__", "nan", "-1",
    "1e999", "0x10", "true", "null", ".", "..", "/", "\\", "C:\\x", "a/../b", "CON", "con.", "-o", "--help", "a:b",
    "file:///etc/passwd", "x" * 300, "x" * 5000, "a/" * 3000, "[" * 2000, "9" * 5000,
)  # fmt: skip


def paths() -> tuple[str, ...]:
    """Where a hostile file would like to read and write: the sandbox keeps a file there that nobody may touch."""
    root = os.environ.get("FUZZ_ROOT", "/nonexistent")
    return (
        "../canary", "../../canary", "../outside/new", f"{root}/canary", f"{root}/outside/new", f"file://{root}/canary",
        "link", "folder", "fifo", "evil.py:model", "evil:model", "evil.py", "a/b/c",
    )  # fmt: skip


def number(rng: random.Random) -> int:
    """A whole number at an edge, or near one."""
    return rng.choice(NUMBERS) + rng.choice((0, 0, 0, 1, -1))


def text(rng: random.Random) -> str:
    """A word, or a path."""
    return rng.choice(paths()) if rng.random() < 0.4 else rng.choice(WORDS)


def changed_number(rng: random.Random, value: float) -> float:
    """A neighbour of a number, or one at an edge."""
    near: tuple[Callable[[], float], ...] = (
        lambda: value + rng.choice((-1, 1)),
        lambda: -value,
        lambda: value * rng.choice((2, 10, 1000)),
        lambda: number(rng),
        lambda: rng.choice(FLOATS),
    )
    return rng.choice(near)()
