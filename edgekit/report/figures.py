"""The report's figures, as SVG: drawn by matplotlib, in the colours of the page's own theme."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.artifact.summary import printable
from edgekit.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_INK = "#010203"
"""Drawn in this, shown in the page's colour of text, which is another in the dark."""
_COLOURS = ("#3b7dd8", "#d9822b", "#2ca58d", "#b04fbf", "#c94c4c", "#7a8b2f", "#5aa9e6", "#8c6d5a")
_MOST_LABELS = 40


@dataclass(frozen=True, kw_only=True)
class Point:
    """An artifact in the plane of what it costs: ``size`` in bytes, ``latency`` in ms, ``score`` of any kind (higher is
    better), ``good``: no gate refused it."""

    name: str
    size: int
    latency: float | None
    score: float | None
    good: bool


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The times of one artifact on one device, in ms, all processes together."""

    name: str
    times: Sequence[float]


def pareto(points: Sequence[Point], score: str) -> str:
    """Size against latency, or against ``score`` where nothing was timed; ``""`` where there is nothing to draw.

    What no other artifact beats in all that is known is joined by a line.
    """
    timed = [p for p in points if p.latency]
    if len(timed) < 2:
        timed = []
    rows = [(p, p.latency) for p in timed] if timed else [(p, p.score) for p in points]
    known = [(p, y) for p, y in rows if y is not None and p.size > 0]
    if len(known) < 2:
        return ""
    figure, axes = _axes()
    smallest, largest = min(p.size for p, _ in known), max(p.size for p, _ in known)
    unit, bytes_ = ("MB", 1e6) if largest >= 1e6 else ("kB", 1e3)
    for index, (point, y) in enumerate(known):
        colour = _COLOURS[index % len(_COLOURS)]
        marker = "o" if point.good else "X"
        axes.scatter([point.size / bytes_], [y], s=60, color=colour, marker=marker, zorder=3)
        if len(known) <= _MOST_LABELS:
            right = (
                point.size**2 > smallest * largest
            )  # in the right half, where a label would leave the figure
            axes.annotate(
                _plain(point.name),
                (point.size / bytes_, y),
                xytext=(-7 if right else 7, 4),
                ha="right" if right else "left",
                textcoords="offset points",
                fontsize=9,
                color=_INK,
            )
    front = sorted((p.size / bytes_, y) for p, y in known if p.good and not _beaten(p, points))
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=_INK, alpha=0.35, linewidth=1, zorder=1)
    axes.set_xlabel(f"size, {unit}")
    axes.set_ylabel("median latency, ms" if timed else score)
    _logarithmic(axes.set_xscale, axes.xaxis)
    if timed:
        _logarithmic(axes.set_yscale, axes.yaxis)
    return _svg(
        figure, "Size and latency of each artifact" if timed else f"Size and {score} of each artifact"
    )


def _beaten(point: Point, points: Sequence[Point]) -> bool:
    return any(
        o is not point
        and o.good
        and o.size <= point.size
        and (o.latency or math.inf) <= (point.latency or math.inf)
        and (o.score or -math.inf) >= (point.score or -math.inf)
        and (o.size, o.latency, o.score) != (point.size, point.latency, point.score)
        for o in points
    )


def latencies(spreads: Sequence[Spread]) -> str:
    """For each artifact the distribution of its times: which share of the calls took no longer."""
    shown = [s for s in spreads if len(s.times) > 1]
    if not shown:
        return ""
    figure, axes = _axes()
    for index, spread in enumerate(shown[:_MOST_LABELS]):
        ordered = sorted(spread.times)
        step = max(1, len(ordered) // 400)
        kept = [*ordered[::step], ordered[-1]]
        shares = [min(1.0, (i * step + 1) / len(ordered)) for i in range(len(kept) - 1)] + [1.0]
        colour = _COLOURS[index % len(_COLOURS)]
        axes.step(kept, shares, where="post", color=colour, label=_plain(spread.name), linewidth=1.6)
    _logarithmic(axes.set_xscale, axes.xaxis)
    axes.set_xlabel("time of one call, ms")
    axes.set_ylabel("share of calls that took no longer")
    axes.legend(loc="lower right", fontsize=9, frameon=False, labelcolor=_INK)
    return _svg(figure, "Distribution of the times of a call")


def bars(rows: Sequence[tuple[str, float]], label: str, title: str) -> str:
    """Horizontal bars, the largest first as they are given."""
    if not rows:
        return ""
    figure, axes = _axes(height=0.8 + 0.28 * len(rows))
    names, values = zip(*reversed(rows), strict=True)
    axes.barh(range(len(rows)), values, color=_COLOURS[0], height=0.7)
    axes.set_yticks(range(len(rows)), [_plain(n) for n in names], fontsize=9)
    axes.set_xlabel(label)
    return _svg(figure, title)


def _axes(height: float = 4.2) -> tuple[Figure, Axes]:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "matplotlib, which draws the report", requirement="edgekit-deploy[report]"
        ) from error
    ink = rc_context(
        {
            "text.color": _INK,
            "axes.labelcolor": _INK,
            "axes.edgecolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    )
    with ink:
        figure = Figure(figsize=(8.2, height), layout="constrained")
        axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, alpha=0.15, color=_INK)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    return figure, axes


def _logarithmic(set_scale: Callable[[str], object], axis: Axis) -> None:
    """A logarithmic axis with plain numbers, where matplotlib would write powers."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    set_scale("log")
    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(minor_thresholds=(2, 0.5)))


_ID = re.compile(r'\b(id="|xlink:href="#|url\(#|clip-path="url\(#)([A-Za-z0-9_.-]+)')


def _svg(figure: Figure, title: str) -> str:
    """The figure as an element of a page: its text in the page's font and colour, its ids its own."""
    from matplotlib import rc_context

    own = re.sub(r"\W+", "-", title.lower())
    style = rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgekit", "font.family": "sans-serif"})
    with style, warnings.catch_warnings():
        file = io.StringIO()
        warnings.simplefilter("ignore")  # of figures without room for their labels: whoever named things so
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font(-family)?: [^;\"]*sans-serif[^;\"]*", _own_font, text)
    text = _ID.sub(lambda m: f"{m[1]}{own}-{m[2]}", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _plain(name: str) -> str:
    """A name as it is, and no formula: whoever wrote it."""
    return printable(name)[:60].replace("$", r"\$")


def _own_font(match: re.Match[str]) -> str:
    size = re.search(r"(\d+(\.\d+)?)px", match[0])
    return f"font-size: {size[1] if size else 10}px"
