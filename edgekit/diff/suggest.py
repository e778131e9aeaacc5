"""What to build differently: flags of ``edgekit build`` for the layer where it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.artifact.manifest import Artifact
from edgekit.core import targets
from edgekit.diff import Walk
from edgekit.diff.report import LayerDiff, StageDiff

_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "QUANTIZE"})


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """``flags`` for ``edgekit build``, on top of those of the artifact's own build; ``target`` is set where
    another row would do instead. ``why`` is one sentence."""

    flags: tuple[str, ...]
    why: str
    target: str = ""

    @property
    def text(self) -> str:
        """As typed."""
        return " ".join([*self.flags, *(["--target", self.target] if self.target else [])])


def suggest(walk: Walk, artifact: Artifact | None, *, tampered: bool = False) -> tuple[Suggestion, ...]:
    """What could help, the best first; nothing where there is nothing wrong."""
    stage, layer = walk.broken, walk.starts_at
    if stage is None or layer is None:
        return ()
    if tampered or artifact is None or artifact.manifest.target.scheme is None:
        return (Suggestion(flags=(), why=_rebuild(stage, tampered)),)
    options = _options(artifact)
    if not artifact.manifest.target.needs_calibration:
        found = [_exclude(layer, options, "its weights do not survive this few bits")]
    else:
        data = _everywhere(stage, layer)
        found = [data] if data else [*_by_cause(layer, options), *_wider(artifact)]
    return tuple(s for s in found if s is not None)


def _rebuild(stage: StageDiff, tampered: bool) -> str:
    if tampered:
        return "build it again: the files are not those that were built and verified"
    return f"build it again from the source: {stage.after} does not compute what {stage.before} does"


def _everywhere(stage: StageDiff, start: LayerDiff) -> Suggestion | None:
    """Ranges that are wrong from the input on, or in most layers, come from the calibration data."""
    at_input = start.op in _QUANTIZED and not start.module
    if not at_input and 2 * len(stage.wrong) < len(stage.layers):
        return None
    what = (
        "the ranges from the input on"
        if at_input
        else f"the ranges of {len(stage.wrong)} of {len(stage.layers)} layers"
    )
    return Suggestion(flags=(), why=f"calibrate with data like these (--calib): {what} do not cover them")


def _by_cause(layer: LayerDiff, options: Mapping[str, Any]) -> list[Suggestion | None]:
    method = options.get("method", "auto")
    beside = layer.cause in ("clipping", "rounding")
    why = "or keep the layer in float" if beside else "the layer's own arithmetic is off"
    exclude = _exclude(layer, options, why)
    if layer.cause == "clipping":
        return [_method("minmax", method, "its range cuts off values that occur"), exclude]
    if layer.cause == "rounding":
        return [_method("mse", method, "its range is too wide for its values"), exclude]
    return [exclude]


def _method(wanted: str, used: str, why: str) -> Suggestion | None:
    return None if used == wanted else Suggestion(flags=("--method", wanted), why=why)


def _exclude(layer: LayerDiff, options: Mapping[str, Any], why: str) -> Suggestion | None:
    """Keep the layer in float; ``None`` where it is already."""
    if layer.place in options.get("exclude", ()):
        return None
    return Suggestion(flags=("--exclude", layer.place), why=why)


def _wider(artifact: Artifact) -> list[Suggestion]:
    """A row of the same backend with wider activations, else its half-precision one."""
    own = artifact.manifest.target
    rows = {t.precision: t for t in targets.known().values() if t.backend == own.backend}
    for precision in ("int16x8", "fp16"):
        row = next((t for p, t in rows.items() if str(p) == precision), None)
        if row is not None and row.name != own.name:
            return [Suggestion(flags=(), target=row.name, why="or a target with finer activations")]
    return []


def _options(artifact: Artifact) -> Mapping[str, Any]:
    step = next((s for s in artifact.manifest.steps if s.name == "quantize"), None)
    return step.options if step is not None else {}
