"""Build an artifact again with a suggestion, and say what it brought."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact.manifest import Artifact
from edgekit.core import targets
from edgekit.diff.resolve import named_source
from edgekit.diff.suggest import Suggestion
from edgekit.errors import UsageError
from edgekit.pipeline.build import Outcome, Request, run
from edgekit.pipeline.stages import BuildContext
from edgekit.types import SourceSpec


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """What a build needs that no artifact remembers: DATA texts, and where the result goes.

    ``source`` is the one that the user named; without it the manifest's is opened, where that is allowed.
    """

    source: SourceSpec | None = None
    calibration: str = ""
    evaluation: str = ""
    out: str = ""


def apply(artifact: Artifact, suggestion: Suggestion, rebuild: Rebuild, context: BuildContext) -> Outcome:
    """The artifact's build with the suggestion's flags on top: built, run on its runtime, and gated.

    Goes into ``rebuild.out``, by default where the artifact lies. Raises :class:`UsageError` when
    calibration data are needed and none are given, and what the source and its data raise.
    """
    target = targets.known()[suggestion.target] if suggestion.target else artifact.manifest.target
    if target.needs_calibration and not rebuild.calibration:
        raise UsageError(
            "to build again, the calibration data are needed",
            hint="--apply --calib DATA, as for edgekit build",
        )
    options = _with(artifact, suggestion, rebuild, context)
    request = Request(
        source=rebuild.source or named_source(artifact, context),
        targets=(target,),
        options=options,
        calibration=rebuild.calibration or None,
        evaluation=rebuild.evaluation or None,
    )
    return run(request, BuildContext(store=context.store, options=options, progress=context.progress))[0]


def _with(artifact: Artifact, suggestion: Suggestion, rebuild: Rebuild, context: BuildContext) -> Any:
    """The options of the artifact's own build, then the suggestion's."""
    from dataclasses import replace

    step = next((s for s in artifact.manifest.steps if s.name == "quantize"), None)
    kept = step.options if step is not None else {}
    options = replace(
        context.options,
        out=Path(rebuild.out) if rebuild.out else artifact.directory.parent,
        set=artifact.manifest.settings,
        method=kept.get("method", "auto"),
        exclude=tuple(kept.get("exclude", ())),
        int16=tuple(kept.get("int16", ())),
        corrections=tuple(kept.get("corrections", ("bias",))),
        speed_gate=False,
    )
    pairs = list(zip(suggestion.flags[::2], suggestion.flags[1::2], strict=True))
    for flag, value in pairs:
        if flag == "--method":
            options = replace(options, method=value)
        elif flag == "--exclude":
            options = replace(options, exclude=(*options.exclude, value))
        elif flag == "--int16":
            options = replace(options, int16=(*options.int16, value))
    return options
