"""Build an artifact again with a suggestion, and say what it brought."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.artifact.manifest import Artifact
from edgekit.core import targets
from edgekit.core.config import Options
from edgekit.diff.resolve import named_source
from edgekit.diff.suggest import Suggestion, used_options
from edgekit.errors import UsageError
from edgekit.pipeline.build import Outcome, run
from edgekit.pipeline.request import Request
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
    request = Request(
        source=rebuild.source or named_source(artifact, context),
        targets=(target,),
        options=_with(artifact, suggestion, rebuild, context),
        calibration=rebuild.calibration or None,
        evaluation=rebuild.evaluation or None,
    )
    return run(request, replace(context, options=request.options))[0]


def _with(artifact: Artifact, suggestion: Suggestion, rebuild: Rebuild, context: BuildContext) -> Options:
    """The options of the artifact's own build, then the suggestion's."""
    used = used_options(artifact)
    match suggestion.flags:
        case ("--method", method):
            used = replace(used, method=method)
        case ("--exclude", layer):
            used = replace(used, exclude=(*used.exclude, layer))
    return replace(
        context.options,
        out=Path(rebuild.out) if rebuild.out else artifact.directory.parent,
        set=artifact.manifest.settings,
        method=used.method,
        exclude=used.exclude,
        int16=used.int16,
        corrections=used.corrections,
        speed_gate=False,  # the artifact's own build decided about speed
    )
