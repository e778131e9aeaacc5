"""Two models compared layer by layer, with what to build differently."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgekit.artifact import tables
from edgekit.artifact.summary import Table
from edgekit.core.contained import step
from edgekit.diff import Walk, walk
from edgekit.diff.record import keep
from edgekit.diff.report import LayerDiff, StageDiff
from edgekit.diff.resolve import Chain, resolve
from edgekit.diff.shipped import Shipped, as_it_ships
from edgekit.diff.suggest import Suggestion, suggest
from edgekit.load.data import DataSpec
from edgekit.pipeline.stages import BuildContext


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Where two models begin to differ, stage by stage (``walk``), and what could help, the best first. ``shipped``:
    the artifact as an app gets it, where there is one."""

    walk: Walk
    suggestions: tuple[Suggestion, ...]
    chain: Chain
    shipped: Shipped | None = None

    @property
    def starts_at(self) -> LayerDiff | None:
        """The layer to look at first; ``None`` where rounding explains every difference."""
        return self.walk.starts_at

    @property
    def output_db(self) -> float:
        """Signal to noise ratio of the last form's outputs against the first one's, in dB."""
        return self.walk.output_db

    def __repr__(self) -> str:
        start = self.starts_at
        where = f"starts at {start.place!r}" if start is not None else "no layer is wrong"
        return f"Diff({where}, outputs {self.output_db:.1f} dB, {self.walk.samples} samples)"

    def _repr_html_(self) -> str:
        stages = {f"{s.before} → {s.after}: {s.output_db:.1f} dB": _table(s) for s in self.walk.stages}
        ideas = (f"{idea.text}: {idea.why}" if idea.text else idea.why for idea in self.suggestions)
        return tables.titled(repr(self), stages) + tables.listed((*self.walk.notes, *ideas))


_SHOWN = 8
"""Layers of a stage in a notebook: the most suspicious come first."""


def _table(stage: StageDiff) -> Table:
    rows = tuple(
        (
            layer.module or "-",
            layer.node,
            layer.op,
            *(f"{db:.1f}" for db in (layer.local_db, layer.accumulated_db, layer.excess_db)),
            "off" if layer.wrong else "",
        )
        for layer in stage.layers[:_SHOWN]
    )
    columns = ("module", "node", "operator", "local dB", "accumulated dB", "beyond rounding dB", "")
    return Table(columns=columns, rows=rows)


def compare(a: str, b: str, data: DataSpec | None, context: BuildContext) -> Diff:
    """Compare ``b`` with ``a``, each a source, an artifact's folder or a model file; with ``b`` empty, the artifact
    ``a`` with its source, which is recorded in its manifest. Raises what :func:`edgekit.diff.resolve.resolve` does."""
    chain = resolve(a, b, data, context)
    with context.progress.task("compare layer by layer"), step("compare layer by layer", quick=True):
        result = walk(chain.forms, chain.samples, chain.notes)
        shipped = as_it_ships(chain, result, trust=context.options.trust)
    kept = keep(chain, result)
    if kept is not None:
        chain = replace(chain, artifact=kept)
    suggestions = suggest(result, chain.artifact, tampered=chain.tampered)
    return Diff(walk=result, suggestions=suggestions, chain=chain, shipped=shipped)
