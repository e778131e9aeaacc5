"""Two models compared layer by layer, with what to build differently."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.core.contained import step
from edgekit.diff import Walk, walk
from edgekit.diff.report import LayerDiff
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


def compare(a: str, b: str, data: DataSpec | None, context: BuildContext) -> Diff:
    """Compare ``b`` with ``a``, each a source, an artifact's folder or a model file; with ``b`` empty, the artifact
    ``a`` with its source. Raises what :func:`edgekit.diff.resolve.resolve` does."""
    chain = resolve(a, b, data, context)
    with context.progress.task("compare layer by layer"), step("compare layer by layer", quick=True):
        result = walk(chain.forms, chain.samples, chain.notes)
        shipped = as_it_ships(chain, result, trust=context.options.trust)
    suggestions = suggest(result, chain.artifact, tampered=chain.tampered)
    return Diff(walk=result, suggestions=suggestions, chain=chain, shipped=shipped)
