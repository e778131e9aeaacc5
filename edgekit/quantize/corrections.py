"""The float models that corrections make, each made once and calibrated again."""

from __future__ import annotations

from pathlib import Path

from edgekit import graph as graphs
from edgekit.calibrate import Calibration, calibrate
from edgekit.errors import UsageError
from edgekit.quantize import prepare
from edgekit.quantize.equalize import equalize, smooth
from edgekit.quantize.options import QuantizeOptions
from edgekit.quantize.params import Stored
from edgekit.quantize.plan import Plan
from edgekit.quantize.rounding import Rounding
from edgekit.types import OnnxModel, Samples

_STEPS = {"equalize": equalize, "smooth": smooth}
_MEASURED = frozenset({*_STEPS, "rounding"})


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

    def corrected(self, corrections: tuple[str, ...]) -> tuple[OnnxModel, Calibration, tuple[str, ...]]:
        """The model with the float corrections among ``corrections``, its calibration, and notes."""
        if self.samples is None and _MEASURED & set(corrections):
            names = ", ".join(sorted(_MEASURED & set(corrections)))
            raise UsageError(
                f"the corrections {names} run the model",
                hint="pass the calibration samples, or leave them out",
            )
        key = tuple(c for c in corrections if c in _STEPS)
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def _make(self, key: tuple[str, ...]) -> tuple[OnnxModel, Calibration, tuple[str, ...]]:
        model, calibration, notes = self.corrected(key[:-1])
        ir_model = prepare.load(model, 13)
        changed = _STEPS[key[-1]](ir_model.graph, calibration)
        if not changed:
            return model, calibration, notes
        assert self.samples is not None
        name = "-".join(key)
        corrected = graphs.save(ir_model, self.folder / f"{name}.onnx")
        again = calibrate(corrected, self.samples, out=self.folder / f"{name}.calibration")
        return corrected, again, (*notes, f"{key[-1]} rescaled {changed} tensors")

    def rounded(self, model: OnnxModel, plan: Plan, options: QuantizeOptions) -> dict[str, Stored]:
        """Weights of the plan's quantized layers, rounded with regard to their inputs."""
        assert self.samples is not None
        if model.sha256 not in self._rounding:
            self._rounding[model.sha256] = Rounding(model, self.samples)
        return self._rounding[model.sha256].weights(plan, options.weight_bits)
