"""The float models that corrections make, each made once and calibrated again."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgekit.errors import UsageError
from edgekit.graph import io as graphs
from edgekit.quantize import prepare
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.equalize import equalize
from edgekit.quantize.inputs import LayerInputs, LayerRanges
from edgekit.quantize.options import WEIGHTED_MSE, QuantizeOptions
from edgekit.quantize.params import Stored
from edgekit.quantize.plan import Plan
from edgekit.quantize.rounding import Rounding
from edgekit.quantize.smooth import smooth
from edgekit.types import OnnxModel, Samples

_STEPS = ("equalize", "smooth")
MEASURED = frozenset({*_STEPS, "rounding", "gptq"})
"""What runs the model."""


def require_samples(options: QuantizeOptions, samples: Samples | None) -> None:
    """Raises :class:`UsageError` where the options need samples and there are none."""
    asked = sorted(MEASURED & set(options.corrections))
    if options.method == WEIGHTED_MSE:
        asked.append(f"method {WEIGHTED_MSE}")
    if samples is None and asked:
        raise UsageError(
            f"these run the model: {', '.join(asked)}",
            hint="pass the calibration samples (--calib), or leave them out",
        )


class FloatModels:
    """A float model, and what corrections that keep its function make of it."""

    def __init__(
        self, model: OnnxModel, calibration: Calibration, samples: Samples | None, folder: Path
    ) -> None:
        self.samples, self.folder = samples, folder
        self._made: dict[tuple[str, ...], tuple[OnnxModel, Calibration, tuple[str, ...]]] = {
            (): (model, calibration, ())
        }
        self._rounding: dict[str, Rounding] = {}
        self._ranges: dict[str, LayerRanges] = {}

    def corrected(self, corrections: tuple[str, ...]) -> tuple[OnnxModel, Calibration, tuple[str, ...]]:
        """The model with the float corrections among ``corrections``, its calibration, and notes."""
        key = tuple(c for c in corrections if c in _STEPS)
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def _make(self, key: tuple[str, ...]) -> tuple[OnnxModel, Calibration, tuple[str, ...]]:
        model, calibration, notes = self.corrected(key[:-1])
        ir_model = prepare.load(model, 13)
        if key[-1] == "equalize":
            changed = equalize(ir_model.graph, calibration)
        else:
            changed = smooth(ir_model.graph, calibration, self._seen(model))
        if not changed:
            return model, calibration, notes
        assert self.samples is not None
        name = "-".join(key)
        corrected = graphs.save(ir_model, self.folder / f"{name}.onnx")
        again = calibrate(corrected, self.samples, out=self.folder / f"{name}.calibration")
        return corrected, again, (*notes, f"{key[-1]} rescaled {changed} tensors")

    def rounded(self, model: OnnxModel, plan: Plan, bits: int, *, per_channel: bool) -> dict[str, Stored]:
        """Weights of the plan's quantized layers, rounded with regard to their inputs."""
        if model.sha256 not in self._rounding:
            self._rounding[model.sha256] = Rounding(self._seen(model))
        return self._rounding[model.sha256].weights(plan, bits, per_channel=per_channel)

    def layer_ranges(self, model: OnnxModel, graph: ir.Graph, calibration: Calibration) -> LayerRanges:
        """Ranges that regard the weights which tensors meet; ``graph`` is the model's."""
        if model.sha256 not in self._ranges:
            self._ranges[model.sha256] = LayerRanges(graph, self._seen(model), calibration)
        return self._ranges[model.sha256]

    def _seen(self, model: OnnxModel) -> LayerInputs:
        assert self.samples is not None
        return LayerInputs(model, self.samples)
