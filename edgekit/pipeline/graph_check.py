"""Of an artifact that cannot be run here: the ONNX graph that its engine is made of, in ONNX Runtime.

What was rewritten for the target, and a graph of other numbers than the source's, is found without the target's
hardware. What the engine then makes of the graph is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact.parity import compare
from edgekit.artifact.task import Task
from edgekit.core.files import temporary
from edgekit.devices.engines import builder_of
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.errors import (
    BackendError,
    DataError,
    MemoryLimitError,
    MissingExtraError,
    NotRunnableError,
    RuntimeCrashError,
)
from edgekit.graph import io
from edgekit.graph.widen import without_bfloat16
from edgekit.types import Parity, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edgekit.types import Array

    Sample = Mapping[str, Array]

RUNTIME = "onnxruntime"
_AS_WRITTEN = {"graph_optimization": "disabled"}
"""Q/DQ is computed as it says: fused, sums of INT8 saturate on some processors, and float8 has no kernels."""


@dataclass(frozen=True, kw_only=True)
class GraphCheck:
    """How the graph compares with the source, or why nobody can tell here."""

    parity: Parity | None = None
    why_not: str = ""
    wrong: str = ""
    """What its outputs are that no figure tells: of another shape, or missing."""
    widened: bool = False
    """Whether float32 was computed in place of bfloat16, which ONNX Runtime lacks on processors."""

    @property
    def words(self) -> str:
        """For the line that says what was done in place of a run."""
        if self.wrong:
            return f"its graph in ONNX Runtime is another: {self.wrong}"
        if self.parity is None:
            return f"its graph was not compared in ONNX Runtime ({self.why_not})"
        how = " (float32 for bfloat16)" if self.widened else ""
        return f"its graph in ONNX Runtime{how} is {self.parity.snr_db:.1f} dB from the source"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the graph is run on, and what the source gives for it; ``exact`` gives its float64 answers, or nothing."""

    inputs: Iterable[Sample]
    expected: Callable[[], Iterator[Sample]]
    exact: Callable[[], Iterable[Sample]]
    count: int
    data: str
    task: str


def check_graph(
    target: Target, files: Runnable, rows: Rows, *, near: Callable[[Parity], bool]
) -> GraphCheck | None:
    """``None`` for a target whose artifacts are not made of such a graph. ``near``: whether the source's own rounding
    may be what is left."""
    builder = builder_of(target.backend)
    if builder is None:
        return None
    graph = files.main.with_name(builder.GRAPH)
    if not graph.is_file():
        return None
    try:
        return _compared(graph, files, rows, near)
    except (
        BackendError,
        DataError,
        MemoryLimitError,
        MissingExtraError,
        NotRunnableError,
        RuntimeCrashError,
    ) as error:
        return GraphCheck(why_not=" ".join(error.message.split())[:200])


def _compared(graph: Path, files: Runnable, rows: Rows, near: Callable[[Parity], bool]) -> GraphCheck:
    with temporary("graph") as folder:
        main = without_bfloat16(graph, Path(folder) / graph.name)
        runnable = replace(
            files,
            backend=RUNTIME,
            main=main,
            companions=io.external_files(main),
            options=_AS_WRITTEN,
            trusted=False,
        )
        with run_artifact(runnable, rows.inputs) as result:

            def compared(exact: Iterable[Sample]) -> Parity:
                return compare(
                    rows.expected(),
                    result.outputs,
                    task=Task(name=rows.task),
                    exact=islice(chain(exact, repeat({})), rows.count),
                )

            try:
                parity = compared(())
            except BackendError as error:  # it ran, and gave what cannot be compared with the source's
                return GraphCheck(wrong=" ".join(error.message.split())[:200])
            parity = compared(rows.exact()) if near(parity) else parity
            return GraphCheck(parity=replace(parity, data=rows.data), widened=main != graph)
