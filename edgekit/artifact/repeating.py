"""What would repeat a gate that a verification left out, in the words of the command line."""

from __future__ import annotations

from collections.abc import Iterable

from edgekit.artifact import language
from edgekit.artifact.manifest import Manifest
from edgekit.core import plugins

_BESIDE_SOURCE = frozenset(
    {
        "finite",
        "snr",
        "slices",
        "samples",
        "integers",
        "relative-error",
        "top1-agreement",
        "boxes",
        "masks",
        "metric-drop",
        "metric",
        "rollout",
        "decisions",
    }
)
"""Gates that hold an artifact's outputs, or its metric, against the source's."""
_BUILD = "edgekit build of its source alone measures it again"


def remedies(
    names: Iterable[str], manifest: Manifest, *, evaluation: bool, source: bool
) -> dict[str, tuple[str, ...]]:
    """What repeats each of the gates ``names``, and which it repeats.

    ``evaluation`` and ``source`` say what was given, and did not repeat them.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        what = _remedy(name, manifest, evaluation=evaluation, source=source)
        found[what] = (*found.get(what, ()), name)
    return found


def _remedy(name: str, manifest: Manifest, *, evaluation: bool, source: bool) -> str:
    if manifest.target.task == language.TASK or (evaluation and source):
        return _BUILD
    if name in _BESIDE_SOURCE:
        return (
            "--source SOURCE compares it with its source"
            if evaluation
            else "--eval DATA with --source SOURCE measures it"
        )
    counts = name == "placement" and plugins.info(manifest.target.backend).counts_own_files
    if counts and not evaluation:
        return "--eval DATA counts it"
    return _BUILD
