"""A float model, and what quantizing it for one scheme has in common with quantizing it for the next.

Four INT8 targets ask the same of a model: what smoothing makes of it, what its layers read, what it answers to a few
samples, its weights as integers. Each is made once, also where targets are quantized side by side.
"""

from __future__ import annotations

import weakref
from pathlib import Path

import onnx_ir as ir

from edgekit.core.files import temporary
from edgekit.core.parallel import Once
from edgekit.errors import UsageError
from edgekit.graph import io as graphs
from edgekit.quantize import prepare
from edgekit.quantize.bias import mean_error
from edgekit.quantize.blocks import Block
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.equalize import equalize
from edgekit.quantize.inputs import Doubles, LayerInputs, LayerRanges, Outputs, answers, probes
from edgekit.quantize.options import WEIGHTED_MSE, QuantizeOptions
from edgekit.quantize.params import Floats, Stored, quantize_weight
from edgekit.quantize.rounding import Rounding
from edgekit.quantize.smooth import smooth
from edgekit.quantize.trained import Trained, has_quantizers, take_apart
from edgekit.types import OnnxModel, Sample, Samples

_RESCALING = ("equalize", "smooth")
MEASURED = frozenset({*_RESCALING, "rounding", "gptq"})
"""Corrections that run the model."""


class FloatModel:
    """A float model with the statistics of its activations and the samples that they were taken on.

    Schemes without static ranges need no ``calibration``; without ``samples`` nothing can be measured. What corrections
    make of the model lies in a temporary folder, which goes with the object.
    """

    def __init__(
        self, model: OnnxModel, calibration: Calibration | None = None, samples: Samples | None = None
    ) -> None:
        self.model, self.calibration, self.samples = model, calibration, samples
        self.notes: tuple[str, ...] = ()
        self._origin: FloatModel | None = None  # of which this one was made
        self._once = Once()

    # --- what it gives ------------------------------------------------------------------------------------

    @property
    def probes(self) -> list[Sample]:
        """The samples that are run wherever something is compared."""
        assert self.samples is not None
        samples = self.samples
        return self._source._once.get("probes", lambda: probes(samples))

    @property
    def _source(self) -> FloatModel:
        return self if self._origin is None else self._origin

    @property
    def reference(self) -> list[Outputs]:
        """The model's own outputs for :attr:`probes`."""
        return self._once.get("reference", lambda: list(answers(self.model.path, self.probes)))

    @property
    def inputs(self) -> LayerInputs:
        """What the layers read, over :attr:`probes`."""
        return LayerInputs(self.model, self.probes)

    def graph(self, opset: int) -> ir.Model:
        """A copy of the model to change, in ``opset`` or a newer one."""
        needed = opset if self.model.opset < opset else self.model.opset
        return self._once.get(("graph", needed), lambda: prepare.load(self.model, needed)).clone()

    # --- models made of it --------------------------------------------------------------------------------

    def apart(self) -> tuple[FloatModel, Trained]:
        """The model without Q/DQ, and what these say; itself where there are none."""
        plain, trained = self._once.get("apart", self._take_apart)
        return plain or self, trained

    def _take_apart(self) -> tuple[FloatModel | None, Trained]:
        if not has_quantizers(self.model):
            return None, Trained()
        model, trained = take_apart(self.model, self._folder / "apart.onnx")
        return self._made(model, self.calibration), trained

    def corrected(self, corrections: tuple[str, ...]) -> FloatModel:
        """The model with those of ``corrections`` that rescale tensors, calibrated again; ``notes`` tell of it."""
        steps = tuple(c for c in corrections if c in _RESCALING)
        made = self._once.get(("corrected", steps), lambda: self._rescale(steps)) if steps else None
        return made or self

    def _rescale(self, steps: tuple[str, ...]) -> FloatModel | None:
        """``None`` where nothing is to be changed."""
        before = self.corrected(steps[:-1])
        assert before.calibration is not None
        ir_model = before.graph(13)
        if steps[-1] == "equalize":
            changed = equalize(ir_model.graph, before.calibration)
        else:
            changed = smooth(ir_model.graph, before.calibration, before.inputs)
        if not changed:
            return None if before is self else before
        assert self.samples is not None
        name = "-".join(steps)
        model = graphs.save(ir_model, self._folder / f"{name}.onnx")
        corrected = self._made(
            model, calibrate(model, self.samples, out=self._folder / f"{name}.calibration")
        )
        corrected.notes = (*before.notes, f"{steps[-1]} rescaled {changed} tensors")
        return corrected

    def _made(self, model: OnnxModel, calibration: Calibration | None) -> FloatModel:
        made = FloatModel(model, calibration, self.samples)
        made._origin = self._source
        return made

    @property
    def _folder(self) -> Path:
        return self._source._once.get("folder", self._source._make_folder)

    def _make_folder(self) -> Path:
        folder = temporary("quantize")
        weakref.finalize(self, folder.cleanup)
        return Path(folder.name)

    # --- what is measured of it ---------------------------------------------------------------------------

    def layer_ranges(self) -> LayerRanges:
        """Ranges that regard the weights which tensors meet."""
        return self._once.get("layer ranges", self._layer_ranges)

    def _layer_ranges(self) -> LayerRanges:
        assert self.calibration is not None
        return LayerRanges(self.graph(13).graph, self.inputs, self.calibration)

    @property
    def rounding(self) -> Rounding:
        """Weights rounded with regard to what their layers read."""
        return self._once.get("rounding", lambda: Rounding(self.inputs))

    def nearest(self, name: str, weight: Floats, axis: int | None, bits: int, scale: Floats) -> Stored:
        """The weight called ``name`` rounded to nearest (see :func:`edgekit.quantize.params.quantize_weight`)."""
        key = ("nearest", name, axis, bits, scale.tobytes())
        return self._once.get(key, lambda: quantize_weight(weight, axis, bits, scale))

    def mean_error(self, block: Block, weight: Floats, stored: Stored, mean: Floats) -> Doubles:
        """What rounding the ``weight`` of ``block`` to ``stored`` adds to its mean output, by channel."""
        key = ("mean error", block.name, stored)
        return self._once.get(key, lambda: mean_error(block, stored.real - weight, mean))

    def require_samples(self, options: QuantizeOptions) -> None:
        """Raises :class:`UsageError` where the options need samples and there are none."""
        asked = sorted(MEASURED & set(options.corrections))
        if options.method == WEIGHTED_MSE:
            asked.append(f"method {WEIGHTED_MSE}")
        if self.samples is None and asked:
            raise UsageError(
                f"these run the model: {', '.join(asked)}",
                hint="pass the calibration samples (--calib), or leave them out",
            )
