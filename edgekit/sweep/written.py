"""A sweep for people and for other programs: ``results.json``, one page, Markdown, JUnit's XML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import msgspec

from edgekit.artifact.summary import printable, size
from edgekit.core import files
from edgekit.core.structure import to_builtins
from edgekit.core.versions import EDGEKIT
from edgekit.report import write_sweep
from edgekit.report.page import CellRow
from edgekit.report.written import cell as escaped
from edgekit.sweep.journal import CELLS, CellResult, Verdict

RESULTS, PAGE = "results.json", "report.html"
_SIGNS = {
    Verdict.PASSED: "✅",
    Verdict.UNPROVEN: "❔",
    Verdict.NOT_RUN: "–",
    Verdict.FAILED: "❌",
    Verdict.ERROR: "❌",
}
COLUMNS = (
    "cell",
    "source",
    "recipe",
    "target",
    "device",
    "verdict",
    "size",
    "metric",
    "p50 ms",
    "seconds",
    "why",
)
"""The table of a sweep."""


def row(result: CellResult) -> tuple[str, ...]:
    """A result as :data:`COLUMNS`."""
    return (
        result.cell,
        result.source,
        result.found or result.recipe or "–",
        result.target,
        result.device or "here",
        str(result.verdict),
        "–" if result.size is None else size(result.size),
        "–" if result.metric is None else f"{result.metric:.4f}",
        "–" if result.p50_ms is None else f"{result.p50_ms:.3g}",
        f"{result.seconds:.1f}",
        why(result),
    )


def why(result: CellResult) -> str:
    """Why a cell failed; of an artifact, what its verdict is qualified by: ``speed``, ``on 8 random inputs``."""
    failure = result.failure
    if failure is not None:
        return f"{failure.type} ({failure.exit_code}): {failure.message}"
    return result.said.removeprefix(str(result.verdict)).lstrip(":; ")


def document(results: Sequence[CellResult], cells: int) -> dict[str, object]:
    """All results but for what the journal alone needs."""
    rows = [{k: v for k, v in to_builtins(r).items() if k != "reads"} for r in results]
    return {"edgekit": EDGEKIT, "cells": cells, "finished": len(results), "results": rows}


def write_json(results: Sequence[CellResult], out: Path, cells: int) -> None:
    """``results.json``."""
    text = msgspec.json.format(msgspec.json.encode(document(results, cells)), indent=2)
    files.write(out / RESULTS, text + b"\n")


def write_page(results: Sequence[CellResult], out: Path, cells: int) -> None:
    """One page: the table of all cells, then everything about each artifact.

    Raises :class:`MissingExtraError` where the extra ``report`` is not installed.
    """
    folders = [out / CELLS / r.cell for r in results if r.digest]
    verdicts = Counter(str(r.verdict) for r in results)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    missing = f"; {cells - len(results)} were not reached" if cells > len(results) else ""
    rows = [CellRow(cells=row(r), good=r.failure is None, artifact=bool(r.digest)) for r in results]
    write_sweep(
        folders,
        out / PAGE,
        title=f"Sweep of {cells} cells: {counts}{missing}",
        columns=COLUMNS,
        rows=rows,
    )


def markdown(results: Sequence[CellResult]) -> str:
    """A table, those that failed first."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for result in sorted(results, key=lambda r: r.failure is None):
        lines.append(f"| {_SIGNS[result.verdict]} | " + " | ".join(map(escaped, row(result))) + " |")
    return "\n".join(lines) + "\n"


def junit(results: Sequence[CellResult]) -> bytes:
    """A test suite: a case a cell; an error where nothing was built, a failure where a gate refused it."""
    counts = {
        "tests": len(results),
        "failures": sum(r.verdict is Verdict.FAILED for r in results),
        "errors": sum(r.verdict is Verdict.ERROR for r in results),
        "skipped": sum(r.verdict is Verdict.NOT_RUN for r in results),
    }
    suite = ElementTree.Element(
        "testsuite", {"name": "edgekit sweep", **{k: str(v) for k, v in counts.items()}}
    )
    for result in results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {
                "classname": printable(f"{result.source} {result.recipe}".strip()),
                "name": printable(result.cell),
                "time": f"{result.seconds:.3f}",
            },
        )
        if result.failure is not None:
            tag = {Verdict.ERROR: "error", Verdict.NOT_RUN: "skipped"}.get(result.verdict, "failure")
            attributes = {"type": result.failure.type, "message": printable(result.failure.message)}
            ElementTree.SubElement(case, tag, attributes)
    ElementTree.indent(suite)
    text: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"
