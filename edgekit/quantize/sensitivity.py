"""What each layer costs: the noise at the outputs with that layer alone in integers."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.quantize.auto import snr
from edgekit.quantize.driver import quantize
from edgekit.quantize.float_model import FloatModel
from edgekit.quantize.inputs import answers
from edgekit.quantize.options import QuantizeOptions
from edgekit.types import Target

_SAMPLES = 16
Progress = Callable[[int, int], None]
"""Called with (layers done, layers in all)."""


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """One quantized layer. ``snr_db`` is that of the model's outputs with only this layer in integers."""

    node: str
    op: str
    module_path: str
    snr_db: float
    macs: int

    @property
    def noise(self) -> float:
        """Noise power at the outputs, relative to the signal."""
        return float(10.0 ** (-self.snr_db / 10.0))


def sensitivity(
    floats: FloatModel,
    target: Target,
    options: QuantizeOptions,
    folder: Path,
    progress: Progress | None = None,
) -> tuple[LayerSensitivity, ...]:
    """Every layer that multiplies, the most harmful first. ``floats`` has samples.

    Takes one quantization and a few inferences a layer, in ONNX Runtime on the calibration samples. Corrections
    that rescale the float model are made once, before.
    ``folder`` holds the candidates while it runs.
    """
    plain = dataclasses.replace(
        options,
        method="mse" if options.method == "auto" else options.method,
        corrections=("bias",) if "bias" in options.corrections else (),
    )
    folder.mkdir(parents=True, exist_ok=True)
    corrected = floats.corrected(options.corrections)
    layers = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".sensitivity.") as temporary:
        out = Path(temporary) / "model.onnx"
        _, report = quantize(corrected, target, plain, out)
        cores = [n for n in report.quantized if n.macs]
        for i, layer in enumerate(cores):
            others = tuple(n.node for n in cores if n.node != layer.node)
            alone = dataclasses.replace(plain, exclude=(*plain.exclude, *others))
            candidate, _ = quantize(corrected, target, alone, out)
            figure = snr(floats.reference[:_SAMPLES], answers(candidate.path, floats.probes[:_SAMPLES]))
            layers.append(
                LayerSensitivity(
                    node=layer.node,
                    op=layer.op,
                    module_path=layer.module_path,
                    snr_db=figure,
                    macs=layer.macs,
                )
            )
            if progress is not None:
                progress(i + 1, len(cores))
    return tuple(sorted(layers, key=lambda s: (s.snr_db, s.macs, s.node)))
