"""A plot as SVG: accuracy over bytes and over time, each with its Pareto front. No library needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Protocol

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 520, 420, 56, 34, 16, 46
MARK = "#1f5fa8"
Point = tuple[float, float]


class Row(Protocol):
    """What is drawn."""

    name: str
    accuracy: float
    packed: int
    p50_ms: float


def svg(rows: Sequence[Row]) -> str:
    """Two panels side by side: coded megabytes and milliseconds below, percent at the side."""
    panels = (
        ("MB, coded without loss", [(r.packed / 1e6, r.accuracy) for r in rows]),
        ("ms a sentence, median", [(r.p50_ms, r.accuracy) for r in rows]),
    )
    names = [r.name for r in rows]
    drawn = "".join(
        f'<g transform="translate({i * WIDTH} 0)">{_panel(title, points, names)}</g>\n'
        for i, (title, points) in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n'
        f"{drawn}</svg>\n"
    )


def front(points: Sequence[Point]) -> list[int]:
    """Numbers of the points than which none is as cheap and better, or cheaper and as good; by cost."""
    best, found = -math.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            found.append(i)
    return found


def _panel(title: str, points: Sequence[Point], names: Sequence[str]) -> str:
    costs, accuracies = [p[0] for p in points], [p[1] for p in points]
    low, high = min(costs) / 1.25, max(costs) * 1.6
    bottom, top = math.floor(min(accuracies) - 1), math.ceil(max(accuracies) + 1)

    def place(cost: float, accuracy: float) -> Point:
        x = LEFT + (WIDTH - LEFT - RIGHT) * math.log(cost / low) / math.log(high / low)
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (accuracy - bottom) / (top - bottom)

    parts = [f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(title)}</text>']
    parts.append(f'<text x="{LEFT}" y="{TOP - 14}">accuracy on the test set, %</text>')
    parts += [_line(place(low, y), place(high, y), str(y), "end") for y in _ticks(bottom, top)]
    parts += [_line(place(x, bottom), place(x, top), f"{x:g}", "middle") for x in _decades(low, high)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*points[i]) for i in front(points)))
    parts.append(f'<polyline points="{path}" fill="none" stroke="{MARK}" stroke-dasharray="4 3"/>')
    taken: list[Point] = []
    for name, point in sorted(zip(names, points, strict=True), key=lambda pair: -pair[1][1]):
        x, y = place(*point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{MARK}"/>')
        parts.append(_label(name, x, y, taken))
    return "".join(parts)


def _label(name: str, x: float, y: float, taken: list[Point]) -> str:
    """Beside its point, or a line lower where another label is."""
    left = x > WIDTH * 0.62
    height = y + 4
    while any(abs(height - other) < 12 and abs(x - at) < 170 for at, other in taken):
        height += 12
    taken.append((x, height))
    shift, anchor = (-8, "end") if left else (8, "start")
    return (
        f'<text x="{x + shift:.1f}" y="{height:.1f}" text-anchor="{anchor}" stroke="white" stroke-width="3" '
        f'paint-order="stroke">{escape(name)}</text>'
    )


def _line(start: Point, end: Point, text: str, anchor: str) -> str:
    """One line of the grid, and what it stands for at its start."""
    (x1, y1), (x2, y2) = start, end
    dx, dy = (-6, 4) if anchor == "end" else (0, 15)
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'
        f'<text x="{x1 + dx:.1f}" y="{y1 + dy:.1f}" text-anchor="{anchor}">{text}</text>'
    )


def _ticks(low: int, high: int) -> list[int]:
    step = next(s for s in (1, 2, 5, 10, 20, 50) if (high - low) / s <= 8)
    return [v for v in range(low, high + 1) if v % step == 0]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
