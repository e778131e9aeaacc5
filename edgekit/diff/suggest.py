"""What to build differently: flags of ``edgekit build`` for the layer where it starts."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.artifact.manifest import Artifact
from edgekit.core import targets
from edgekit.core.structure import structure
from edgekit.diff import Walk
from edgekit.diff.report import LayerDiff, StageDiff
from edgekit.quantize.options import QuantizeOptions
from edgekit.types import Precision

_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "QUANTIZE"})


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """``flags`` for ``edgekit build``, on top of those of the artifact's own build; ``target`` is set where
    another target would do instead. ``why`` is one sentence."""

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
    options = used_options(artifact)
    if not artifact.manifest.target.needs_calibration:
        ideas = [_exclude(layer, options, "its weights do not survive this few bits")]
    else:
        data = None if layer.loses else _everywhere(stage, layer)
        ideas = (
            [data] if data else [*_boundary(layer, artifact), *_by_cause(layer, options), *_wider(artifact)]
        )
    return tuple(idea for idea in ideas if idea is not None)


def _rebuild(stage: StageDiff, tampered: bool) -> str:
    if tampered:
        return "build it again: the files are not those that were built and verified"
    return f"build it again from the source: {stage.after} does not compute what {stage.before} does"


def _everywhere(stage: StageDiff, start: LayerDiff) -> Suggestion | None:
    """Ranges that are wrong from the input on, or in most layers, come from the calibration data."""
    # The first quantizer reads the samples themselves: when it is off, no layer is to blame.
    at_input = start.op in _QUANTIZED and not start.module
    if not at_input and 2 * len(stage.wrong) < len(stage.layers):
        return None
    what = (
        "the ranges from the input on"
        if at_input
        else f"the ranges of {len(stage.wrong)} of {len(stage.layers)} layers"
    )
    return Suggestion(flags=(), why=f"calibrate with data like these (--calib): {what} do not cover them")


def _boundary(layer: LayerDiff, artifact: Artifact) -> list[Suggestion]:
    """Outputs that were asked for as integers have one scale each, whatever is in them."""
    asked = str(artifact.manifest.settings.get("io_dtype", "float32"))
    if (
        not layer.loses
        or asked == "float32"
        or layer.tensor not in {o.name for o in artifact.manifest.outputs}
    ):
        return []
    return [
        Suggestion(
            flags=("--set", "io_dtype=float32"), why="one scale is too coarse for a part of that output"
        )
    ]


def _by_cause(layer: LayerDiff, options: QuantizeOptions) -> list[Suggestion | None]:
    methods = {
        "clipping": ("minmax", "its range cuts off values that occur"),
        "rounding": ("mse", "its range is too wide for its values"),
    }
    if layer.cause == "scale":
        return [_exclude(layer, options, "one scale is too coarse for a part of what it gives")]
    if layer.cause not in methods:
        return [_exclude(layer, options, "the layer's own arithmetic is off")]
    better, why = methods[layer.cause]
    range_method = None if options.method == better else Suggestion(flags=("--method", better), why=why)
    return [range_method, _exclude(layer, options, "or keep the layer in float")]


def _exclude(layer: LayerDiff, options: QuantizeOptions, why: str) -> Suggestion | None:
    """Keep the layer in float; ``None`` where it is already."""
    if layer.place in options.exclude:
        return None
    return Suggestion(flags=("--exclude", layer.place), why=why)


def _wider(artifact: Artifact) -> list[Suggestion]:
    """A target of the same backend with wider activations, else its half-precision one."""
    own = artifact.manifest.target
    siblings = {t.precision: t for t in targets.known().values() if t.backend == own.backend}
    for precision in (Precision.INT16X8, Precision.FP16):
        if precision in siblings and siblings[precision].name != own.name:
            name = siblings[precision].name
            return [Suggestion(flags=(), target=name, why="or a target with finer activations")]
    return []


def used_options(artifact: Artifact) -> QuantizeOptions:
    """How the artifact was quantized; the defaults where it was not."""
    step = next((s for s in artifact.manifest.steps if s.name == "quantize"), None)
    options = {} if step is None else {k: v for k, v in step.options.items() if k != "scheme"}
    return structure(QuantizeOptions, options, where=f"the options of {artifact.directory}")
