"""A comparison for other programs: Markdown for a pull request, JUnit's XML for a build server."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from edgekit.artifact.summary import printable
from edgekit.report.comparison import Change, Figure

_SIGNS = {
    Change.BETTER: "✅",
    Change.WORSE: "❌",
    Change.SAME: "·",
    Change.UNSURE: "❔",
    Change.MISSING: "–",
}


def markdown(figures: Sequence[Figure], limit: float) -> str:
    """A table, those first that regressed by more than ``limit``."""
    lines = ["| | target | figure | old | new | |", "|---|---|---|---|---|---|"]
    for f in sorted(figures, key=lambda f: not f.regressed(limit)):
        cells = (f.target, f.name, f.old, f.new, f"{f.change}{': ' + f.why if f.why else ''}")
        lines.append(f"| {_SIGNS[f.change]} | " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """A text as a cell of a Markdown table, whatever it quotes."""
    escaped = printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return escaped.replace("`", "\\`").replace("[", "\\[").replace("@", "&#64;")


def junit(figures: Sequence[Figure], limit: float) -> bytes:
    """A test suite: a case a figure of a target, failed where it regressed, skipped where nobody can tell."""
    failed = [f for f in figures if f.regressed(limit)]
    skipped = [f for f in figures if f.change in (Change.UNSURE, Change.MISSING)]
    counts = {"tests": len(figures), "failures": len(failed), "skipped": len(skipped)}
    suite = ElementTree.Element(
        "testsuite", {"name": "edgekit compare", **{k: str(v) for k, v in counts.items()}}
    )
    for figure in figures:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": printable(figure.target), "name": printable(figure.name)}
        )
        said = printable(
            f"{figure.old} → {figure.new}: {figure.change}{', ' + figure.why if figure.why else ''}"
        )
        if figure in failed:
            ElementTree.SubElement(case, "failure", {"message": said})
        elif figure in skipped:
            ElementTree.SubElement(case, "skipped", {"message": said})
    ElementTree.indent(suite)
    text: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"
